"""Where in a clip the fake is: labels and metrics of frames, and proposed segments."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata

from avh_shards import FAKE, FRAME_RATE, REAL, UNKNOWN, ClipMeta
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.segment_metrics import localisation_metrics
from jax_avh.inference.score_file import ScoreTable

SMOOTHING = 5  # frames; the median fake segment of AV-Deepfake1M has 8, a longer mean would drown it
# Shares of all frames that reach a threshold, the best guess first. A segment of 8 frames in three of four clips of
# some 220 makes 3 % fake; smoothing widens it by 4 frames, to 5 %. The others, twice and half as much, find what that
# misses.
SHARES = (0.05, 0.1, 0.025, 0.2, 0.0125, 0.4)
MOST_PROPOSALS = 100  # a clip; twice the most that recall looks at


def localisation(table: ScoreTable) -> dict[str, object] | None:
    """How well a method's frame scores tell where clips are fake.

    Args:
      table: scores of clips; those whose fake segments are not known are left out.

    Returns:
      `frame_auc`, `frame_ap`, `clip_auc` and `left_out` as `frame_metrics` says, `ap` and `ar` as
      `localisation_metrics` says of `table_proposals`; None without frame scores or without any fake segment.
    """
    truth = {clip.path: np.reshape(clip.segments, (-1, 2)) for clip in table.clips if _located(clip)}
    if table.frame is None or not any(map(len, truth.values())):
        return None
    frames = frame_metrics(table.clips, table.offset, table.frame)
    names = {"auc": "frame_auc", "ap": "frame_ap"}
    segments = localisation_metrics(table_proposals(table), truth)
    return {names.get(name, name): value for name, value in frames.items()} | segments


def frame_labels(clip: ClipMeta, frames: int) -> Bool[np.ndarray, " T"]:
    """Which frames of a clip are fake: floor(25 start) to floor(25 end) of each segment, that one included.

    This is how AVH-Align's authors label the frames of AV-Deepfake1M. Ends are taken to 1/1000 of a frame: in float32,
    they are off by 25 * 2e-6 frames at 60 s.

    Args:
      clip: its segments in seconds of the stored clip.
      frames: length T of the stored clip; what lies beyond is cut off.
    """
    label = np.zeros(frames, bool)
    # Rounded first: in binary, 25 * 1.16 is less than 29, the more so when read from float32.
    borders = np.round(np.clip(FRAME_RATE * np.reshape(clip.segments, (-1, 2)), 0, frames), 3)
    for first, last in borders.astype(np.int64):
        label[first : last + 1] = True
    return label


def frame_metrics(
    clips: Sequence[ClipMeta], offset: Int64[np.ndarray, "borders"], frame: Float[np.ndarray, " F"]
) -> dict[str, float | int | None]:
    """How well scores tell fake frames from real ones.

    Args:
      clips: N clips; those of unknown label, and fake ones without segments, are left out.
      offset: clip n is frame[offset[n]:offset[n+1]].
      frame: frame scores of all clips, end to end; higher = more fake.

    Returns:
      `auc` and `ap` over all frames together; `clip_auc`, the mean over the clips that have frames of both kinds of
      each one's own ROC AUC; each None where it is undefined; `left_out`, the number of clips left out.
    """
    label, aucs = np.full(len(frame), UNKNOWN), []
    for n in np.flatnonzero([_located(clip) for clip in clips]):
        part = slice(offset[n], offset[n + 1])
        fake = frame_labels(clips[n], int(offset[n + 1] - offset[n]))
        label[part] = np.where(fake, FAKE, REAL)
        if fake.any() and not fake.all():
            aucs.append(_roc_auc(fake, frame[part]))
    pooled = detection_metrics(label, frame)
    return {
        "auc": pooled["auc"],
        "ap": pooled["ap"],
        "clip_auc": float(np.mean(aucs)) if aucs else None,
        "left_out": sum(not _located(clip) for clip in clips),
    }


def confidence(score: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Scores of any size as numbers from 0 to 1 in the same order: 1 - c for s >= 0, else c, of c = 1 / (2 + 2 |s|).

    A sigmoid in float32, the official program's precision, takes all scores above 18 for one; this map still tells
    1000 from 1001.
    """
    score = score.astype(np.float64)
    tail = 1 / (2 + 2 * np.abs(score))
    return np.where(score < 0, tail, 1 - tail)


def segments_of(
    frame: Float[np.ndarray, " T"], threshold: float, smoothing: int = SMOOTHING
) -> Float[np.ndarray, "P 3"]:
    """The runs of frames whose smoothed scores reach a threshold.

    Args:
      frame: frame scores of one clip.
      threshold: the least smoothed score of a fake frame.
      smoothing: frames of the centred moving mean, odd; at the clip's borders it has fewer.

    Returns:
      (confidence, start, end) of each run, by falling confidence: its highest smoothed score as `confidence` maps it;
      seconds of the stored clip, frame k lasting from k/25 to (k+1)/25.
    """
    smoothed = _smooth(frame, smoothing)
    above = np.concatenate([[False], smoothed >= threshold, [False]])
    borders = np.flatnonzero(above[1:] != above[:-1])  # first frame of a run, first frame after it, and so on
    peak = np.maximum.reduceat(np.append(smoothed, -np.inf), borders)[::2]
    return _ranked(np.column_stack([confidence(peak), borders.reshape(-1, 2) / FRAME_RATE]))


def proposals(
    frame: Float[np.ndarray, " T"], thresholds: Float[np.ndarray, " Q"], smoothing: int = SMOOTHING
) -> Float[np.ndarray, "P 3"]:
    """The segments of one clip by several thresholds, each segment once.

    Segments of two thresholds lie one in the other, often under one peak. Were they equally confident, most of the
    first ones would be false: so all of an earlier threshold are more confident than those that a later one adds.

    Args:
      frame: frame scores of one clip.
      thresholds: the best guess first.
      smoothing: as for `segments_of`.

    Returns:
      As `segments_of`, the confidence of threshold q brought into (1 - (q+1) / (Q+1), 1 - q / (Q+1)); at most
      MOST_PROPOSALS. The clip's highest frame always comes last, as threshold Q: the official program breaks off at a
      clip without proposals.
    """
    smoothed = _smooth(frame, smoothing)
    layers = [segments_of(smoothed, threshold, smoothing=1) for threshold in (*thresholds, smoothed.max())]
    found = np.concatenate(layers)
    rank = np.repeat(np.arange(len(layers))[::-1], [len(layer) for layer in layers])
    found[:, 0] = (found[:, 0] + rank) / len(layers)
    first = np.unique(found[:, 1:], axis=0, return_index=True)[1]  # by its most confident threshold
    return _ranked(found[first])[:MOST_PROPOSALS]


def table_proposals(table: ScoreTable) -> dict[str, Float[np.ndarray, "_ 3"]]:
    """Proposals of every clip by its path, the thresholds set by the SHARES of all smoothed frames of the table."""
    frames = np.split(table.frame, table.offset[1:-1])
    thresholds = np.quantile(np.concatenate([_smooth(frame, SMOOTHING) for frame in frames]), 1 - np.array(SHARES))
    return {clip.path: proposals(frame, thresholds) for clip, frame in zip(table.clips, frames, strict=True)}


def _located(clip: ClipMeta) -> bool:
    """Whether it is known which frames of a clip are fake."""
    return clip.label == REAL or (clip.label == FAKE and len(clip.segments) > 0)


def _roc_auc(fake: Bool[np.ndarray, " T"], score: Float[np.ndarray, " T"]) -> float:
    """Area under the ROC curve by ranks: scikit-learn's takes a millisecond a clip."""
    count = int(fake.sum())
    above = rankdata(score)[fake].sum() - count * (count + 1) / 2
    return float(above / (count * (len(fake) - count)))


def _smooth(frame: Float[np.ndarray, " T"], smoothing: int) -> Float[np.ndarray, " T"]:
    assert smoothing % 2 == 1
    window, kept = np.ones(smoothing), slice(smoothing // 2, smoothing // 2 + len(frame))
    return (np.convolve(frame, window) / np.convolve(np.ones(len(frame)), window))[kept]


def _ranked(found: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
    return found[np.argsort(-found[:, 0], kind="stable")]
