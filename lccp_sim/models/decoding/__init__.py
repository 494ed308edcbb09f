"""Generation: sampling from a model, token by token."""
