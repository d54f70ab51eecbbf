"""Scoring: the choice of a method, detectors loaded from weights, and score files of shards."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import tqdm
from jaxtyping import Float

from avh_shards import UserError
from avh_shards.clip import offsets
from avh_shards.format import SHARD_PATTERN, json_attribute, marks
from avh_shards.paths import (
    HDF5,
    FilePath,
    as_path,
    check_outputs,
    file_lock,
    file_sha256,
    local_file,
    locked,
    remove_leftovers,
)
from avh_shards.text import one_line
from jax_avh.data.source import Source, open_source
from jax_avh.methods import METHODS
from jax_avh.methods.base import Method, Scores, TrainableMethod
from jax_avh.models.weights import check_features, read_notes, weights_file
from jax_avh.parallel import check_shared, this_process, together
from jax_avh.scores import POOLINGS, ScoreTable, open_scores, score_attributes, write_parts, write_scores

DEFAULT = "avh_align"  # method of weights that do not record one, such as an official file's
COPIED = ("encoder", "weights_sha256", "trimmed", "dataset")  # attributes copied from the shards
PIECES = ".pieces"  # ending of the name of a score file's folder of pieces


def choose_method(method: str | None, weights: FilePath | None) -> Method:
    """Returns the method to score with: the named one, or the one that the weights record.

    Args:
      method: a name of METHODS; None = the method of the weights.
      weights: a weight file; None = a method without weights.

    Raises:
      UserError: the method is unknown, does not fit the weights, or needs weights and has none.
    """
    trained = read_notes(weights).get("method") if weights else None
    name = method or trained or (DEFAULT if weights else None)
    if name not in METHODS:
        unknown = f"--method={name}: unknown; choose from {', '.join(METHODS)}"
        raise UserError(unknown if name else "--weights: required here; add it, or name a --method that needs none")
    chosen = METHODS[name]
    if chosen.trainable and not weights:
        raise UserError(f"--method={name} needs --weights; give a .safetensors file or the workdir of a training run")
    if weights and not chosen.trainable:
        raise UserError(f"--method={name} takes no --weights, because it is not trained; leave them out")
    if trained and trained not in (name, chosen.trained_as):
        raise UserError(f"{weights}: was trained as {trained}, not as {name}")
    return chosen


@dataclasses.dataclass(frozen=True)
class Detector:
    """Method that is ready to score, with its network and the notes of its weights, if it has any."""

    method: Method
    path: FilePath | None = None  # path of the weights
    network: Any = None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    batch_frames: int | None = None  # frames of one step on each device; None = the backend's default

    @property
    def attributes(self) -> dict[str, object]:
        """Attributes of its scores that describe its weights: path, SHA-256, marks of their origin; {} without any."""
        if self.path is None:
            return {}
        with local_file(self.path) as local:
            known: dict[str, object] = {"weights": str(self.path), "alignment_sha256": file_sha256(local)}
        return known | ({"trained_on": ",".join(found)} if (found := marks(self.notes)) else {})

    def check_fits(self, width: int, attributes: Mapping[str, object], what: object) -> None:
        """Checks that features match those that the detector was trained on.

        Args:
          width: width of the features.
          attributes: attributes of their shards, which name the encoder.
          what: names the features in messages.

        Raises:
          UserError: the width or the encoder differs.
        """
        if self.path is not None and "features" in self.method.reads:
            check_features(self.path, self.network.width, self.notes, {**attributes, "width": width}, what)

    @functools.cached_property
    def _scorer(self) -> Callable[[Source], Scores]:
        return self.method.scorer(self.network, self.batch_frames)

    def score(self, source: Source) -> tuple[Float[np.ndarray, " F"] | None, Float[np.ndarray, " N"]]:
        """Scores a source.

        Args:
          source: N clips with F frames in total, whose shards hold what the method reads.

        Returns:
          Frame scores [F], or None if the method has none, and clip scores [N], float32; higher = more fake.

        Raises:
          UserError: the features or the scores are not finite.
        """
        frame, clip = self._scorer(source)
        if clip is None:
            assert frame is not None
            clip = POOLINGS[self.method.pooling](frame, offsets(source.lengths))
        if not all(np.isfinite(scores).all() for scores in (frame, clip) if scores is not None):
            source.check_finite()
            raise UserError(f"{source.path}: the scores are not finite, because the weights are too large")
        return frame, np.asarray(clip).astype(np.float32)


def load_detector(
    weights: str | os.PathLike | None, method: str | None = None, batch_frames: int | None = None
) -> Detector:
    """Loads a method with its weights.

    Args:
      weights: a .safetensors file, or the workdir of a training run (its best weights); None = the method has none.
      method: a name of METHODS; None = the method that the weights were trained as, or avh_align if they record none.
      batch_frames: frames of one step on each device; None = the backend's default.

    Returns:
      The method with its network in float32.

    Raises:
      UserError: the method is unknown, or needs weights and has none; or the weights are missing or damaged, or belong
        to a different method.
    """
    path = None if weights is None else weights_file(weights)
    chosen = choose_method(method, path)
    if path is None:
        return Detector(chosen, batch_frames=batch_frames)
    network = cast(TrainableMethod, chosen).load_model(path)
    return Detector(chosen, path, network, read_notes(path), batch_frames)


# --- score files of shards -------------------------------------------------------------------------------------------
# The scores of each shard are first written to a score file of its own, a piece, and the pieces are then merged: only
# one shard's frame scores are in memory, a killed run resumes, and processes or tasks share the work. How a shard is
# scored does not depend on other shards or the number of devices, nor does the merged file on who did what.


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """The scoring of a folder of shards into one score file."""

    source: Source
    detector: Detector
    output: FilePath  # the score file
    attributes: dict[str, object]  # of the score file

    @property
    def folder(self) -> FilePath:
        """Folder of the pieces."""
        return self.output.with_name(f"{self.output.name}{PIECES}")

    def run(self) -> None:
        """Scores what is missing and merges the pieces, together with the other processes of this run, if any.

        Raises:
          UserError: see `score_shards`; all processes raise one.
        """
        index, count = this_process()
        output = f"--output={self.output}"
        with contextlib.ExitStack() as stack:
            lock = locked(self.output, file_lock(self.output))
            together(lambda: None if index else stack.enter_context(lock), output)
            if count > 1:
                check_shared(self.output.parent, output)
            together(lambda: self.score(index, count), output)
            together(lambda: None if index else self._merge(), output)

    def score(self, index: int, count: int) -> None:
        """Writes the missing pieces of one of several tasks or processes: shard k belongs to task k mod count.

        Args:
          index: index of the task, from 0; the others may run elsewhere, at any time.
          count: number of tasks.

        Raises:
          UserError: see `score_shards`.
        """
        own = [shard for shard in self._shards if shard % count == index]
        with locked(self.folder, self.folder / f".task-{index}-of-{count}.lock"):
            missing = [shard for shard in own if self._piece(shard) is None]
            for shard in tqdm.tqdm(missing, desc="shards", leave=False, disable=len(missing) < 2):
                part = self.source.of_shard(shard)
                frame, clip = self.detector.score(part)
                name = self.detector.method.name
                table = ScoreTable(name, tuple(part.clips), offsets(part.lengths), frame, clip, self.attributes)
                write_scores(table, self._path(shard))

    def merge(self) -> None:
        """Merges the pieces of all tasks, once they have ended.

        Raises:
          UserError: a piece is missing, or the score file cannot be written.
        """
        with locked(self.output, file_lock(self.output)):
            self._merge()

    def _merge(self) -> None:
        clips = self.source.clips
        border = offsets(self.source.lengths)
        write_parts(self._pieces(), self.detector.method.name, clips, border, self.attributes, self.output)
        for path in self.folder.glob("*.h5"):
            path.unlink()
        if isinstance(self.folder, Path):
            remove_leftovers(self.folder, ".")
            with contextlib.suppress(OSError):  # not empty: it holds what is not ours
                self.folder.rmdir()

    @property
    def _shards(self) -> list[int]:
        """Shards that hold clips."""
        return [shard for shard, table in enumerate(self.source.shards) if table.clips]

    def _path(self, shard: int) -> FilePath:
        return self.folder / f"scores-{shard:05d}.h5"

    def _piece(self, shard: int) -> ScoreTable | None:
        """Reads a piece; returns None if there is none, or one of other features or weights."""
        if not self._path(shard).exists():
            return None
        table = open_scores(self._path(shard))
        names = ("fingerprint", "alignment_sha256")
        same = all(table.attributes.get(name) == self.attributes.get(name) for name in names)
        clips = [[clip.path for clip in found] for found in (table.clips, self.source.shards[shard].clips)]
        return table if same and table.method == self.detector.method.name and clips[0] == clips[1] else None

    def _pieces(self) -> Iterator[ScoreTable]:
        """Yields all pieces in order; raises a UserError if one is missing."""
        there = set(self.folder.glob("*.h5")) if self.folder.exists() else set()
        missing = [shard for shard in self._shards if self._path(shard) not in there]
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} of {len(self._shards)} shards are not scored yet, the first is "
                f"{self.source.shards[missing[0]].path}; run the remaining tasks first"
            )
        for shard in self._shards:
            if (piece := self._piece(shard)) is None:
                raise UserError(f"{self._path(shard)}: is not of these features and weights; run its task again")
            yield piece


def make_job(
    features: str | os.PathLike,
    output: str | os.PathLike,
    method: str | None = None,
    weights: str | os.PathLike | None = None,
    notes: Mapping[str, object] = MappingProxyType({}),
    batch_frames: int | None = None,
) -> ScoreJob:
    """Prepares the scoring of shards, without writing anything; arguments and errors as for `score_shards`."""
    detector = load_detector(weights, method, batch_frames)
    chosen = detector.method
    source = open_source(features)
    detector.check_fits(source.width, source.attributes, source.path)
    attributes = _known(source, notes) | {"features": str(features), "fingerprint": source.fingerprint()}
    _check_free(output, source, detector, attributes["fingerprint"])
    attributes |= detector.attributes
    for content in chosen.reads:
        source.check_has(content)
    described = {name: getattr(chosen, name) for name in ("pooling", "threshold", "deviation")}
    attributes |= {name: value for name, value in described.items() if value not in ("", None)}
    return ScoreJob(source, detector, as_path(output), attributes)


def score_shards(
    features: str | os.PathLike,
    output: str | os.PathLike,
    method: str | None = None,
    weights: str | os.PathLike | None = None,
    notes: Mapping[str, object] = MappingProxyType({}),
    batch_frames: int | None = None,
) -> ScoreTable:
    """Scores every clip of a folder of shards, and every frame if the method scores frames.

    A run that was killed resumes: `OUTPUT.pieces` holds the scores of the shards that are done.

    Args:
      features: a folder of shards, or one shard, local or a URL.
      output: the score file to write, local or a URL.
      method: a name of METHODS; None = the method that the weights were trained as, or avh_align if they record none.
      weights: weights of a trainable method: a .safetensors file, or the workdir of a training run (its best weights).
      notes: attributes that the shards do not record: `dataset`, a name, and `trimmed`, a bool.
      batch_frames: frames of one step on each device; None = the backend's default.

    Returns:
      The contents of the score file.

    Raises:
      UserError: the method is unknown; the weights or the features are missing or damaged, lack what the method needs,
        do not fit each other, or give scores that are not finite; `notes` contradict the shards; the score file cannot
        be written, is an input or holds other scores; or another run is writing it.
    """
    job = make_job(features, output, method, weights, notes, batch_frames)
    job.run()
    return dataclasses.replace(open_scores(job.output), clips=tuple(job.source.clips), attributes=job.attributes)


def _check_free(output: str | os.PathLike, source: Source, detector: Detector, fingerprint: object) -> None:
    """Rejects an output that cannot be written, is an input, is named like a shard, or holds other scores.

    Args:
      output: the score file to write.
      source: features to score.
      detector: the method and weights to score them with.
      fingerprint: fingerprint of the features; scores of the same method and features may be replaced.
    """
    inputs = [*(shard.path for shard in source.shards), *([detector.path] if detector.path else [])]
    check_outputs({output: HDF5}, inputs)
    if Path(output).match(SHARD_PATTERN):
        raise UserError(f"{output}: is named like a shard ({SHARD_PATTERN}); choose another name")
    if not as_path(output).exists() or not as_path(output).stat().st_size:
        return
    found = score_attributes(output)
    if found.get("method") != detector.method.name:
        raise UserError(
            f"{output}: holds scores of {one_line(found.get('method'))}, not of {detector.method.name}; "
            "name another file"
        )
    if found.get("fingerprint") != fingerprint:
        raise UserError(
            f"{output}: holds scores of other features ({one_line(found.get('features'))}) than {source.path}; "
            "name another file"
        )


def _known(source: Source, notes: Mapping[str, object]) -> dict[str, object]:
    """Returns the attributes of the features that shards and notes record; raises a UserError if they disagree."""
    known = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    if faces := json_attribute(source.path, source.attributes, "settings").get("faces"):
        known["faces"] = str(faces)
    for name, value in notes.items():
        if (found := known.get(name, "unknown")) not in ("unknown", value):
            raise UserError(f"{source.path}: its {name} is {found}, not {value}")
    return known | dict(notes)
