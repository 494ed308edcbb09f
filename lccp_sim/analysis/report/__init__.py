"""The pages: of a run, of several, of a study."""
