"""Evaluation of scores: metrics with intervals, comparisons, coverage, localisation and submissions."""

from jax_avh.evaluation.evaluate import evaluate
from jax_avh.scores import POOLINGS

__all__ = ["POOLINGS", "evaluate"]
