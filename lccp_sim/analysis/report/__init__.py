"""The pages: of a run, of several runs, of a study."""
