"""Shards -> sources -> batches -> loaders."""
