"""Weights and features -> scores."""
