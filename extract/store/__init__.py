"""Shards and sets of shards: writing, resuming, merging, summing up."""
