"""Bootstrap: how far metrics would move on other clips of the same kind."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from jax_avh.evaluation.metrics import METRICS, Ranking, all_metrics, detection_metrics, operating_points, rank_clips

PERCENTILES = (2.5, 97.5)  # of the resamples: a 95 % interval
FEWEST = 5  # clips of a class, below which resamples say nothing: of one clip, all are the same
DRAWS = 1 << 18  # clips drawn at a time: what is made of them stays near the processor


def bootstrap_intervals(
    label: Int[np.ndarray, " N"],
    score: Float[np.ndarray, " N"],
    threshold: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile intervals of the detection metrics, over clips drawn with replacement.

    Two methods' scores of the same clips are resampled alike under one seed.

    Args:
      label: 0 real, 1 fake; clips of other labels are left out.
      score: higher = more fake; may be infinite.
      threshold: where clips are called fake, in all resamples; None = where `detection_metrics` puts it for all clips.
      resamples: how many; those that lack a class of the clips are left out.
      seed: of the draws.

    Returns:
      Low and high end of `auc`, `ap`, `eer`, `tpr_at_fpr_1`, `tpr_at_fpr_01`, `accuracy` and `f1`; None where the
      metric is undefined.

    Source: Efron and Tibshirani 1993, section 13.3 (percentile intervals).
    """
    ranking = rank_clips(label, score)
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(METRICS)
    if not len(ranking.order):
        return intervals
    if threshold is None:
        threshold = detection_metrics(label, score)["threshold"]
    chunks = []
    for weight in draw_clips(len(ranking.order), resamples, seed):
        points = operating_points(ranking, weight[_complete(ranking, weight)])
        chunks.append(all_metrics(points, threshold))
    return intervals | {name: _interval(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}


def draw_clips(clips: int, resamples: int, seed: int) -> Iterator[Int64[np.ndarray, "R N"]]:
    """How often each resample holds each clip, some resamples at a time; the draws do not depend on how many."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS // clips)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(clips, size=(count, clips)) + clips * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clips).reshape(count, clips)


def _complete(ranking: Ranking, weight: Int64[np.ndarray, "R N"]) -> Bool[np.ndarray, " R"]:
    """Resamples with a clip of every class that the clips have."""
    classes = [ranking.order[ranking.fake == kind] for kind in np.unique(ranking.fake)]
    return np.all([weight[:, clips].any(axis=1) for clips in classes], axis=0)


def _interval(values: Float64[np.ndarray, " R"]) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, PERCENTILES).tolist()
    return low, high
