"""What happens at a window: monitors, their callbacks, loggers, and the rule that stops a run."""
