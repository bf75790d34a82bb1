"""What a model is: layers, sizes and formats, read from any Hugging Face ``config.json``."""
