"""From overrides to a checked config; `parse` stands below everything, `load` above data, models and monitors."""
