"""The cost of a run, computed from its config alone: weights, FLOPs, memory, time, the monitors' share, RoPE.

Pure functions of a config, without torch. They build and read nothing.
"""
