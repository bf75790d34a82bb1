"""Models out of GGUF files: their header alone is read, never a weight."""
