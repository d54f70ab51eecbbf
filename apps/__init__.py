"""Applications that combine both sides: PyTorch for the features and JAX for the scores."""
