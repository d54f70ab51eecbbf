"""Average precision and average recall of proposed segments, by the official rule of AV-Deepfake1M."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

# The official rule: avdeepfake1m 0.0.4, evaluation.ap_ar_1d with the arguments of its README.
AP_IOU = (0.5, 0.75, 0.9, 0.95)
AR_IOU = (np.arange(50, 100, 5) / 100).astype(np.float32)
AR_PROPOSALS = (50, 30, 20, 10, 5)


def localisation_metrics(
    proposals: dict[str, Float[np.ndarray, "_ 3"]], truth: dict[str, Float[np.ndarray, "_ 2"]]
) -> dict[str, dict[str, float | None]]:
    """Average precision and average recall of proposals by the official rule of AV-Deepfake1M, in its float32.

    A proposal finds a segment if their intersection over union (IoU) is above a threshold, not at it.

    Args:
      proposals: (confidence, start, end) by file, by falling confidence; other files than `truth`'s are not looked at.
      truth: (start, end) of the fake segments by file, none for a real one. Its order decides between proposals of
        equal confidence in different files.

    Returns:
      `ap` by IoU: each segment takes the first proposal of its file that finds it and is not taken yet; the area under
      the precision envelope of all proposals by falling confidence, from the recall of the first proposal on (so the
      official program has it: all found and nothing else is not 1, but 1 less one segment's share).
      `ar` by number of proposals: the share of segments that one of so many first proposals of a file finds, its mean
      over IoU 0.5:0.05:0.95. All None if there is no segment.
    """
    if not (total := sum(map(len, truth.values()))):
        return {"ap": dict.fromkeys(map(str, AP_IOU)), "ar": dict.fromkeys(map(str, AR_PROPOSALS))}
    found = [proposals.get(path, np.empty((0, 3))).astype(np.float32) for path in truth]
    ious = [_iou(rows[:, 1:], truth[path].astype(np.float32)) for rows, path in zip(found, truth, strict=True)]
    order = np.argsort(-np.concatenate(found)[:, 0], kind="stable")
    return {
        "ap": {str(iou): _average_precision(ious, order, iou, total) for iou in AP_IOU},
        "ar": {str(count): _average_recall(ious, count) for count in AR_PROPOSALS},
    }


def _iou(proposed: Float32[np.ndarray, "P 2"], true: Float32[np.ndarray, "S 2"]) -> Float32[np.ndarray, "P S"]:
    """Intersection over union of stretches of time; 0 of two empty ones."""
    start, end = proposed[:, :1], proposed[:, 1:]
    inner = np.maximum(np.minimum(end, true[:, 1]) - np.maximum(start, true[:, 0]), 0)
    outer = np.maximum(end, true[:, 1]) - np.minimum(start, true[:, 0])
    return np.divide(inner, outer, out=np.zeros_like(inner), where=outer > 0)


def _average_precision(ious: list[np.ndarray], order: Int64[np.ndarray, " P"], threshold: float, total: int) -> float:
    found = np.cumsum(np.concatenate([_taken(iou > threshold) for iou in ious])[order])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(found / total) @ envelope[1:])


def _taken(hit: Bool[np.ndarray, "P S"]) -> Bool[np.ndarray, " P"]:
    """The proposals that segments take: each in its turn the first that finds it and is free."""
    taken = np.zeros(len(hit), bool)
    for free in hit.T:
        taken[np.flatnonzero(free & ~taken)[:1]] = True
    return taken


def _average_recall(ious: list[np.ndarray], count: int) -> float:
    best = np.concatenate([iou[:count].max(axis=0, initial=0) for iou in ious])
    return float((best[:, None] > AR_IOU).mean())
