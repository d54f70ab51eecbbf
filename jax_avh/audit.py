"""Audit of feature sets for shortcuts: traits that predict labels without detection, and overlaps between splits.

Source: AVH-Align, section 3 (leading silence: figure 2; its AUC by threshold and by first moment: figure 3).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tqdm
from jaxtyping import Float

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, FRAME_RATE, REAL, UNKNOWN, speaker_of
from avh_shards.format import caveat, marked
from avh_shards.silence import SILENCE, START, leading_amplitudes, leading_silences
from avh_shards.text import one_line
from jax_avh.data.source import Source
from jax_avh.evaluation.metrics import FEWEST, Interval, bootstrap_intervals, roc_auc

LABELS = {"real": REAL, "fake": FAKE, "unknown": UNKNOWN}
THRESHOLDS = np.union1d(np.geomspace(1e-4, 1e-1, 25), SILENCE)  # of |x|
MOMENTS = np.array([0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0])  # seconds from the start
LONG = 10.0  # ms; longer silence means fake, by the paper's figure 2

# Starts of histograms' bins; the last bin holds all larger values.
SILENCE_BINS = np.arange(0.0, 101.0, 5.0)  # ms
AMPLITUDE_BINS = np.concatenate([[0.0], np.geomspace(1e-4, 1, 25)[:-1]])
LENGTH_BINS = 30  # they cover LENGTH_SHARE of the clips
LENGTH_SHARE = 0.99

# Least AUC at which labels "can", or "can partly", be predicted; an AUC below 0.5 counts as its mirror. If the 95 %
# interval includes 0.5, the audit does not claim that they can: on few clips, chance looks like a shortcut. Nor does it
# claim that they cannot if the interval reaches MISSED, or if a class has fewer clips than FEWEST.
CAN = 0.9
PARTLY = 0.6
MISSED = 0.75


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distribution of a trait over K clips."""

    count: int  # K
    quartiles: list[float]  # 25 %, 50 %, 75 %
    share_above_limit: float  # share of the clips above the trait's limit, 0..1
    histogram: list[int]  # clips in each of the trait's bins


@dataclasses.dataclass(frozen=True)
class Trait:
    """A number per clip, taken as a score of fakeness."""

    auc: float | None  # None without both real and fake clips
    interval: Interval | None  # 95 % interval of the AUC
    known: int  # clips whose number is known
    limit: float  # Distribution.share_above_limit counts the clips above it
    bins: list[float]  # starts of the histograms' bins; the last one is open
    label: dict[str, Distribution]  # by name of LABELS
    category: dict[str, Distribution]


@dataclasses.dataclass(frozen=True)
class LeadingSilence(Trait):
    """Leading silence in ms."""

    threshold: float  # largest |x| of silence


@dataclasses.dataclass(frozen=True)
class FirstAmplitude(Trait):
    """Largest |x| in the first moment of a clip; lower = more fake."""

    first_ms: float  # length of the moment


@dataclasses.dataclass(frozen=True)
class ThresholdSweep:
    """AUC of leading silence as a score, at K thresholds of silence."""

    threshold: list[float]  # K, of |x|
    auc: list[float | None]  # K


@dataclasses.dataclass(frozen=True)
class MomentSweep:
    """AUC of minus the largest |x| as a score, over K first moments."""

    first_ms: list[float]  # K
    auc: list[float | None]  # K


@dataclasses.dataclass(frozen=True)
class SourceAudit:
    """Traits of a feature set and how well they predict its labels; None = needs waveforms, which the shards lack."""

    path: str
    title: str  # the name, marked if the features are random or simulated
    caveat: str  # sentence that accompanies the numbers
    trimmed: object  # bool, as the shards record it; None = not recorded
    waveforms: bool  # whether the shards hold them
    clips: int
    real: int
    fake: int
    unknown: int
    length_s: Trait
    leading_silence_ms: LeadingSilence | None  # without waveforms, as extraction recorded it; None = not recorded
    amplitude: FirstAmplitude | None
    by_threshold: ThresholdSweep | None
    by_moment: MomentSweep | None


@dataclasses.dataclass(frozen=True)
class Shared:
    """Names that one set shares with another."""

    shared: int  # names in both sets
    of: int  # names of the first set
    among: int  # names of the second set
    share: float | None  # shared / of; None if the first set is empty


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Identities and clips that a feature set shares with an earlier one."""

    source: str  # name of the set
    other: str  # name of the earlier set
    identities: Shared
    clips: Shared  # by path


@dataclasses.dataclass(frozen=True)
class Audit:
    """Contents of `audit.json`."""

    sources: dict[str, SourceAudit]  # by name
    overlaps: list[Overlap]


def audit(sources: Mapping[str, Source]) -> Audit:
    """Audits feature sets, and compares each with those before it.

    Args:
      sources: the sets, by the names that sentences about them use, e.g. "train".
    """
    return Audit(
        sources={name: _audit_source(name, source) for name, source in sources.items()},
        overlaps=[
            overlap(name, sources[name].clips, other, sources[other].clips)
            for other, name in itertools.combinations(sources, 2)
        ],
    )


def _audit_source(name: str, source: Source) -> SourceAudit:
    most = np.quantile(source.lengths, LENGTH_SHARE)
    bins = np.arange(LENGTH_BINS + 1) * np.ceil(most / LENGTH_BINS)  # whole frames
    length = _trait(source, source.lengths / FRAME_RATE, bins / FRAME_RATE, float(most) / FRAME_RATE)
    waveforms = source.has("waveform")
    silence = amplitude = by_threshold = by_moment = None
    if waveforms:
        silence, amplitude, by_threshold, by_moment = _listen(source)
    else:
        seconds = np.array([clip.leading_silence for clip in source.clips], np.float64)  # recorded before trimming
        if np.isfinite(seconds).any():
            silence = _silence(source, seconds)
    counts = {label: int((source.labels == value).sum()) for label, value in LABELS.items()}
    return SourceAudit(
        path=str(source.path),
        title=marked(name, source.attributes),
        caveat=caveat(source.attributes),
        trimmed=source.attributes.get("trimmed"),
        waveforms=waveforms,
        clips=len(source.clips),
        **counts,
        length_s=length,
        leading_silence_ms=silence,
        amplitude=amplitude,
        by_threshold=by_threshold,
        by_moment=by_moment,
    )


def _listen(source: Source) -> tuple[LeadingSilence, FirstAmplitude, ThresholdSweep, MomentSweep]:
    """Measures silence and amplitude, reading each clip's waveform only once."""
    rows = []
    for clip in tqdm.trange(len(source.members), desc="listen", leave=False):
        waveform = source.waveform(clip)
        rows.append((leading_silences(waveform, THRESHOLDS), leading_amplitudes(waveform, MOMENTS)))
    silence_KxN, amplitude_MxN = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    first = amplitude_MxN[MOMENTS == START][0]
    amplitude = _trait(source, first, AMPLITUDE_BINS, SILENCE, sign=-1)
    return (
        _silence(source, silence_KxN[THRESHOLDS == SILENCE][0]),
        FirstAmplitude(**vars(amplitude), first_ms=1000 * START),
        ThresholdSweep(THRESHOLDS.tolist(), [roc_auc(source.labels, score) for score in silence_KxN]),
        MomentSweep((1000 * MOMENTS).tolist(), [roc_auc(source.labels, -score) for score in amplitude_MxN]),
    )


def _silence(source: Source, seconds: Float[np.ndarray, " N"]) -> LeadingSilence:
    ms = np.round(1000 * seconds, 4)  # rounded to hit borders of bins exactly; a sample is 0.0625 ms
    return LeadingSilence(**vars(_trait(source, ms, SILENCE_BINS, LONG)), threshold=SILENCE)


def _trait(
    source: Source, value: Float[np.ndarray, " N"], bins: Float[np.ndarray, " B"], limit: float, sign: int = 1
) -> Trait:
    """Measures how well a number per clip predicts labels.

    Args:
      source: the clips.
      value: the number of each clip; NaN = unknown.
      bins: starts of the histograms' bins.
      limit: the share of clips above it is counted.
      sign: 1 = higher is more fake, -1 = lower is more fake.
    """
    known = np.isfinite(value)
    label, score = source.labels[known], sign * value[known]
    category = np.array([clip.category for clip in source.clips])
    labels = {name: known & (source.labels == number) for name, number in LABELS.items()}
    categories = {name: known & (category == name) for name in sorted({*category.tolist()} - {""})}
    return Trait(
        auc=roc_auc(label, score),
        interval=bootstrap_intervals(label, score).auc,
        known=int(known.sum()),
        limit=limit,
        bins=bins.tolist(),
        label=_distributions(value, bins, limit, labels),
        category=_distributions(value, bins, limit, categories),
    )


def _distributions(
    value: Float[np.ndarray, " N"], bins: Float[np.ndarray, " B"], limit: float, groups: Mapping[str, np.ndarray]
) -> dict[str, Distribution]:
    """Returns the distribution of a trait over each group of clips, given by masks; empty groups are left out."""
    return {
        name: Distribution(
            count=int(chosen.sum()),
            quartiles=np.quantile(value[chosen], [0.25, 0.5, 0.75]).tolist(),
            share_above_limit=float((value[chosen] > limit).mean()),
            histogram=np.histogram(value[chosen], [*bins, np.inf])[0].tolist(),
        )
        for name, chosen in groups.items()
        if chosen.any()
    }


def overlap(source: str, clips: Sequence[ClipMeta], other: str, other_clips: Sequence[ClipMeta]) -> Overlap:
    """Counts the identities and clips that one set shares with another.

    Args:
      source: name of the set, e.g. "test".
      clips: its clips.
      other: name of the other set, e.g. "train".
      other_clips: its clips.
    """
    return Overlap(
        source,
        other,
        identities=_shared(map(identity, clips), map(identity, other_clips)),
        clips=_shared((clip.path for clip in clips), (clip.path for clip in other_clips)),
    )


def identity(clip: ClipMeta) -> str:
    """Returns a clip's speaker: the data set's name, else the leading idNNNNN folder of the path, else ""."""
    return clip.identity or speaker_of(clip.path)


def _shared(names: Iterable[str], others: Iterable[str]) -> Shared:
    own, among = set(names) - {""}, set(others) - {""}
    shared = len(own & among)
    return Shared(shared, len(own), len(among), shared / len(own) if own else None)


def verdict(result: Audit) -> list[str]:
    """Returns the findings of an audit as sentences: of each source, of overlaps between sources, and caveats."""
    title = {name: source.title for name, source in result.sources.items()}
    about = [f"{source.title}: {text}" for source in result.sources.values() for text in _in_words(source)]
    for pair in result.overlaps:
        for what, common in (("identities", pair.identities), ("clips", pair.clips)):
            about.append(_overlap_in_words(what, common, title[pair.source], title[pair.other]))
    caveats = dict.fromkeys(source.caveat for source in result.sources.values() if source.caveat)
    return [*map(one_line, about), *caveats]


def _overlap_in_words(what: str, common: Shared, name: str, other: str) -> str:
    if not common.of or not common.among:
        return f"{name}, {other}: shared {what} unknown, because {other if common.of else name} names none"
    shared = f"{common.shared:,}" if common.shared else "none"
    return f"{shared} of the {common.of:,} {name} {what} are {'also ' * bool(common.shared)}in {other}"


def _in_words(source: SourceAudit) -> Iterator[str]:
    """Yields sentences about one source."""
    yield f"{source.clips:,} clips: {source.real:,} real, {source.fake:,} fake, {source.unknown:,} unknown"
    silence, amplitude = source.leading_silence_ms, source.amplitude
    if not source.waveforms and not silence:
        yield "leading silence is unknown: its shards hold no waveform; extract them with --store=waveform"
    elif not source.waveforms and silence:
        known = f"{silence.known:,} of {source.clips:,} clips"
        yield f"its shards hold no waveform: leading silence is taken from extraction, which recorded it for {known}"
    if silence:
        yield _told(f"leading silence{before_trimming(source)}", silence, "ms")
    if silence and source.by_threshold:
        where = "leading silence at threshold {}, the best of {}"
        yield from _more_telling(where, silence, source.by_threshold.threshold, source.by_threshold.auc)
    if amplitude and source.by_moment:
        yield _told(f"the largest amplitude in the first {1000 * START:g} ms", amplitude, "")
        where = "the largest amplitude in the first {} ms, the best of {}"
        yield from _more_telling(where, amplitude, source.by_moment.first_ms, source.by_moment.auc)
    yield _told("length", source.length_s, "s")


def before_trimming(source: SourceAudit) -> str:
    """Returns " before trimming" if a source's leading silence was measured before trimming, else ""."""
    return "" if source.waveforms or not source.trimmed else " before trimming"


def _told(what: str, trait: Trait, unit: str) -> str:
    """Returns a sentence that says whether labels can be predicted from a trait."""
    auc = trait.auc
    if auc is None:
        return f"whether labels can be predicted from {what} is undefined without both real and fake clips"
    if _too_few(trait):
        counts = ", ".join(f"{trait.label[name].count} {name}" for name in ("real", "fake"))
        return f"too few clips to say whether labels can be predicted from {what} ({counts})"
    low, high = trait.interval or (0.5, 0.5)
    known = f"{_auc(auc)}, 95 % {low:.2f}-{high:.2f}"
    if low <= 0.5 <= high and (_power(auc) != "cannot" or max(1 - low, high) >= MISSED):
        return f"too few clips to say whether labels can be predicted from {what} ({known})"
    if _power(auc) == "cannot":
        return f"labels cannot be predicted from {what} ({known})"
    fake, real = (f"{_digits(trait.label[name].quartiles[1])} {unit}".rstrip() for name in ("fake", "real"))
    return f"labels {_power(auc)} be predicted from {what}: {known} (fakes: median {fake}, real clips: {real})"


def _more_telling(what: str, trait: Trait, places: Sequence[float], aucs: Sequence[float | None]) -> Iterator[str]:
    """Yields a sentence if another place in a sweep predicts labels better, by more than the interval is wide."""
    if trait.auc is None or trait.interval is None or _too_few(trait):
        return
    defined = [(auc, place) for auc, place in zip(aucs, places, strict=True) if auc is not None]
    auc, place = max(defined, key=lambda row: abs(row[0] - 0.5))
    width = trait.interval[1] - trait.interval[0]
    if _power(auc) != _power(trait.auc) and abs(auc - 0.5) > width:
        yield f"labels {_power(auc)} be predicted from {what.format(_digits(place), len(places))}: {_auc(auc)}"


def _too_few(trait: Trait) -> bool:
    return min(trait.label[name].count for name in ("real", "fake")) < FEWEST


def _power(auc: float) -> str:
    strength = round(max(auc, 1 - auc), 2)  # as printed
    return "can" if strength >= CAN else "can partly" if strength >= PARTLY else "cannot"


def _auc(auc: float) -> str:
    return f"AUC {auc:.2f}" + (f", mirrored {1 - auc:.2f}" if round(auc, 2) < 0.5 else "")


def _digits(value: float) -> str:
    """Returns a number with three significant digits, without an exponent."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")
