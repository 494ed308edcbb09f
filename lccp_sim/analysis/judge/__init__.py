"""Judgements of what was measured: a gate's criteria, and the difference between two runs."""
