"""Checks before and after an extraction: clip lists, mouth crops, shards, parity with official features."""
