"""Localisation of fakes within clips: labels and metrics of frames, proposed segments and their metrics."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.stats import rankdata

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, FRAME_RATE, REAL, UNKNOWN
from jax_avh.evaluation.metrics import average_precision, roc_auc
from jax_avh.scores import ScoreTable

SMOOTHING = 5  # frames; the median fake segment of AV-Deepfake1M has 8, which a longer mean would blur
# Shares of all frames that reach a threshold, the best guess first. With a segment of 8 frames in three of four clips
# of about 220 frames, 3 % of frames are fake; smoothing widens each segment by 4 frames, to 5 %. The other shares,
# from 8 times as much to a quarter, find what the first one misses.
THRESHOLD_SHARES = (0.05, 0.1, 0.025, 0.2, 0.0125, 0.4)
MOST_LOCALISED = 100_000  # clips; of more, LOCALISED are drawn and measured
LOCALISED = 10_000
MOST_PROPOSALS = 100  # per clip; twice the most that average recall considers

# The official rule: avdeepfake1m 0.0.4, evaluation.ap_ar_1d with the arguments of its README.
AP_IOU = (0.5, 0.75, 0.9, 0.95)
AR_IOU = (np.arange(50, 100, 5) / 100).astype(np.float32)
AR_PROPOSALS = (50, 30, 20, 10, 5)


@dataclasses.dataclass(frozen=True)
class FrameMetrics:
    """How well frame scores separate fake frames from real ones; None = undefined."""

    frame_auc: float | None  # over the frames of all clips together
    frame_ap: float | None
    clip_auc: float | None  # AUC within each clip that has both kinds of frames, mean over these clips
    left_out: int  # clips whose fake segments are not known


@dataclasses.dataclass(frozen=True)
class SegmentMetrics:
    """How well proposed segments match the fake ones; None = undefined, for lack of fake segments."""

    ap: dict[float, float | None]  # average precision, by the IoU that a proposal must exceed
    ar: dict[int, float | None]  # average recall, by the number of proposals per clip


def localisation(table: ScoreTable) -> tuple[FrameMetrics, SegmentMetrics] | None:
    """Measures how well a method's frame scores locate fake segments.

    Args:
      table: scores of clips; those whose fake segments are not known are left out. Of more than MOST_LOCALISED clips,
        LOCALISED of those whose segments are known are drawn and measured.

    Returns:
      Metrics of the frames and of `table_proposals`; None without frame scores or fake segments.
    """
    left_out = sum(not _located(clip) for clip in table.clips)
    if table.frame is not None and len(table.clips) > MOST_LOCALISED:
        located = np.flatnonzero([_located(clip) for clip in table.clips])
        drawn = np.random.default_rng(0).permutation(len(located))[:LOCALISED]
        table = table.chosen(located[np.sort(drawn)])
    truth = {clip.path: np.reshape(clip.segments, (-1, 2)) for clip in table.clips if _located(clip)}
    if table.frame is None or not any(map(len, truth.values())):
        return None
    frames = frame_metrics(table.clips, table.offset, table.frame)
    frames = dataclasses.replace(frames, left_out=left_out)
    return frames, segment_metrics(table_proposals(table), truth)


def frame_labels(clip: ClipMeta, frames: int) -> Bool[np.ndarray, " T"]:
    """Marks the fake frames of a clip: floor(25 start) to floor(25 end), inclusive, of each segment.

    AVH-Align's authors label the frames of AV-Deepfake1M in this way. Segment ends are first rounded to 1/1000 of a
    frame, because in float32 they are off by 25 * 2e-6 frames at 60 s.

    Args:
      clip: clip with segments in seconds of the stored clip.
      frames: length T of the stored clip; segments are cut off there.
    """
    label = np.zeros(frames, bool)
    # Rounded first, because in floating point 25 * 1.16 is less than 29, even more so for 1.16 in float32.
    borders = np.round(np.clip(FRAME_RATE * np.reshape(clip.segments, (-1, 2)), 0, frames), 3)
    for first, last in borders.astype(np.int64):
        label[first : last + 1] = True
    return label


def frame_metrics(
    clips: Sequence[ClipMeta], offset: Int64[np.ndarray, "borders"], frame: Float[np.ndarray, " F"]
) -> FrameMetrics:
    """Measures how well scores separate fake frames from real ones.

    Args:
      clips: N clips; those of unknown label, and fake ones without segments, are left out.
      offset: borders of the clips; clip n is frame[offset[n]:offset[n+1]].
      frame: frame scores of all clips, end to end; higher = more fake.
    """
    label = np.full(len(frame), UNKNOWN)
    aucs = []
    for n, clip in enumerate(clips):
        if _located(clip):
            part = slice(offset[n], offset[n + 1])
            fake = frame_labels(clip, int(offset[n + 1] - offset[n]))
            label[part] = np.where(fake, FAKE, REAL)
            if fake.any() and not fake.all():
                aucs.append(clip_roc_auc(fake, frame[part]))
    return FrameMetrics(
        frame_auc=roc_auc(label, frame),
        frame_ap=average_precision(label, frame),
        clip_auc=float(np.mean(aucs)) if aucs else None,
        left_out=sum(not _located(clip) for clip in clips),
    )


def clip_roc_auc(fake: Bool[np.ndarray, " T"], score: Float[np.ndarray, " T"]) -> float:
    """Computes the area under the ROC curve of one clip's frames, in 0.1 ms per clip (scikit-learn takes 1 ms)."""
    count = int(fake.sum())
    above = rankdata(score)[fake].sum() - count * (count + 1) / 2
    return float(above / (count * (len(fake) - count)))


def confidence(score: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Maps scores to (0, 1) in the same order: 1 - c for s >= 0, else c, with c = 1 / (2 + 2 |s|).

    In float32, the official program's precision, a sigmoid maps all scores above 18 to 1; this map still distinguishes
    1000 from 1001.
    """
    score = score.astype(np.float64)
    tail = 1 / (2 + 2 * np.abs(score))
    return np.where(score < 0, tail, 1 - tail)


def segments_of(
    frame: Float[np.ndarray, " T"], threshold: float, smoothing: int = SMOOTHING
) -> Float[np.ndarray, "P 3"]:
    """Finds the runs of frames whose smoothed scores reach a threshold.

    Args:
      frame: frame scores of one clip.
      threshold: lowest smoothed score of a fake frame.
      smoothing: frames of the centred moving mean, odd; fewer at the clip's borders.

    Returns:
      (confidence, start, end) of each run, by falling confidence. Confidence is the highest smoothed score, mapped by
      `confidence`; start and end are in seconds of the stored clip, where frame k lasts from k/25 to (k+1)/25.
    """
    smoothed = _smooth(frame, smoothing)
    above = np.concatenate([[False], smoothed >= threshold, [False]])
    borders = np.flatnonzero(above[1:] != above[:-1])  # first frame of a run, first frame after it, and so on
    peak = np.maximum.reduceat(np.append(smoothed, -np.inf), borders)[::2]
    return _ranked(np.column_stack([confidence(peak), borders.reshape(-1, 2) / FRAME_RATE]))


def proposals(
    frame: Float[np.ndarray, " T"], thresholds: Float[np.ndarray, " Q"], smoothing: int = SMOOTHING
) -> Float[np.ndarray, "P 3"]:
    """Finds distinct segments of one clip with several thresholds.

    Segments of different thresholds are nested, often under one peak. If they were equally confident, most of the top
    proposals would be false, so segments of an earlier threshold are always more confident than those that a later one
    adds.

    Args:
      frame: frame scores of one clip.
      thresholds: thresholds, the best guess first.
      smoothing: as for `segments_of`.

    Returns:
      At most MOST_PROPOSALS segments, as returned by `segments_of`, with the confidence of threshold q mapped into
      (1 - (q+1) / (Q+1), 1 - q / (Q+1)). The clip's highest smoothed score serves as threshold Q, so that each clip has
      a proposal: the official program fails on a clip without any.
    """
    smoothed = _smooth(frame, smoothing)
    layers = [segments_of(smoothed, threshold, smoothing=1) for threshold in (*thresholds, smoothed.max())]
    segments = np.concatenate(layers)
    rank = np.repeat(np.arange(len(layers))[::-1], [len(layer) for layer in layers])
    segments[:, 0] = (segments[:, 0] + rank) / len(layers)
    # As complex numbers, which are sorted in the order of (start, end), but five times as fast as rows.
    first = np.unique(segments[:, 1] + 1j * segments[:, 2], return_index=True)[1]  # by its most confident threshold
    return _ranked(segments[first])[:MOST_PROPOSALS]


def table_proposals(table: ScoreTable) -> dict[str, Float[np.ndarray, "_ 3"]]:
    """Proposes segments for every clip, by path.

    The thresholds are the quantiles of all smoothed frame scores that THRESHOLD_SHARES of the frames exceed.
    """
    assert table.frame is not None
    frames = np.split(table.frame, table.offset[1:-1])
    thresholds = np.quantile(
        np.concatenate([_smooth(frame, SMOOTHING) for frame in frames]), 1 - np.array(THRESHOLD_SHARES)
    )
    return {clip.path: proposals(frame, thresholds) for clip, frame in zip(table.clips, frames, strict=True)}


def segment_metrics(
    proposed: dict[str, Float[np.ndarray, "_ 3"]], truth: dict[str, Float[np.ndarray, "_ 2"]]
) -> SegmentMetrics:
    """Computes average precision and recall of proposals by the official rule of AV-Deepfake1M, in its float32.

    A proposal matches a segment if their intersection over union (IoU) exceeds a threshold.

    Average precision: each segment takes the first proposal of its file that matches it and is not yet taken. The
    value is the area under the precision envelope of all proposals by falling confidence, starting at the recall of
    the first proposal. By this official rule, a perfect result scores 1 less one segment's share, not 1.
    Average recall: the share of segments matched by one of a file's first proposals, averaged over IoU 0.5:0.05:0.95.

    Args:
      proposed: (confidence, start, end) by file, by falling confidence; files not in `truth` are ignored.
      truth: (start, end) of the fake segments by file, empty for a real one. Its order breaks ties between proposals
        of equal confidence in different files.
    """
    if not (total := sum(map(len, truth.values()))):
        return SegmentMetrics(dict.fromkeys(AP_IOU), dict.fromkeys(AR_PROPOSALS))
    rows = [proposed.get(path, np.empty((0, 3))).astype(np.float32) for path in truth]
    ious = [_iou(own[:, 1:], truth[path].astype(np.float32)) for own, path in zip(rows, truth, strict=True)]
    order = np.argsort(-np.concatenate(rows)[:, 0], kind="stable")
    return SegmentMetrics(
        ap={iou: _average_segment_precision(ious, order, iou, total) for iou in AP_IOU},
        ar={count: _average_segment_recall(ious, count) for count in AR_PROPOSALS},
    )


def _iou(proposed: Float32[np.ndarray, "P 2"], true: Float32[np.ndarray, "S 2"]) -> Float32[np.ndarray, "P S"]:
    """Computes the intersection over union of intervals of time; 0 for two empty ones."""
    start, end = proposed[:, :1], proposed[:, 1:]
    inner = np.maximum(np.minimum(end, true[:, 1]) - np.maximum(start, true[:, 0]), 0)
    outer = np.maximum(end, true[:, 1]) - np.minimum(start, true[:, 0])
    return np.divide(inner, outer, out=np.zeros_like(inner), where=outer > 0)


def _average_segment_precision(
    ious: list[np.ndarray], order: Int64[np.ndarray, " P"], threshold: float, total: int
) -> float:
    hits = np.cumsum(np.concatenate([_taken(iou > threshold) for iou in ious])[order])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(hits / total) @ envelope[1:])


def _taken(hit: Bool[np.ndarray, "P S"]) -> Bool[np.ndarray, " P"]:
    """Marks the proposals that segments take: each segment in turn takes the first free one that matches it."""
    taken = np.zeros(len(hit), bool)
    for free in hit.T:
        taken[np.flatnonzero(free & ~taken)[:1]] = True
    return taken


def _average_segment_recall(ious: list[np.ndarray], count: int) -> float:
    best = np.concatenate([iou[:count].max(axis=0, initial=0) for iou in ious])
    return float((best[:, None] > AR_IOU).mean())


def _located(clip: ClipMeta) -> bool:
    """Returns whether the fake frames of a clip are known."""
    return clip.label == REAL or (clip.label == FAKE and len(clip.segments) > 0)


def _smooth(frame: Float[np.ndarray, " T"], smoothing: int) -> Float[np.ndarray, " T"]:
    assert smoothing % 2 == 1
    window, kept = np.ones(smoothing), slice(smoothing // 2, smoothing // 2 + len(frame))
    return (np.convolve(frame, window) / np.convolve(np.ones(len(frame)), window))[kept]


def _ranked(segments: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
    return segments[np.argsort(-segments[:, 0], kind="stable")]
