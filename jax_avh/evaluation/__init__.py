"""Scores, pooling, metrics: everything after training."""

from jax_avh.evaluation.evaluate import evaluate_scores
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.score import score_shards
from jax_avh.evaluation.scores import ScoreTable, open_scores

__all__ = ["POOLINGS", "ScoreTable", "detection_metrics", "evaluate_scores", "open_scores", "score_shards"]
