"""What sparsity buys an LLM on a device: the analytical model and its verbs."""
