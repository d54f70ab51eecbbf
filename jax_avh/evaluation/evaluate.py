"""Evaluates score files together: computes every number of `metrics.json` and warns of what could not be compared."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL, UNKNOWN, ends_beyond, listed_path
from avh_shards.format import caveat
from avh_shards.machine import own_cores
from avh_shards.paths import AnyPath
from jax_avh.evaluation.localisation import LOCALISED, MOST_LOCALISED, localisation
from jax_avh.evaluation.metrics import (
    FEWEST,
    METRIC_NAMES,
    MOST_RESAMPLED,
    DetectionMetrics,
    average_precision,
    bootstrap_intervals,
    delong_test,
    detection_metrics,
    roc_auc,
    worst_case,
)
from jax_avh.evaluation.operating import check_reference
from jax_avh.evaluation.results import (
    Comparison,
    Coverage,
    Evaluation,
    EvaluationMetrics,
    Localisation,
    Result,
    ScoredSet,
    name_scored_sets,
)
from jax_avh.reference import RATES, Reference, differing_attribute, read_reference
from jax_avh.scores import open_scores

RESAMPLES = 1000
CONFIDENCE = 0.95
MOST_THREADS = 4  # resamples of as many results are in memory at a time
EQUAL_ERROR = "equal error on these clips"  # rule of a threshold


def evaluate(
    scores: Sequence[str | os.PathLike],
    listed: Sequence[ClipMeta] = (),
    failed: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    names: Sequence[str] | None = None,
    references: Sequence[AnyPath] = (),
    two_sided: bool = False,
    rates: Sequence[float] = RATES,
) -> Evaluation:
    """Evaluates score files.

    Args:
      scores: score files, at least one, local or URLs.
      listed: clips that should be scored, for coverage; none = no coverage.
      failed: paths of listed clips that could not be extracted.
      thresholds: method, as named in the comparison -> lowest clip score at which a clip is called fake. Without one,
        the method's own threshold applies, or else that of equal error on the same clips.
      resamples: number of bootstrap resamples of the 95 % intervals, at least one.
      names: name of each score file's method in the comparison; None = derived from method and weights.
      references: files of real clips' scores; each is applied to the score files that it fits, at least one.
      two_sided: whether scores lower than those of a reference's real clips are suspicious, too.
      rates: false-alarm rates that references promise.

    Returns:
      The numbers of `metrics.json`, and the scores that they come from.

    Raises:
      UserError: no file is given, a file is missing or damaged, a clip's labels contradict each other in two files or
        in a file and `listed`, two files of the same data set and state would have the same name, a threshold is for a
        method without scores, or a reference fits no score file.
    """
    if not scores or resamples < 1:
        raise UserError(f"{len(scores)} score files, {resamples} resamples: at least one of each is needed")
    scored_sets = name_scored_sets([(Path(path), open_scores(path)) for path in scores], names)
    placed = [(scored, _places(scored, listed)) for scored in scored_sets]
    _check_labels(placed, listed)
    thresholds = thresholds or {}
    methods = dict.fromkeys(scored.method for scored in scored_sets)
    if unknown := thresholds.keys() - methods.keys():
        raise UserError(f"--threshold: no scores of method {min(unknown)!r}; choose from {', '.join(methods)}")
    fitting = list(_fitting(scored_sets, references))
    checks = [check_reference(scored, reference, two_sided, rates) for scored, reference in fitting]
    metrics = EvaluationMetrics(
        resamples=resamples,
        confidence=CONFIDENCE,
        warnings=[*_warnings(placed, listed), *_reference_warnings(scored_sets, fitting)],
        results=_results(scored_sets, thresholds, resamples),
        comparisons=[_comparison(one, other) for one, other in _pairs(scored_sets)],
        coverage=[_coverage(scored, places, listed, set(failed)) for scored, places in placed if any(places)],
        localisation=[
            Localisation(**_key(scored), **vars(parts[0]), **vars(parts[1]))
            for scored in scored_sets
            if (parts := localisation(scored.table))
        ],
        references=[check for check, _ in checks],
    )
    return Evaluation(metrics, scored_sets, tuple(p_value for _, p_value in checks))


def _key(scored: ScoredSet) -> dict:
    """Returns the fields of a `Row`."""
    return {"dataset": scored.dataset, "method": scored.method, "trimmed": scored.trimmed}


def _results(scored_sets: Sequence[ScoredSet], thresholds: Mapping[str, float], resamples: int) -> list[Result]:
    """Measures the method's own clip score by group, then the other poolings of its frame scores, for each method."""

    def measured(row: dict, *clips: np.ndarray, threshold: float | None) -> Result:
        label, score, chosen = clips
        return Result(**row, **_measured(label[chosen], score[chosen], threshold, resamples))

    waiting = []
    with ThreadPoolExecutor(min(own_cores(), MOST_THREADS)) as threads:
        for scored in scored_sets:
            threshold, rule = thresholds.get(scored.method), "given"
            if threshold is None:
                own = scored.table.attributes.get("threshold")
                threshold = float(own) if isinstance(own, int | float) else None
                rule = EQUAL_ERROR if threshold is None else "the method's own"
            pooling = str(scored.table.attributes.get("pooling", "clip"))
            for group, value, chosen in _groups(scored):
                row = {"pooling": pooling, "own": True, "group": group, "value": value, "threshold_rule": rule}
                clips = scored.label, scored.score, chosen
                waiting.append(threads.submit(measured, _key(scored) | row, *clips, threshold=threshold))
            for name, score in scored.pooled.items():
                if name != pooling:
                    row = {"pooling": name, "own": False, "group": "all", "value": "", "threshold_rule": EQUAL_ERROR}
                    clips = scored.label, score, np.ones(len(score), bool)
                    waiting.append(threads.submit(measured, _key(scored) | row, *clips, threshold=None))
        return [result.result() for result in waiting]


def _measured(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], threshold: float | None, resamples: int
) -> dict:
    """Returns the numbers of a `Result`, without intervals if there are too few clips."""
    detection = detection_metrics(label, score, threshold)
    intervals = DetectionMetrics(**dict.fromkeys(METRIC_NAMES))
    if not _too_few(detection.real, detection.fake):
        intervals = bootstrap_intervals(label, score, detection.threshold, resamples)
    return vars(detection) | {"intervals": intervals}


def _too_few(*counts: int) -> bool:
    """Returns whether a class has some clips, but too few for intervals and p-values."""
    return any(0 < count < FEWEST for count in counts)


def _groups(scored: ScoredSet) -> Iterator[tuple[str, str, Bool[np.ndarray, " N"]]]:
    """Yields (group, value, mask of clips): all clips; each category's fakes with all real clips; each split."""
    label = scored.label
    category, split = (np.array([getattr(clip, name) for clip in scored.clips]) for name in ("category", "split"))
    yield "all", "", np.ones(len(label), bool)
    categories, splits = np.unique(category[label == FAKE]), np.unique(split)
    for value in categories.tolist() if len(categories) > 1 else ():
        yield "category", value, (label == REAL) | ((label == FAKE) & (category == value))
    for value in splits.tolist() if len(splits) > 1 else ():
        yield "split", value, split == value


def _pairs(scored_sets: Sequence[ScoredSet]) -> Iterator[tuple[ScoredSet, ScoredSet]]:
    """Yields the pairs of scored sets of the same data set in the same state."""
    for one, other in itertools.combinations(scored_sets, 2):
        if (one.dataset, one.trimmed) == (other.dataset, other.trimmed):
            yield one, other


def _comparison(one: ScoredSet, other: ScoredSet) -> Comparison:
    """Tests whether two methods' AUCs on the clips that both scored differ by more than chance."""
    common = [path for path in one.rows if path in other.rows]
    mine, theirs = (np.array([scored.rows[path] for path in common], np.int64) for scored in (one, other))
    label = one.label[mine]
    test = delong_test(label, one.score[mine], other.score[theirs])
    few = _too_few(int((label == REAL).sum()), int((label == FAKE).sum()))
    return Comparison(
        dataset=one.dataset,
        trimmed=one.trimmed,
        one=one.method,
        other=other.method,
        clips=len(common),
        difference=test.difference if test else None,
        interval=test.interval if test and not few else None,
        p_value=test.p_value if test and not few else None,
    )


def _fitting(scored_sets: Sequence[ScoredSet], references: Sequence[AnyPath]) -> Iterator[tuple[ScoredSet, Reference]]:
    """Yields each scored set with each reference that fits it; raises a UserError if a reference fits none.

    If clips are faces, the set is that of their videos, as in references.
    """
    for path in references:
        reference = read_reference(path)
        fitting = [s for s in scored_sets if differing_attribute(reference.attributes, s.attributes) is None]
        if not fitting:
            reference.check_fits(scored_sets[0].attributes, f"--reference={path}")
        for scored in fitting:
            faces = bool(reference.attributes.get("faces"))
            videos = dataclasses.replace(scored, table=scored.table.by_video(scored.title)) if faces else scored
            yield videos, reference


def _reference_warnings(
    scored_sets: Sequence[ScoredSet], fitting: Sequence[tuple[ScoredSet, Reference]]
) -> Iterator[str]:
    """Yields what a reader must know to interpret the comparison with references."""
    if fitting:
        compared = [scored.title for scored, _ in fitting]
        yield from (f"{s.title}: no reference fits these scores." for s in scored_sets if s.title not in compared)
    for scored, reference in fitting:
        real = scored.score[scored.label == REAL]
        known = int(np.isin(real, reference.scores[reference.own]).sum())
        if 2 * known > len(real):
            yield (
                f"{scored.title}: {known} of {len(real)} real clips have the score of a clip in the reference; "
                "false-alarm rates of clips that are in it show nothing."
            )


def _coverage(scored: ScoredSet, places: Sequence[str], listed: Sequence[ClipMeta], failed: set[str]) -> Coverage:
    """Counts the listed clips that were scored, and bounds the metrics by giving the others the worst scores.

    A listed video counts as scored if one of its faces is.
    """
    rows = [row for row, path in enumerate(places) if path]
    found = {*places}
    absent = [clip for clip in listed if clip.path not in found]
    lost = sum(clip.path in failed for clip in absent)
    label, score = scored.label[rows], scored.score[rows]
    worst_auc, worst_ap = worst_case(label, score, np.array([clip.label for clip in absent], dtype=np.int64))
    if any(clip.label == UNKNOWN for clip in absent):  # the worst score of an unlabelled clip is undefined
        worst_auc = worst_ap = None
    return Coverage(
        **_key(scored),
        listed=len(listed),
        scored=len(listed) - len(absent),
        failed=lost,
        missing=len(absent) - lost,
        auc=roc_auc(label, score),
        ap=average_precision(label, score),
        worst_case_auc=worst_auc,
        worst_case_ap=worst_ap,
    )


def _warnings(placed: Sequence[tuple[ScoredSet, list[str]]], listed: Sequence[ClipMeta]) -> Iterator[str]:
    """Yields what a reader must know to interpret the numbers, one sentence each; see `_places`."""
    scored_sets = [scored for scored, _ in placed]
    notes = {scored.method: scored.table.attributes.get("deviation") for scored in scored_sets}
    yield from (f"{method} is not the published system: {note}." for method, note in notes.items() if note)
    for scored, places in placed:
        name, label = scored.title, scored.label
        if note := caveat(scored.table.attributes):
            yield f"{name}: {note}."
        unknown = int((~np.isin(label, (REAL, FAKE))).sum())
        if unknown:
            yield f"{name}: {unknown} of {len(label)} clips have no label and are left out of all metrics."
        frames = np.diff(scored.table.offset).tolist()
        if scored.table.frame is not None and (beyond := sum(map(ends_beyond, scored.clips, frames))):
            yield f"{name}: {beyond} clips have fake segments beyond their end, so the metrics of frames are wrong."
        if len(label) - unknown > MOST_RESAMPLED:
            yield f"{name}: intervals come from resamples of groups of clips, as there are over {MOST_RESAMPLED}."
        if scored.table.frame is not None and len(label) > MOST_LOCALISED:
            yield f"{name}: localisation is measured on {LOCALISED} of its {len(label)} clips, drawn at random."
        counts = {kind: int((label == value).sum()) for kind, value in (("real", REAL), ("fake", FAKE))}
        if _too_few(*counts.values()):
            many = f"{counts['real']} real and {counts['fake']} fake clips"
            yield f"{name}: {many} are too few for intervals and p-values."
        for kind, count in counts.items():
            if not count:
                yield f"{name}: no clip is labelled {kind}, so metrics that need both classes are undefined."
        if listed and not any(places):
            yield f"{name}: none of its clips is in the list, so it has no coverage."
        elif listed and (others := places.count("")):
            yield f"{name}: {others} of its clips are not in the list; coverage leaves them out."
        found = {*places}
        if lost := sum(clip.label == UNKNOWN and clip.path not in found for clip in listed):
            yield f"{name}: {lost} listed clips have neither score nor label, so the worst case is undefined."
    for one, other in _pairs(scored_sets):
        mine, theirs = one.rows.keys(), other.rows.keys()
        if mine != theirs:
            yield (
                f"{one.title} and {other.title} scored different clips: {len(mine & theirs)} in common, "
                f"{len(mine - theirs)} and {len(theirs - mine)} by only one; each is evaluated on all its clips, "
                "and they are compared on the common ones."
            )


def _places(scored: ScoredSet, listed: Sequence[ClipMeta]) -> list[str]:
    """Returns the path by which the list names each scored clip, or the video of a scored face; "" if it does not."""
    if not listed:
        return [""] * len(scored.clips)
    paths = {clip.path for clip in listed}
    return [path if (path := listed_path(clip.path, paths)) in paths else "" for clip in scored.clips]


def _check_labels(placed: Sequence[tuple[ScoredSet, list[str]]], listed: Sequence[ClipMeta]) -> None:
    """Raises a UserError if labels differ between files, or between a file and the list; see `_places`."""
    known: dict[tuple[str, str], tuple[int, str]] = {}
    in_list = {clip.path: clip.label for clip in listed}
    for scored, places in placed:
        for clip, place in zip(scored.clips, places, strict=True):
            label, title = known.setdefault((scored.dataset, clip.path), (clip.label, scored.title))
            if label != clip.label:
                raise UserError(
                    f"clip {clip.path!r}: has label {clip.label} in {scored.title}, but {label} in {title}; "
                    "correct one of them"
                )
            other = in_list.get(place, UNKNOWN)
            if UNKNOWN not in (label, other) and label != other:
                raise UserError(
                    f"clip {clip.path!r}: has label {label} in {title}, but {other} in the clip list; "
                    "correct one of them"
                )
