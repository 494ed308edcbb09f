"""From the files of a run directory to a verdict. Reads records and samples only; needs no torch; changes no run."""
