"""Checks before and after an extraction: clip lists, mouth crops, shards, and parity with official features."""
