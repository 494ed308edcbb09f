"""The mixture-of-experts decoder: plain modules, with taps for the monitors.

Tensors end in their shape. B sequences, T query tokens, S key tokens, D width, N query heads, M key/value heads,
H head width, E experts, K experts per token, F expert width, R routed rows (B*T*K, sorted by expert), V vocabulary,
L layers. Scalars and modules carry no suffix.
"""
