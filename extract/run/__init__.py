"""Extraction runs: on one machine, on a Ray cluster or as a job array."""
