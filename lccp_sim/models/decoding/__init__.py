"""Writing tokens with a model, one after the other."""
