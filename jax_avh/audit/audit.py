"""Audit of feature sets for shortcuts: what labels can be told from without looking, and what splits share.

Source: AVH-Align, section 3 (leading silence: figure 2; its AUC by threshold and by first moment: figure 3).
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Bool, Float, Int

from avh_shards.clip import FAKE, FRAME_RATE, REAL, UNKNOWN
from avh_shards.format import caveat, marked
from avh_shards.silence import SILENCE, START, leading_amplitudes, leading_silences
from jax_avh.audit.overlap import overlap
from jax_avh.data import Source
from jax_avh.evaluation.metrics import roc_auc
from jax_avh.evaluation.uncertainty import bootstrap_intervals

LABELS = {"real": REAL, "fake": FAKE, "unknown": UNKNOWN}
THRESHOLDS = np.union1d(np.geomspace(1e-4, 1e-1, 25), SILENCE)  # of |x|
MOMENTS = np.array([0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0])  # seconds from the start
LONG = 10.0  # ms: silent for longer is fake, as the paper's figure 2 says

# Starts of histograms' bins; the last bin holds all the rest.
SILENCE_BINS = np.arange(0.0, 101.0, 5.0)  # ms
AMPLITUDE_BINS = np.concatenate([[0.0], np.geomspace(1e-4, 1, 25)[:-1]])
LENGTH_BINS = 30  # up to LENGTH_SHARE of the clips
LENGTH_SHARE = 0.99

Found = dict[str, Any]  # fit for JSON; what is undefined is None


def audit(sources: Mapping[str, Source]) -> Found:
    """Audits feature sets, and each against those before it.

    Args:
      sources: by the names that the words use, e.g. train, test.

    Returns:
      What `audit.json` holds. `sources`: by name, `title` (the name, marked if the features are random or simulated),
      `caveat` (what must accompany the numbers), numbers of clips; the traits `length_s`, `leading_silence_ms` and
      `amplitude` (largest |x| of the first 30 ms), each with its AUC as a score of fakeness (None unless there are
      real clips and fakes) and its distribution by label and category: quartiles, histogram over `bins` (their starts),
      share above `limit`; `by_threshold` and `by_moment`, AUC over each. Where shards hold no waveform, what would
      take one is None, and leading silence is what extraction noted, None if nothing. `overlaps`: see `overlap`.
    """
    return {
        "sources": {name: _audit_source(name, source) for name, source in sources.items()},
        "overlaps": [
            {"source": name, "other": other} | overlap(sources[name].clips, sources[other].clips)
            for other, name in itertools.combinations(sources, 2)
        ],
    }


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Labels and categories of a source's clips."""

    label: Int[np.ndarray, " N"]
    category: tuple[str, ...]

    @functools.cached_property
    def masks(self) -> dict[str, dict[str, Bool[np.ndarray, " N"]]]:
        """Which clips are in a group, by kind of group and name."""
        category = np.array(self.category)
        return {
            "label": {name: self.label == label for name, label in LABELS.items()},
            "category": {name: category == name for name in sorted({*self.category} - {""})},
        }

    def auc(self, score: Float[np.ndarray, " N"]) -> float | None:
        """Of scores; higher = more fake, NaN = unknown."""
        known = np.isfinite(score)
        return roc_auc(self.label[known], score[known])

    def interval(self, score: Float[np.ndarray, " N"]) -> list[float] | None:
        """Of that AUC, 95 %."""
        known = np.isfinite(score)
        bounds = bootstrap_intervals(self.label[known], score[known]).auc
        return bounds and list(bounds)

    def trait(
        self, value: Float[np.ndarray, " N"], bins: Float[np.ndarray, " B"], limit: float, sign: int = 1
    ) -> Found:
        """What a number of each clip tells of labels (by sign -1, lower = more fake), and how it lies in each group.

        NaN = unknown; `limit`: the share above it is counted.
        """
        known = np.isfinite(value)
        found = {"auc": self.auc(sign * value), "interval": self.interval(sign * value), "known": int(known.sum())}
        found |= {"limit": limit, "bins": bins.tolist()}
        for kind, masks in self.masks.items():
            inside = {name: value[mask & known] for name, mask in masks.items()}
            found[kind] = {name: _distribution(part, bins, limit) for name, part in inside.items() if len(part)}
        return found


def _audit_source(name: str, source: Source) -> Found:
    groups = _Groups(source.labels, tuple(clip.category for clip in source.clips))
    heard = _from_waveforms(source, groups) if source.has("waveform") else _from_notes(source, groups)
    return {
        "path": str(source.path),
        "title": marked(name, source.attributes),
        "caveat": caveat(source.attributes),
        "trimmed": source.attributes.get("trimmed"),
        "waveforms": source.has("waveform"),
        "clips": len(source.clips),
        **{name: int(mask.sum()) for name, mask in groups.masks["label"].items()},
        "length_s": _length(source, groups),
        **heard,
    }


def _from_waveforms(source: Source, groups: _Groups) -> Found:
    """What the sound tells, in one look at each clip."""
    rows = []
    for clip in tqdm.trange(len(source.members), desc="listen", leave=False):
        waveform = source.waveform(clip)
        rows.append((leading_silences(waveform, THRESHOLDS), leading_amplitudes(waveform, MOMENTS)))
    silence_KxN, amplitude_MxN = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return {
        "leading_silence_ms": _silence(silence_KxN[THRESHOLDS == SILENCE][0], groups),
        "amplitude": groups.trait(amplitude_MxN[MOMENTS == START][0], AMPLITUDE_BINS, SILENCE, sign=-1)
        | {"first_ms": 1000 * START},
        "by_threshold": {"threshold": THRESHOLDS.tolist(), "auc": [groups.auc(s) for s in silence_KxN]},
        "by_moment": {"first_ms": (1000 * MOMENTS).tolist(), "auc": [groups.auc(-a) for a in amplitude_MxN]},
    }


def _from_notes(source: Source, groups: _Groups) -> Found:
    """What extraction noted of the sound, before trimming."""
    seconds = np.array([clip.leading_silence for clip in source.clips], np.float64)
    silence = _silence(seconds, groups) if np.isfinite(seconds).any() else None
    return {"leading_silence_ms": silence, "amplitude": None, "by_threshold": None, "by_moment": None}


def _silence(seconds: Float[np.ndarray, " N"], groups: _Groups) -> Found:
    ms = np.round(1000 * seconds, 4)  # a sample is 0.0625 ms: borders of bins are met exactly
    return groups.trait(ms, SILENCE_BINS, LONG) | {"threshold": SILENCE}


def _length(source: Source, groups: _Groups) -> Found:
    most = np.quantile(source.lengths, LENGTH_SHARE)
    bins = np.arange(LENGTH_BINS + 1) * np.ceil(most / LENGTH_BINS)  # whole frames
    return groups.trait(source.lengths / FRAME_RATE, bins / FRAME_RATE, float(most) / FRAME_RATE)


def _distribution(values: Float[np.ndarray, " K"], bins: Float[np.ndarray, " B"], limit: float) -> Found:
    return {
        "count": len(values),
        "quartiles": np.quantile(values, [0.25, 0.5, 0.75]).tolist(),
        "share_above_limit": float((values > limit).mean()),
        "histogram": np.histogram(values, [*bins, np.inf])[0].tolist(),
    }
