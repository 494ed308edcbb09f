"""Statistics of curves, runs and studies."""
