"""Atomic writing of one shard with its clips and failures.

The failure log is a file next to the shard and is written first, so a shard that exists is complete.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

import h5py
import numpy as np
from jaxtyping import Float, Int16, UInt8

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FRAME_RATE, listed_path, offsets, track_numbers, write_clip_table
from avh_shards.errors import Failure
from avh_shards.format import RAGGED, SHARD_FORMAT, SHARD_VERSION, read_shard_table, shard_name
from avh_shards.hdf5 import writing_hdf5
from avh_shards.lists import read_text
from avh_shards.paths import FilePath, atomic_write
from extract.progress import Stopwatch

CREATED_BY = "avh-align-jax"


class ClipFeatures(NamedTuple):
    """Encoder outputs of one clip at 25 Hz, not normalised; `multimodal` is the pass with both modalities."""

    visual: Float[np.ndarray, "T D"]
    audio: Float[np.ndarray, "T D"]
    multimodal: Float[np.ndarray, "T D"] | None = None


class StoredClip(NamedTuple):
    """Contents of a shard for one clip."""

    meta: ClipMeta
    features: ClipFeatures
    waveform: Int16[np.ndarray, " S"] | None = None
    crops: UInt8[np.ndarray, "T 96 96"] | None = None


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writer for the shards of one set, which all share the same settings."""

    directory: FilePath
    dtype: str  # of the stored features: float16 or float32
    attributes: Mapping[str, object]  # encoder, weights_sha256, width, trimmed, settings
    store: tuple[str, ...] = ()  # optional contents, from format.OPTIONAL

    def path(self, shard: int) -> FilePath:
        """Returns the path of a shard's file."""
        return self.directory / shard_name(shard)

    @property
    def root_attributes(self) -> dict[str, object]:
        """Root attributes that distinguish one set from another."""
        fixed = {"format": SHARD_FORMAT, "version": SHARD_VERSION, "frame_rate": FRAME_RATE, "created_by": CREATED_BY}
        return {**fixed, **self.attributes}

    def write(
        self,
        shard: int,
        listed: Sequence[ClipMeta],
        outcomes: Iterable[StoredClip | Failure],
        seconds: Mapping[str, float] = MappingProxyType({}),
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Writes a shard's failure log, then the shard. An existing shard is replaced unless that would lose a clip.

        Args:
          shard: number of the shard.
          listed: clips that belong in the shard.
          outcomes: one outcome per listed clip, or per track of its faces, in any order; they are stored in the order
            of `listed`. A clip of which one track failed counts as failed.
          seconds: time spent on the shard so far, by stage; stored as the attribute `seconds`.
          notes: additional attributes of this shard only.
        """
        watch = Stopwatch()
        paths = dict.fromkeys(clip.path for clip in listed)
        position = list_order(listed)
        stored, failures = _by_clip(sorted(outcomes, key=lambda outcome: position(_path(outcome))), paths)
        assert {listed_path(clip.meta.path, paths) for clip in stored} | failures.keys() == paths.keys()
        held: set[str] = set()
        if failures and self.path(shard).exists():
            with contextlib.suppress(UserError):  # an unreadable shard has no clips to lose
                held = {listed_path(clip.path, paths) for clip in read_shard_table(self.path(shard)).clips}
        if lost := next((failures[path] for path in failures if path in held), None):
            reason = f"its shard is kept because {lost.path!r} in it fails now ({lost.reason})"
            kept = {path: Failure(path, "write", reason, passing=True) for path in paths.keys() - held}
            kept |= {path: failure for path, failure in failures.items() if path not in held}
            write_failures(failure_log(self.path(shard)), [kept[path] for path in paths if path in kept])
            return
        write_failures(failure_log(self.path(shard)), failures.values())
        with writing_hdf5(self.path(shard)) as file:
            with watch.stage("write"):
                file.attrs.update(self.root_attributes)
                write_clip_table(
                    file, [clip.meta for clip in stored], offsets([len(c.features.visual) for c in stored])
                )
                self._write_arrays(file, stored)
            file.attrs.update({**notes, "seconds": json.dumps({**seconds, **watch.seconds})})

    def _write_arrays(self, file: h5py.File, stored: Sequence[StoredClip]) -> None:
        width = cast(int, self.attributes["width"])
        for name in ("visual", "audio", *(name for name in self.store if name not in RAGGED)):
            arrays = [getattr(clip.features, name) for clip in stored]
            _write_end_to_end(file, name, arrays, np.dtype(self.dtype), (width,))
        for name in (name for name in self.store if name in RAGGED):
            arrays = [getattr(clip, name) for clip in stored]
            file[f"{name}/offset"] = offsets([len(array) for array in arrays])
            _write_end_to_end(file, f"{name}/value", arrays, *RAGGED[name])


def check_features(features: ClipFeatures, width: int, dtype: str) -> str | None:
    """Returns why features cannot be stored in shards of this width and dtype, or None if they can."""
    for name, array in zip(features._fields, features, strict=True):
        if array is None:
            continue
        if array.ndim != 2 or array.shape[1] != width or array.dtype not in (np.float16, np.float32, np.float64):
            return f"its {name} features are {array.dtype} {list(array.shape)}, not float [T, {width}]"
        if not np.isfinite(array).all():
            return f"its {name} features hold NaN or infinity"
        if np.abs(array, dtype=np.float64).max(initial=0) > np.finfo(dtype).max:
            return f"its {name} features exceed the range of {dtype}; store them as float32"
        if len(array) != len(features.visual):
            return f"its features differ in length: visual has {len(features.visual)} frames, {name} {len(array)}"
    return None if len(features.visual) else "its features hold no frames"


def failure_log(shard: FilePath) -> FilePath:
    """Returns the path of the log of the clips missing from a shard."""
    return shard.with_suffix(".failures.jsonl")


def read_failures(path: FilePath) -> list[Failure]:
    """Reads the failures from a log.

    Raises:
      UserError: the log is missing or damaged.
    """
    text = read_text(path, "if its shard exists, remove the shard to extract both again")
    try:
        failures = [Failure(**json.loads(line)) for line in text.splitlines()]
        return [Failure(str(f.path), str(f.stage), str(f.reason), f.passing is True) for f in failures]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a failure log ({error}); remove it and its shard to extract both again"
        ) from error


def write_failures(path: FilePath, failures: Iterable[Failure]) -> None:
    """Writes a failure log."""
    with atomic_write(path) as temporary:
        lines = (json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures)
        temporary.write_text("".join(lines), encoding="utf-8")


def list_order(listed: Sequence[ClipMeta]) -> Callable[[str], tuple[int, int, int]]:
    """Returns the key by which the keys of clips and of their tracks are sorted in the order of a list."""
    positions = {clip.path: position for position, clip in enumerate(listed)}
    return lambda key: (positions[listed_path(key, positions)], *track_numbers(key))


def _by_clip(
    outcomes: Iterable[StoredClip | Failure], paths: Container[str]
) -> tuple[list[StoredClip], dict[str, Failure]]:
    """Splits outcomes into the clips to store and the failures by path of the list; a clip is stored whole or not."""
    outcomes = list(outcomes)
    failures: dict[str, Failure] = {}
    for failure in outcomes:
        if isinstance(failure, Failure):
            path = listed_path(failure.path, paths)
            failures.setdefault(path, dataclasses.replace(failure, path=path))
    stored = [outcome for outcome in outcomes if isinstance(outcome, StoredClip)]
    return [clip for clip in stored if listed_path(clip.meta.path, paths) not in failures], failures


def _path(outcome: StoredClip | Failure) -> str:
    return outcome.path if isinstance(outcome, Failure) else outcome.meta.path


def _write_end_to_end(
    file: h5py.File, name: str, arrays: Sequence[np.ndarray], dtype: np.dtype | type, item: tuple[int, ...]
) -> None:
    """Writes the concatenation of arrays as one contiguous dataset, without building it in memory."""
    borders = offsets([len(array) for array in arrays])
    dataset = file.create_dataset(name, (borders[-1], *item), dtype)
    for start, array in zip(borders[:-1], arrays, strict=True):
        dataset[start : start + len(array)] = array.astype(dtype, casting="same_kind")
