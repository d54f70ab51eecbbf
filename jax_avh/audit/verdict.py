"""What an audit of feature sets found, in sentences."""

from collections.abc import Iterator

import numpy as np

from avh_shards.silence import START
from avh_shards.text import one_line
from jax_avh.audit.audit import LABELS, Found
from jax_avh.audit.overlap import overlap_in_words
from jax_avh.evaluation.uncertainty import FEWEST

# AUC from which on labels "can", "can partly" be told; an AUC below 0.5 counts as its mirror. Where its 95 % interval
# reaches down to 0.5, nothing is said to be told: on few clips, chance looks like a shortcut. Nor is it said that they
# cannot be told where the interval reaches MISSED, or a class has fewer clips than FEWEST.
CAN, PARTLY = 0.9, 0.6
MISSED = 0.75


def verdict(result: Found) -> list[str]:
    """Sentences about each source of an audit, and about what each two share."""
    title = {name: found["title"] for name, found in result["sources"].items()}
    about = [f"{title[name]}: {text}" for name, found in result["sources"].items() for text in _in_words(found)]
    pairs = [pair | {end: title[pair[end]] for end in ("source", "other")} for pair in result["overlaps"]]
    about += [text for pair in pairs for text in overlap_in_words(pair)]
    return [*map(one_line, about), *dict.fromkeys(filter(None, (f["caveat"] for f in result["sources"].values())))]


def _in_words(found: Found) -> Iterator[str]:
    """Sentences about one source."""
    counts = ", ".join(f"{found[name]:,} {name}" for name in LABELS)
    yield f"{found['clips']:,} clips: {counts}"
    silence, amplitude = found["leading_silence_ms"], found["amplitude"]
    if not found["waveforms"]:
        yield _without_waveforms(found)
    if silence:
        before = "" if found["waveforms"] or not found["trimmed"] else " before trimming"
        yield _told(f"leading silence{before}", silence, "ms")
    if amplitude:
        yield from _more_telling(
            "leading silence", silence, found["by_threshold"], "at threshold {}, the most telling of {}"
        )
        yield _told(f"the largest amplitude in the first {1000 * START:g} ms", amplitude, "")
        yield from _more_telling(
            "the largest amplitude", amplitude, found["by_moment"], "in the first {} ms, the most telling of {}"
        )
    yield _told("length", found["length_s"], "s")


def _told(what: str, trait: Found, unit: str) -> str:
    """Whether labels can be told from a trait."""
    auc = trait["auc"]
    if auc is None:
        return f"whether labels can be told from {what} is not defined: that takes real clips and fakes"
    if _too_few(trait):
        counts = ", ".join(f"{trait['label'][name]['count']} {name}" for name in ("real", "fake"))
        return f"too few clips to say whether labels can be told from {what} ({counts})"
    low, high = trait["interval"] or (0.5, 0.5)
    known = f"{_auc(auc)}, 95 % {low:.2f}-{high:.2f}"
    if low <= 0.5 <= high and (_power(auc) != "cannot" or max(1 - low, high) >= MISSED):
        return f"too few clips to say whether labels can be told from {what} ({known})"
    if _power(auc) == "cannot":
        return f"labels cannot be told from {what} ({known})"
    fake, real = (f"{_digits(trait['label'][name]['quartiles'][1])} {unit}".rstrip() for name in ("fake", "real"))
    return f"labels {_power(auc)} be told from {what} alone: {known} (fakes: median {fake}, real clips: {real})"


def _more_telling(what: str, trait: Found, sweep: Found, where: str) -> Iterator[str]:
    """A sentence if labels can be told better somewhere else in a sweep, by more than the interval is wide."""
    if trait["auc"] is None or trait["interval"] is None or _too_few(trait):
        return
    places, aucs = (np.array(column) for column in sweep.values())
    best = int(np.abs(aucs - 0.5).argmax())
    width = trait["interval"][1] - trait["interval"][0]
    if _power(aucs[best]) != _power(trait["auc"]) and abs(aucs[best] - 0.5) > width:
        place = where.format(_digits(places[best]), len(places))
        yield f"labels {_power(aucs[best])} be told from {what} {place}: {_auc(aucs[best])}"


def _too_few(trait: Found) -> bool:
    return min(trait["label"][name]["count"] for name in ("real", "fake")) < FEWEST


def _without_waveforms(found: Found) -> str:
    if not (silence := found["leading_silence_ms"]):
        return "leading silence is not known: its shards hold no waveform; extract them with --store=waveform"
    known = f"{silence['known']:,} of {found['clips']:,} clips"
    return f"its shards hold no waveform: leading silence is what extraction noted, of {known}"


def _power(auc: float) -> str:
    strength = round(max(auc, 1 - auc), 2)  # as printed
    return "can" if strength >= CAN else "can partly" if strength >= PARTLY else "cannot"


def _auc(auc: float) -> str:
    return f"AUC {auc:.2f}" + (f", mirrored {1 - auc:.2f}" if round(auc, 2) < 0.5 else "")


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")
