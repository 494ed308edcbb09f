"""Monitors that let the model write."""
