"""From overrides to a checked config. `parse` imports no other part; `load` imports data, models and monitors."""
