"""Scores, pooling, metrics: everything after training."""

from jax_avh.evaluation.evaluate import evaluate
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.score import score
from jax_avh.evaluation.scores import ScoreTable, open_scores

__all__ = ["POOLINGS", "ScoreTable", "detection_metrics", "evaluate", "open_scores", "score"]
