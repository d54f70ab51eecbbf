"""Scores, pooling, metrics, statistics, localisation, audits: everything after training, in numbers.

Scoring alone needs jax: import it from `jax_avh.evaluation.score`, so that the rest starts at once.
"""

from jax_avh.evaluation.evaluate import evaluate
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.pooling import POOLINGS, pool_all
from jax_avh.evaluation.results import Entry, Evaluation
from jax_avh.evaluation.scores import ScoreTable, open_scores

__all__ = ["POOLINGS", "Entry", "Evaluation", "ScoreTable", "detection_metrics", "evaluate", "open_scores", "pool_all"]
