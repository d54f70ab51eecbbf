"""Scores, pooling, metrics: everything after training.

Scoring alone needs jax: import it from `jax_avh.evaluation.score`, so that pooling and metrics start at once.
"""

from jax_avh.evaluation.evaluate import evaluate_scores
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.scores import ScoreTable, open_scores

__all__ = ["POOLINGS", "ScoreTable", "detection_metrics", "evaluate_scores", "open_scores"]
