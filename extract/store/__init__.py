"""Shards and shard sets: writing, resuming, merging and summarising."""
