"""Models of transformers: read, measured unchanged, and converted to lccp-sim's format and back."""
