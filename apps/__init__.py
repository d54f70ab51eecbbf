"""What needs both sides at once: PyTorch for the features and JAX for the scores."""
