"""Scores, pooling, metrics, statistics, localisation, audits: everything after training, in numbers.

Scoring alone needs jax: import it from `jax_avh.inference.score`, so that the rest starts at once.
"""

from jax_avh.evaluation.evaluate import evaluate
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.results import Entry, Evaluation
from jax_avh.inference.pooling import POOLINGS, pool_all

__all__ = ["POOLINGS", "Entry", "Evaluation", "detection_metrics", "evaluate", "pool_all"]
