"""Data pipeline: shards -> sources -> batches -> loaders."""
