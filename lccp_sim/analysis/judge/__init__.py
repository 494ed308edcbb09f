"""Judgements of measurements: a gate's criteria, and the difference between two runs."""
