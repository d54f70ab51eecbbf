"""Results of an evaluation: the numbers of `metrics.json`, and the scores that they come from."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float, Int64

from avh_shards import ClipMeta, UserError
from avh_shards.format import marked
from jax_avh.evaluation.localisation import FrameMetrics, SegmentMetrics
from jax_avh.evaluation.metrics import DetectionMetrics, Interval
from jax_avh.scores import ScoreTable, pool_all

STATES: dict[bool | None, str] = {False: "untrimmed", True: "trimmed", None: "trimming unknown"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Subject of a set of scores or a row of results: a method on a data set in a state."""

    dataset: str  # "" = unknown; marked if its features are random or simulated
    method: str  # name in the comparison
    trimmed: bool | None  # whether leading silence was dropped; None = unknown


@dataclasses.dataclass(frozen=True)
class ScoredSet(Row):
    """Contents of a score file: a method's scores of one data set in one state."""

    table: ScoreTable

    @property
    def title(self) -> str:
        """Method, data set and state, for use in sentences."""
        state = "" if self.trimmed is None else STATES[self.trimmed]
        where = " ".join(part for part in (self.dataset, state) if part)
        if not where or where.startswith("("):  # an unknown data set with a mark, which has its own parentheses
            return f"{self.method} {where}".rstrip()
        return f"{self.method} ({where})"

    @property
    def attributes(self) -> dict[str, object]:
        """Attributes of the score file, with the method."""
        return self.table.attributes | {"method": self.table.method}

    @property
    def clips(self) -> tuple[ClipMeta, ...]:
        """Scored clips."""
        return self.table.clips

    @functools.cached_property
    def pooled(self) -> dict[str, Float[np.ndarray, " N"]]:
        """Clip scores by every pooling of the frame scores; empty without frame scores."""
        if self.table.frame is None:
            return {}
        return cast(dict[str, np.ndarray], pool_all(self.table.frame, self.table.offset))

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Position of each clip, by its path."""
        return {clip.path: n for n, clip in enumerate(self.clips)}

    @functools.cached_property
    def label(self) -> Int64[np.ndarray, " N"]:
        """Label of each clip: 0 real, 1 fake, -1 unknown."""
        return np.array([clip.label for clip in self.clips], dtype=np.int64)

    @property
    def score(self) -> Float[np.ndarray, " N"]:
        """Method's own clip scores; higher = more fake."""
        return self.table.clip


@dataclasses.dataclass(frozen=True)
class Result(Row):
    """How well clip scores separate the fake clips of a group from its real ones; None = undefined."""

    pooling: str  # pooling of the frame scores; "clip" = a score that is not pooled
    own: bool  # whether it is the method's own clip score
    group: str  # "all", "category" (its fakes against all real clips) or "split"
    value: str  # name of the category or split; "" for all
    threshold_rule: str  # where the threshold comes from
    real: int  # clips
    fake: int
    threshold: float | None  # lowest clip score at which a clip is called fake
    metrics: DetectionMetrics[float | None]
    intervals: DetectionMetrics[Interval | None]  # 95 %; None also for too few clips


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two methods on the clips that both scored, by DeLong's test; None = undefined."""

    dataset: str
    trimmed: bool | None
    one: str  # method
    other: str
    clips: int  # clips that both scored
    difference: float | None  # AUC of `one` minus AUC of `other`
    interval: Interval | None  # 95 %; None, like the p-value, also for too few clips
    p_value: float | None


@dataclasses.dataclass(frozen=True)
class Coverage(Row):
    """Number of listed clips that were scored, and bounds on the metrics if the others had been; None = undefined."""

    listed: int  # clips
    scored: int
    failed: int  # could not be extracted
    missing: int  # neither scored nor failed
    auc: float | None  # of the scored clips
    ap: float | None
    worst_case_auc: float | None  # if every other clip had the worst score
    worst_case_ap: float | None


@dataclasses.dataclass(frozen=True)
class Localisation(SegmentMetrics, FrameMetrics, Row):
    """How well frame scores locate the fake segments."""


@dataclasses.dataclass(frozen=True)
class LengthLimits:
    """Scores beyond which a clip of similar length as some real clips of a reference is called fake."""

    seconds: Interval  # length of the shortest and longest real clip
    clips: int  # real clips
    limits: list[float | None]  # above the last and, two-sided, below the first; None = too few real clips for the rate


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """What a false-alarm rate that a reference promises gives; None = no such clips."""

    rate: float  # promised, as the highest share of real clips that are called fake
    undecided: int  # clips for which too few real clips of the reference have a similar length; left out below
    fpr: float | None  # share of real clips called fake
    fpr_interval: Interval | None  # 95 %, exact
    holds: bool | None  # whether this number of false alarms is usual for clips like those of the reference
    tpr: float | None  # share of fakes called fake
    tpr_interval: Interval | None
    thresholds: list[LengthLimits]


@dataclasses.dataclass(frozen=True)
class ReferenceCheck(Row):
    """How clips compare with the real clips of a reference."""

    reference: str  # number and data set of the real clips
    protocol: str
    two_sided: bool  # whether scores lower than those of real clips are suspicious, too
    real: int  # clips compared
    fake: int
    # Shares of the real clips with p-values of at most 0.1, of more and at most 0.2, ...; 0.1 are expected.
    tenths: list[float]
    distance: float | None  # largest distance of the real clips' p-values from uniform; None = too few real clips
    p_value: float | None  # of this distance, if the real clips were like those of the reference
    points: list[OperatingPoint]


@dataclasses.dataclass(frozen=True)
class EvaluationMetrics:
    """Contents of `metrics.json`."""

    resamples: int  # number of bootstrap resamples
    confidence: float  # level of the intervals
    warnings: list[str]  # sentences
    results: list[Result]
    comparisons: list[Comparison]
    coverage: list[Coverage]
    localisation: list[Localisation]
    references: list[ReferenceCheck] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Contents of `metrics.json`, `clips.csv` and `report.html`."""

    metrics: EvaluationMetrics
    scored_sets: tuple[ScoredSet, ...]
    p_values: tuple[np.ndarray, ...] = ()  # of the real clips, for each of `metrics.references`


def name_scored_sets(
    tables: Sequence[tuple[Path, ScoreTable]], names: Sequence[str] | None = None
) -> tuple[ScoredSet, ...]:
    """Names the methods of score files such that they can be distinguished.

    Args:
      tables: the files and their contents.
      names: name of each file's method; None = the method, if necessary with the name of its weights or of the file.

    Returns:
      The contents of the files under these names.

    Raises:
      UserError: two files would have the same name, data set and state, or their number is not that of the names.
    """
    choices = [
        [table.method for _, table in tables],
        [f"{table.method}@{_weights_name(path, table)}" for path, table in tables],
        [f"{table.method}@{path.stem}" for path, table in tables],
    ]
    if names is not None:
        if len(names) != len(tables):
            raise UserError(f"names: {len(names)} for {len(tables)} score files; give one for each")
        choices = [list(names)]
    scored_sets, keys = (), collections.Counter()
    for chosen in choices:
        scored_sets = _named(tables, chosen)
        keys = collections.Counter((scored.dataset, scored.method, scored.trimmed) for scored in scored_sets)
        weights = collections.defaultdict(set)
        for scored in scored_sets:
            weights[scored.method].add(scored.table.attributes.get("alignment_sha256"))
        if max(keys.values()) == 1 and all(len(of_one) == 1 for of_one in weights.values()):
            return scored_sets
    ((_, method, _), count), *_ = keys.most_common(1)
    if count > 1:
        raise UserError(f"score files: two are named {method!r}; rename one")
    return scored_sets


def _named(tables: Sequence[tuple[Path, ScoreTable]], names: Sequence[str]) -> tuple[ScoredSet, ...]:
    scored_sets = []
    for (_, table), name in zip(tables, names, strict=True):
        trimmed = table.attributes.get("trimmed")
        state = bool(trimmed) if isinstance(trimmed, bool | np.bool_) else None
        dataset = marked(str(table.attributes.get("dataset", "")), table.attributes)
        scored_sets.append(ScoredSet(dataset, name, state, table))
    return tuple(scored_sets)


def _weights_name(path: Path, table: ScoreTable) -> str:
    """Returns the name of a score file's weights: that of their training run's folder, or of the file of weights."""
    weights = Path(str(table.attributes.get("weights", path)))
    return weights.parent.name if weights.stem == "best" else weights.stem
