"""What a run would take, computed from its config alone: weights, FLOPs, memory, time, the monitors' share, RoPE.

Nothing is built and nothing is read: pure functions of a config, without torch.
"""
