"""Makes references: collects the scores of real clips, and fits probabilities if there are fakes, too."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from avh_shards import UserError
from avh_shards.clip import FAKE, REAL, UNKNOWN
from avh_shards.format import UNKNOWN_STATE
from avh_shards.text import one_line
from jax_avh.reference import (
    ATTRIBUTES,
    FRAME_LIMIT,
    IDENTITY,
    MOST_CLIPS,
    MOST_TEXT,
    UNPOOLED,
    Calibration,
    Reference,
    differing_attribute,
)
from jax_avh.scores import ScoreTable, open_scores, pool_all

UNRECORDED = (None, "", UNKNOWN_STATE)  # values of an attribute that another score file may know
FEWEST_FITTED = {"platt": 50, "isotonic": 500}  # clips of each class for probabilities
FOLDS = 5  # the probabilities of a fifth of the clips are judged by a map that was fitted to the others
KNOTS = 257  # of a logistic map, between the lowest and the highest score
BINS = 10  # of probability, in the reliability diagram
KEPT = 20  # points of the curve of accuracy against the share of clips that are kept
NEARLY_UNPENALISED = 1e6  # scikit-learn's C


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How well probabilities of clips that they were not fitted to hold; both classes have the same weight."""

    bins: list[tuple[float, float, int]]  # mean probability, share of fakes and number of clips of each tenth
    calibration_error: float  # expected calibration error: mean distance between the two, weighted by clips
    kept: list[float]  # shares of the clips, those with the surest probabilities first
    accuracy: list[float]  # of calling a kept clip fake if its probability is above a half


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A reference, and what a reader should know of its making."""

    reference: Reference
    notes: tuple[str, ...]  # sentences
    fakes: Float32[np.ndarray, " M"]  # clip scores of the fakes
    reliability: Reliability | None  # None = no probabilities


def calibrate(
    scores: Sequence[str | os.PathLike],
    fakes: Sequence[str | os.PathLike] = (),
    dataset: str | None = None,
    protocol: str = "",
    rule: str = "platt",
) -> Calibrated:
    """Makes a reference of the real clips in score files, and calibrates probabilities if there are fakes.

    Args:
      scores: score files of real clips. Clips in them that are labelled fake serve as fakes, and clips without a label
        count as real only if no clip of their file has one.
      fakes: score files of fakes, likewise.
      dataset: name of the data set; None = the names that the score files record.
      protocol: what a reader should know of the clips: split, language, compression, ...
      rule: "platt" (a logistic curve) or "isotonic" (any rising curve); see FEWEST_FITTED.

    Raises:
      UserError: a score file is missing or damaged, differs from another in method, weights, encoder, trimming or
        faces, or repeats a clip; none holds real clips; or the names hold unprintable characters.
    """
    notes: list[str] = []
    tables = [(path, _open(path)) for path in [*scores, *fakes]]
    for (before, one), (path, table) in itertools.combinations(tables, 2):  # those that record less fit all of them
        if (name := differing_attribute(_attributes(one), _attributes(table))) is not None:
            mine, other = (one_line(_attributes(t).get(name, "not recorded")) for t in (table, one))
            raise UserError(
                f"{path}: differs from {before} in {IDENTITY[name]} ({name} {mine}, not {other}); "
                "calibrate them separately"
            )
    named = {str(table.attributes.get("dataset", "")) for _, table in tables[: len(scores)]} - {""}
    known: dict[str, object] = {}
    for _, table in tables:  # one that does not record its encoder fits those that do
        known |= {name: value for name, value in _attributes(table).items() if known.get(name) in UNRECORDED}
    known["dataset"] = ", ".join(sorted(named)) if dataset is None else dataset
    attributes = {name: value for name, value in (known | {"protocol": protocol}).items() if value != ""}
    for name, value in attributes.items():
        if isinstance(value, str) and (not value.isprintable() or len(value) > MOST_TEXT):
            raise UserError(f"{name}: holds control characters or more than {MOST_TEXT} characters; shorten it")
    chosen = [(table, _of_class(path, table, REAL, notes)) for path, table in tables[: len(scores)]]
    if not sum(len(rows) for _, rows in chosen):
        raise UserError(f"{scores[0]}: holds no real clip; name score files of real clips, labelled 0 in their list")
    reference = _collect(chosen, attributes, notes)
    found = [(table, np.flatnonzero(_labels(table) == FAKE)) for _, table in tables[: len(scores)]]
    for path, table in tables[len(scores) :]:
        rows = _of_class(path, table, FAKE, notes)
        if not len(rows):
            raise UserError(f"{path}: holds no fake; name score files of fakes, labelled 1 in their list")
        found.append((table, rows))
    _check_distinct([*chosen, *found])
    fake = np.concatenate([table.clip[rows] for table, rows in found])
    length = np.concatenate([np.diff(table.offset)[rows] for table, rows in found])
    if not len(fake) and rule != "platt":
        raise UserError(f"--calibration={rule}: needs fakes; add --fakes, or leave it out")
    if not len(fake):
        return Calibrated(reference, tuple(notes), fake, None)
    label, surprise = _surprise(reference, fake, length)
    if lost := len(fake) - int((label == FAKE).sum()):
        notes.append(f"{lost:,} of {len(fake):,} fakes are unlike all real clips in length and are left out")
    if min(np.bincount(label, minlength=2)) < FEWEST_FITTED[rule]:
        counts = f"{(label == REAL).sum():,} real clips and {(label == FAKE).sum():,} fakes"
        notes.append(f"{counts} are too few for probabilities by {rule}: it takes {FEWEST_FITTED[rule]:,} of each")
        return Calibrated(reference, tuple(notes), fake, None)
    reference = dataclasses.replace(reference, calibration=fit_probability(label, surprise, rule))
    return Calibrated(reference, tuple(notes), fake, measure_reliability(label, surprise, rule))


def _check_distinct(chosen: Sequence[tuple[ScoreTable, np.ndarray]]) -> None:
    """Raises a UserError if a clip occurs twice, because clips must be independent.

    Clips of unnamed data sets may share a path, and then differ in their scores.
    """
    seen = set()
    for table, rows in chosen:
        dataset = str(table.attributes.get("dataset", ""))
        for row in rows.tolist():
            path = table.clips[row].path
            clip = (dataset, path) if dataset else (path, float(table.clip[row]))
            if clip in seen:
                raise UserError(f"clip {path!r}: occurs twice in the score files; give each clip once")
            seen.add(clip)


def _open(path: str | os.PathLike) -> ScoreTable:
    """Opens a score file; faces are put together by video, because those of one video are not independent."""
    table = open_scores(path)
    return table.by_video(str(path)) if table.attributes.get("faces") else table


def _surprise(
    reference: Reference, fake: Float32[np.ndarray, " M"], length: Int64[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Returns labels and surprise of the reference's clips, each among the others, and of fakes of similar length."""
    ranks = reference.rank(reference.own, reference.scores[reference.own], reference.length)
    real = -np.log(ranks.above / ranks.clips)  # (1 + k) / (1 + n) of k and n without the clip
    ranks = reference.rank(reference.own, fake, length)
    fakes = -np.log(ranks.p_value()[ranks.clips > 0])
    return np.repeat([REAL, FAKE], [len(real), len(fakes)]), np.concatenate([real, fakes])


def _attributes(table: ScoreTable) -> dict[str, object]:
    """Returns the attributes of a score file that a reference records, which name no path."""
    known: dict[str, object] = {"method": table.method}
    for name, value in table.attributes.items():
        if name in ATTRIBUTES:
            known[name] = bool(value) if isinstance(value, bool | np.bool_) else str(value)
    return known


def _labels(table: ScoreTable) -> Int64[np.ndarray, " N"]:
    return np.array([clip.label for clip in table.clips], np.int64)


def _of_class(path: str | os.PathLike, table: ScoreTable, label: int, notes: list[str]) -> Int64[np.ndarray, " M"]:
    """Returns the rows of a class's clips: those with its label, or all if none has a label."""
    labels = _labels(table)
    if len(labels) and (labels == UNKNOWN).all():
        kind = "fake" if label == FAKE else "real"
        notes.append(f"{Path(path).name}: no clip has a label, so all {len(labels):,} are taken for {kind}")
        return np.arange(len(labels))
    if unlabelled := int((labels == UNKNOWN).sum()):
        notes.append(f"{Path(path).name}: {unlabelled:,} clips have no label and are left out")
    return np.flatnonzero(labels == label)


def _collect(
    chosen: Sequence[tuple[ScoreTable, np.ndarray]], attributes: dict[str, object], notes: list[str]
) -> Reference:
    """Returns a reference of the chosen rows of each table, or of MOST_CLIPS of them, drawn at random."""
    total = sum(len(rows) for _, rows in chosen)
    drawn = np.ones(total, bool)
    if total > MOST_CLIPS:
        notes.append(f"the reference holds {MOST_CLIPS:,} of {total:,} real clips, drawn at random")
        drawn[np.random.default_rng(0).permutation(total)[MOST_CLIPS:]] = False
    masks = np.split(drawn, np.cumsum([len(rows) for _, rows in chosen])[:-1])
    kept = [(table, rows[mask]) for (table, rows), mask in zip(chosen, masks, strict=True)]
    parts = [table.chosen(rows) for table, rows in kept if len(rows)]
    length = np.concatenate([np.diff(part.offset) for part in parts])
    own = str(attributes.get("pooling", UNPOOLED))
    scores = {own: np.concatenate([part.clip for part in parts])}
    limit = None
    if all(part.frame is not None for part in parts):
        frame = np.concatenate([part.frame for part in parts if part.frame is not None])
        pooled = pool_all(frame, np.concatenate([[0], np.cumsum(length)]))
        scores |= {name: np.asarray(score).astype(np.float32) for name, score in pooled.items() if name != own}
        limit = float(np.quantile(frame.astype(np.float64), FRAME_LIMIT))
    order = np.lexsort([scores[own], length])  # not the order of the files
    return Reference(attributes, length[order], {name: score[order] for name, score in scores.items()}, limit)


# --- probabilities ---------------------------------------------------------------------------------------------------


def fit_probability(label: Int64[np.ndarray, " N"], surprise: Float64[np.ndarray, " N"], rule: str) -> Calibration:
    """Fits a rising map from surprise to the probability of a fake, as if half of the clips were fake.

    Args:
      label: 0 real, 1 fake; both occur.
      surprise: minus the logarithm of each clip's p-value.
      rule: "platt" or "isotonic".

    References:
      Platt 1999 (a logistic curve for targets that are pulled towards a half, so that it stays finite for classes that
      do not overlap); Zadrozny and Elkan 2002 (isotonic regression).
    """
    weight = _balanced(label)
    fit: dict[str, Callable] = {"platt": _platt, "isotonic": _isotonic}
    knots, probability = fit[rule](label, surprise, weight)
    return Calibration(rule, int((label == REAL).sum()), int((label == FAKE).sum()), knots, probability)


def _balanced(label: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Returns weights of mean 1 that give both classes the same total."""
    return len(label) / 2 / np.bincount(label, minlength=2)[label]


def _platt(label: np.ndarray, surprise: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, scale = surprise.mean(), surprise.std() or 1.0
    target = (label + 1 / np.bincount(label, minlength=2)[label]) / (1 + 2 / np.bincount(label, minlength=2)[label])
    curve = LogisticRegression(C=NEARLY_UNPENALISED).fit(  # each clip counts for both classes, with weights
        np.tile((surprise - centre) / scale, 2)[:, None],
        np.repeat([FAKE, REAL], len(surprise)),
        np.concatenate([weight * target, weight * (1 - target)]),
    )
    knots = np.unique(np.linspace(surprise.min(), surprise.max(), KNOTS))
    if curve.coef_[0, 0] <= 0:  # the fakes are not more suspicious than real clips
        return knots, np.full(len(knots), 0.5)
    rising = curve.predict_proba((knots[:, None] - centre) / scale)[:, 1]
    return knots, np.maximum.accumulate(rising)  # rounding may lower a value by its last digit


def _isotonic(label: np.ndarray, surprise: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.bincount(label, minlength=2).tolist()
    least = 1 / (real + 2)  # Platt's targets: a class that was not seen in an interval is still possible there
    most = (fake + 1) / (fake + 2)
    curve = IsotonicRegression(y_min=least, y_max=most, out_of_bounds="clip").fit(surprise, label, weight)
    return curve.X_thresholds_, curve.y_thresholds_


def measure_reliability(label: Int64[np.ndarray, " N"], surprise: Float64[np.ndarray, " N"], rule: str) -> Reliability:
    """Measures probabilities by cross-validation; arguments as for `fit_probability`, FOLDS clips of each class up."""
    probability = np.empty(len(label))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for others, held_out in folds.split(surprise[:, None], label):
        probability[held_out] = fit_probability(label[others], surprise[others], rule)(surprise[held_out])
    return reliability(label, probability)


def reliability(label: Int64[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> Reliability:
    """Compares probabilities with labels.

    Args:
      label: 0 real, 1 fake; both occur.
      probability: that each clip is fake, if half of the clips were fake.

    References:
      Naeini et al. 2015 (expected calibration error).
    """
    weight = _balanced(label) / len(label)
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    bins = []
    error = 0.0
    for n in range(BINS):
        inside = place == n
        if inside.any():
            mean, share = (float(np.average(v[inside], weights=weight[inside])) for v in (probability, label))
            bins.append((mean, share, int(inside.sum())))
            error += float(weight[inside].sum()) * abs(mean - share)
    order = np.argsort(-np.abs(probability - 0.5), kind="stable")
    right = (probability > 0.5) == (label == FAKE)
    total = np.cumsum(weight[order])
    accuracy = np.cumsum((weight * right)[order]) / total
    ends = np.searchsorted(total, np.linspace(0, 1, KEPT + 1)[1:] - 1e-9)
    return Reliability(bins, error, total[ends].tolist(), accuracy[ends].tolist())
