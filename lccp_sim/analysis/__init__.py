"""From the files of a run directory to a verdict: records and samples only, no torch; nothing here changes a run."""
