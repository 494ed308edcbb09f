"""Models of transformers: read, measured as they are, and turned into ours and back."""
