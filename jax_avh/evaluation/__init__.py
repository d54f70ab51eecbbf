"""Evaluates scores: metrics and how sure they are, comparisons, coverage, localisation, submissions."""

from jax_avh.evaluation.evaluate import evaluate
from jax_avh.scores import POOLINGS

__all__ = ["POOLINGS", "evaluate"]
