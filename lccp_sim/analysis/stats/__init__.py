"""Statistics of curves, of runs and of studies."""
