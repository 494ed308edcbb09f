"""Training: a run from a checked config to a finished directory."""
