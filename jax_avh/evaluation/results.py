"""What an evaluation found: numbers under names, and the scores that they come from."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from avh_shards import ClipMeta, UserError, marked
from jax_avh.inference.pooling import pool_all
from jax_avh.inference.score_file import ScoreTable


@dataclasses.dataclass(frozen=True)
class Entry:
    """One score file among those compared."""

    dataset: str  # "" = unknown; marked if its features are random or simulated
    method: str  # name in the comparison
    trimmed: bool | None  # leading silence dropped; None = not known
    table: ScoreTable

    @property
    def title(self) -> str:
        """Method, data set and state, for sentences."""
        state = {True: "trimmed", False: "untrimmed", None: ""}[self.trimmed]
        where = " ".join(part for part in (self.dataset, state) if part)
        if not where or where.startswith("("):  # an unknown data set, marked: the parentheses are there
            return f"{self.method} {where}".rstrip()
        return f"{self.method} ({where})"

    @property
    def clips(self) -> tuple[ClipMeta, ...]:
        """The scored clips."""
        return self.table.clips

    @functools.cached_property
    def pooled(self) -> dict[str, Float[np.ndarray, " N"]]:
        """Clip scores by every pooling of the frame scores; none without frame scores."""
        return {} if self.table.frame is None else pool_all(self.table.frame, self.table.offset)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Where each clip stands, by its path."""
        return {clip.path: n for n, clip in enumerate(self.clips)}

    @functools.cached_property
    def label(self) -> Int64[np.ndarray, " N"]:
        """0 real, 1 fake, -1 unknown."""
        return np.array([clip.label for clip in self.clips], dtype=np.int64)

    @property
    def score(self) -> Float[np.ndarray, " N"]:
        """The method's own clip scores; higher = more fake."""
        return self.table.clip


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that `metrics.json`, `clips.csv` and `report.html` are written from."""

    metrics: dict[str, object]  # the contents of metrics.json
    entries: tuple[Entry, ...]


def named_entries(tables: Sequence[tuple[Path, ScoreTable]]) -> tuple[Entry, ...]:
    """Score files under names that tell them apart: the method's, if need be with that of its weights, or of the file.

    Raises:
      UserError: two files of one name, method, data set and state.
    """
    entries: list[Entry] = []
    for name in (_by_method, _by_weights, _by_file):
        entries = [_entry(path, table, name) for path, table in tables]
        keys = collections.Counter((entry.dataset, entry.method, entry.trimmed) for entry in entries)
        weights = collections.defaultdict(set)
        for entry in entries:
            weights[entry.method].add(entry.table.attributes.get("alignment_sha256"))
        if max(keys.values()) == 1 and all(len(of_one) == 1 for of_one in weights.values()):
            return tuple(entries)
    if max(keys.values()) > 1:
        raise UserError(f"two score files are named {keys.most_common(1)[0][0][1]!r}; rename one")
    return tuple(entries)


def as_named(tables: Sequence[tuple[Path, ScoreTable]], names: Sequence[str]) -> tuple[Entry, ...]:
    """Score files under given names."""
    return tuple(
        _entry(path, table, lambda *_, name=name: name) for (path, table), name in zip(tables, names, strict=True)
    )


def _entry(path: Path, table: ScoreTable, name: Callable[[Path, ScoreTable], str]) -> Entry:
    trimmed = table.attributes.get("trimmed")
    state = bool(trimmed) if isinstance(trimmed, bool | np.bool_) else None
    dataset = marked(str(table.attributes.get("dataset", "")), table.attributes)
    return Entry(dataset, name(path, table), state, table)


def _by_method(path: Path, table: ScoreTable) -> str:
    del path
    return table.method


def _by_weights(path: Path, table: ScoreTable) -> str:
    """A training run is named after its folder."""
    weights = Path(str(table.attributes.get("weights", path)))
    return f"{table.method}@{weights.parent.name if weights.stem == 'best' else weights.stem}"


def _by_file(path: Path, table: ScoreTable) -> str:
    return f"{table.method}@{path.stem}"
