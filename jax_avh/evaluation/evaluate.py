"""Score files side by side -> every number of `metrics.json`, and a sentence for all that could not be compared."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from avh_shards import FAKE, REAL, UNKNOWN, ClipMeta, UserError, caveat, ends_beyond
from jax_avh.evaluation.bootstrap import FEWEST, bootstrap_intervals
from jax_avh.evaluation.delong import delong_test
from jax_avh.evaluation.localisation import localisation
from jax_avh.evaluation.metrics import METRICS, detection_metrics, worst_case
from jax_avh.evaluation.results import Entry, Evaluation, as_named, named_entries
from jax_avh.inference.score_file import open_scores

RESAMPLES = 1000
CONFIDENCE = 0.95


def evaluate(
    scores: Sequence[str | os.PathLike],
    listed: Sequence[ClipMeta] = (),
    failed: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    names: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluates score files.

    Args:
      scores: score files.
      listed: clips that ought to be scored, for coverage.
      failed: paths of those that could not be extracted.
      thresholds: method -> clip score from which on a clip is called fake.
      resamples: of the bootstrap.
      names: of the score files' methods in the comparison; None = by their methods and weights.

    Raises:
      UserError: a file is missing or damaged, or two contradict each other.
    """
    tables = [(Path(path), open_scores(path)) for path in scores]
    entries = named_entries(tables) if names is None else as_named(tables, names)
    _check_labels(entries, listed)
    if unknown := (thresholds or {}).keys() - {entry.method for entry in entries}:
        raise UserError(f"--threshold names {min(unknown)!r}, but the methods are {_names(entries)}")
    rest = {"resamples": resamples, "confidence": CONFIDENCE, "warnings": list(_warnings(entries, listed))}
    results = [result for entry in entries for result in _results(entry, thresholds or {}, resamples)]
    found = [(entry, localisation(entry.table)) for entry in entries]
    metrics = rest | {
        "results": results,
        "comparisons": [_comparison(one, other) for one, other in _pairs(entries)],
        "coverage": [_coverage(entry, listed, set(failed)) for entry in entries if _shared(entry, listed)],
        "localisation": [_key(entry) | values for entry, values in found if values],
    }
    return Evaluation(metrics, entries)


def _results(entry: Entry, thresholds: Mapping[str, float], resamples: int) -> Iterator[dict]:
    """Numbers of the method's own clip score, by group; and of the other poolings of its frame scores."""
    own = str(entry.table.attributes.get("pooling", "clip"))
    given, method_own = thresholds.get(entry.method), entry.table.attributes.get("threshold")
    threshold = given if given is not None else None if method_own is None else float(method_own)
    rule = "equal error on these clips" if threshold is None else "the method's own" if given is None else "given"
    for group, value, chosen in _groups(entry):
        kind = {"pooling": own, "own": True, "group": group, "value": value, "threshold_rule": rule}
        yield _key(entry) | kind | _numbers(entry, entry.score, chosen, threshold, resamples)
    everything = np.ones(len(entry.clips), bool)
    for pooling, score in entry.pooled.items():
        kind = {"pooling": pooling, "own": False, "group": "all", "value": ""}
        if pooling != own:
            rule = {"threshold_rule": "equal error on these clips"}
            yield _key(entry) | kind | rule | _numbers(entry, score, everything, None, resamples)


def _numbers(
    entry: Entry,
    score: Float[np.ndarray, " N"],
    chosen: Bool[np.ndarray, " N"],
    threshold: float | None,
    resamples: int,
) -> dict:
    """Metrics of some of the clips, with intervals unless the clips are too few."""
    label, score = entry.label[chosen], score[chosen]
    values = detection_metrics(label, score, threshold)
    few = _too_few(values["real"], values["fake"])
    intervals = dict.fromkeys(METRICS) if few else bootstrap_intervals(label, score, values["threshold"], resamples)
    return {
        "real": values["real"],
        "fake": values["fake"],
        "threshold": values["threshold"],
        "metrics": {name: values[name] for name in METRICS},
        "intervals": {name: interval and list(interval) for name, interval in intervals.items()},
    }


def _too_few(*counts: int) -> bool:
    """Whether a class has some clips, but too few for intervals and p-values."""
    return any(0 < count < FEWEST for count in counts)


def _groups(entry: Entry) -> Iterator[tuple[str, str, Bool[np.ndarray, " N"]]]:
    """(group, its value, clips): all; the fakes of each category against all real clips; each split."""
    label = entry.label
    category, split = (np.array([getattr(clip, name) for clip in entry.clips]) for name in ("category", "split"))
    yield "all", "", np.ones(len(label), bool)
    categories, splits = np.unique(category[label == FAKE]), np.unique(split)
    for value in categories.tolist() if len(categories) > 1 else ():
        yield "category", value, (label == REAL) | ((label == FAKE) & (category == value))
    for value in splits.tolist() if len(splits) > 1 else ():
        yield "split", value, split == value


def _pairs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Methods that scored the same data set in the same state."""
    for one, other in itertools.combinations(entries, 2):
        if (one.dataset, one.trimmed) == (other.dataset, other.trimmed):
            yield one, other


def _comparison(one: Entry, other: Entry) -> dict:
    """The difference of two methods' AUCs on the clips that both scored, and whether it may be chance."""
    common = [path for path in one.rows if path in other.rows]
    mine, theirs = ([entry.rows[path] for path in common] for entry in (one, other))
    label = one.label[mine] if common else np.zeros(0, np.int64)
    test = delong_test(label, one.score[mine], other.score[theirs]) if common else None
    told = test and not _too_few(int((label == REAL).sum()), int((label == FAKE).sum()))
    key = {"dataset": one.dataset, "trimmed": one.trimmed, "one": one.method, "other": other.method}
    return key | {
        "clips": len(common),
        "difference": test and float(test.difference),
        "interval": [float(test.low), float(test.high)] if told else None,
        "p_value": float(test.p_value) if told else None,
    }


def _coverage(entry: Entry, listed: Sequence[ClipMeta], failed: set[str]) -> dict:
    """How many clips of the list were scored, and the AUC if every other one had got the worst score."""
    scored = [entry.rows[clip.path] for clip in listed if clip.path in entry.rows]
    absent = [clip for clip in listed if clip.path not in entry.rows]
    lost = sum(clip.path in failed for clip in absent)
    label, score = entry.label[scored], entry.score[scored]
    found = detection_metrics(label, score)
    worst = worst_case(label, score, np.array([clip.label for clip in absent], dtype=np.int64))
    bound = all(clip.label != UNKNOWN for clip in absent)  # what a clip of unknown label may do, nobody knows
    return _key(entry) | {
        "listed": len(listed),
        "scored": len(scored),
        "failed": lost,
        "missing": len(absent) - lost,
        "auc": found["auc"],
        "ap": found["ap"],
        "worst_case_auc": worst["auc"] if bound else None,
        "worst_case_ap": worst["ap"] if bound else None,
    }


def _warnings(entries: Sequence[Entry], listed: Sequence[ClipMeta]) -> Iterator[str]:
    """What the reader must know beside the numbers."""
    notes = {entry.method: entry.table.attributes.get("deviation") for entry in entries}
    yield from (f"{method} is not the published system: {note}." for method, note in notes.items() if note)
    for entry in entries:
        name, label = entry.title, entry.label
        if note := caveat(entry.table.attributes):
            yield f"{name}: {note}."
        if unknown := int((~np.isin(label, (REAL, FAKE))).sum()):
            yield f"{name}: {unknown} of {len(label)} clips have no label and are left out of all metrics."
        frames = np.diff(entry.table.offset).tolist()
        if entry.table.frame is not None and (beyond := sum(map(ends_beyond, entry.clips, frames))):
            yield f"{name}: {beyond} clips have fake segments beyond their end, so what is said of frames is wrong."
        counts = {kind: int((label == value).sum()) for kind, value in (("real", REAL), ("fake", FAKE))}
        if _too_few(*counts.values()):
            many = f"{counts['real']} real and {counts['fake']} fake clips"
            yield f"{name}: {many} are too few to say how sure its numbers are."
        for kind, count in counts.items():
            if not count:
                yield f"{name}: no clip is labelled {kind}, so what compares both is undefined."
        if listed and not _shared(entry, listed):
            yield f"{name}: none of its clips is in the list, so there is no coverage of it."
        elif listed and (others := len(entry.clips) - _shared(entry, listed)):
            yield f"{name}: {others} of its clips are not in the list; coverage leaves them out."
        if lost := sum(clip.label == UNKNOWN and clip.path not in entry.rows for clip in listed):
            yield f"{name}: {lost} clips of the list have neither score nor label, so the worst case is undefined."
    for one, other in _pairs(entries):
        mine, theirs = one.rows.keys(), other.rows.keys()
        if mine != theirs:
            yield (
                f"{one.title} and {other.title} scored different clips: {len(mine & theirs)} in common, "
                f"{len(mine - theirs)} and {len(theirs - mine)} of one alone; each is evaluated on its own, "
                "and they are compared on those in common."
            )


def _check_labels(entries: Sequence[Entry], listed: Sequence[ClipMeta]) -> None:
    """Refuses files that contradict each other, or the list."""
    known: dict[tuple[str, str], tuple[int, str]] = {}
    in_list = {clip.path: clip.label for clip in listed}
    for entry in entries:
        for clip in entry.clips:
            label, title = known.setdefault((entry.dataset, clip.path), (clip.label, entry.title))
            if label != clip.label:
                raise UserError(f"clip {clip.path!r} has label {clip.label} in {entry.title}, but {label} in {title}")
            if UNKNOWN not in (label, other := in_list.get(clip.path, UNKNOWN)) and label != other:
                raise UserError(f"clip {clip.path!r} has label {label} in {title}, but {other} in the clip list")


def _shared(entry: Entry, listed: Sequence[ClipMeta]) -> int:
    return sum(clip.path in entry.rows for clip in listed)


def _key(entry: Entry) -> dict:
    return {"dataset": entry.dataset, "method": entry.method, "trimmed": entry.trimmed}


def _names(entries: Sequence[Entry]) -> str:
    return ", ".join(dict.fromkeys(entry.method for entry in entries))
