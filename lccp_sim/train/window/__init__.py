"""A window of a run: all monitors, the callbacks around them, loggers, and the rule that stops a run."""
