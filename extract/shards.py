"""Writing shards: which clip goes where, whole files only, and a log of every clip that failed.

Shard k of a run holds clips k*n .. (k+1)*n - 1 of the clip list, less those that failed, in list order. Its failures
stand beside it and are written first, so a shard that exists is a shard that is done.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Float

from extract.clips import Failure, shift_segments
from extract.schema import (
    FORMAT,
    FRAME_RATE,
    SHARD_PATTERN,
    TEXT_COLUMNS,
    VERSION,
    ClipMeta,
    InputError,
    caveat,
    offsets,
    open_shard,
    whole_file,
    write_clip_table,
)
from extract.stopwatch import Stopwatch

CREATED_BY = "avh-align-jax"


class ClipFeatures(NamedTuple):
    """A clip's encoder outputs, not normalised."""

    visual: Float[np.ndarray, "T D"]
    audio: Float[np.ndarray, "T D"]
    multimodal: Float[np.ndarray, "T D"] | None = None


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A folder of shards made from one clip list with one set of settings."""

    directory: Path
    clips: Sequence[ClipMeta]
    clips_per_shard: int
    dtype: str  # of the stored features: float16 or float32
    attributes: dict[str, object]  # encoder, weights_sha256, width, trimmed, settings

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.clips) // self.clips_per_shard)

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.directory / f"features-{shard:05d}.h5"

    def clips_of(self, shard: int) -> Sequence[ClipMeta]:
        """The clips that belong in a shard, by the rule above."""
        return self.clips[shard * self.clips_per_shard : (shard + 1) * self.clips_per_shard]

    def missing(self) -> list[int]:
        """Shards still to be made.

        Raises:
          InputError: the folder holds shards of another run.
        """
        expected = {self.path(shard) for shard in range(self.count)}
        if stray := sorted(set(self.directory.glob(SHARD_PATTERN)) - expected):
            raise InputError(f"{stray[0]}: beyond the last shard of this clip list; choose an empty output folder")
        return [shard for shard in range(self.count) if not self._done(shard)]

    def fill(self, shards: Iterable[int], outcomes: Callable[[Sequence[ClipMeta]], Iterable], watch: Stopwatch) -> None:
        """Makes shards one after the other.

        Args:
          shards: which.
          outcomes: gives, for a shard's clips, a (ClipMeta, ClipFeatures) or a Failure each; what is stored keeps the
            list's order.
          watch: counts the writing.
        """
        for shard in shards:
            results = list(outcomes(self.clips_of(shard)))
            failures = [result for result in results if isinstance(result, Failure)]
            with watch.stage("write"):
                self.write(shard, [result for result in results if not isinstance(result, Failure)], failures)

    def write(self, shard: int, stored: Sequence[tuple[ClipMeta, ClipFeatures]], failures: Sequence[Failure]) -> None:
        """Writes a shard's failure log, then the shard; each appears whole or not at all."""
        assert sorted([c.path for c, _ in stored] + [f.path for f in failures]) == sorted(
            c.path for c in self.clips_of(shard)
        )
        _write_lines(_failure_log(self.path(shard)), failures)
        with whole_file(self.path(shard)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update(self._attributes())
            write_clip_table(file, [clip for clip, _ in stored], offsets([len(f.visual) for _, f in stored]))
            for name in ClipFeatures._fields:
                arrays = [getattr(features, name) for _, features in stored]
                if name == "multimodal" and (not arrays or any(array is None for array in arrays)):
                    continue
                empty = np.empty((0, self.attributes["width"]), np.float32)
                file[name] = np.concatenate([empty, *arrays], dtype=self.dtype, casting="same_kind")

    def summarise(self, seconds: dict[str, float]) -> dict[str, object]:
        """Merges the failure logs into `failures.jsonl`, writes `extraction.json`, and returns what that says."""
        failures, stored, frames = [], 0, 0
        for path in map(self.path, range(self.count)):
            failures += read_failures(_failure_log(path))
            shard = open_shard(path)
            stored, frames = stored + len(shard.clips), frames + len(shard.visual)
        _write_lines(self.directory / "failures.jsonl", failures)
        summary = {
            "clips": len(self.clips),
            "stored": stored,
            "failed": len(failures),
            "frames": frames,
            "shards": self.count,
            "encoder": self.attributes["encoder"],
            "caveat": caveat(self.attributes),
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        }
        assert summary["stored"] + summary["failed"] == summary["clips"]
        with whole_file(self.directory / "extraction.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")
        return summary

    def _attributes(self) -> dict[str, object]:
        fixed = {"format": FORMAT, "version": VERSION, "frame_rate": FRAME_RATE, "created_by": CREATED_BY}
        return fixed | self.attributes

    def _done(self, shard: int) -> bool:
        path = self.path(shard)
        if not path.exists():
            return False
        found = open_shard(path)
        for name, value in self._attributes().items():
            if found.attributes.get(name) != value:
                raise InputError(
                    f"{path}: was made with {name} = {found.attributes.get(name)!r}, this run has {value!r}; "
                    "choose an empty output folder"
                )
        failed = {failure.path for failure in read_failures(_failure_log(path))}
        listed = [clip for clip in self.clips_of(shard) if clip.path not in failed]
        complete = len(found.clips) == len(listed) == len(self.clips_of(shard)) - len(failed)
        if not complete or not all(map(_same_clip, found.clips, listed)):
            raise InputError(f"{path}: was made from another clip list; choose an empty output folder")
        return True


def format_summary(summary: dict[str, object]) -> str:
    """What `extraction.json` says, in a sentence or two."""
    text = "{clips} clips: {stored} in {shards} shards ({frames} frames), {failed} failed".format_map(summary)
    text += " (see failures.jsonl)" if summary["failed"] else ""
    return "\n".join([f"{text}; {summary['seconds']['total']:.1f} s", *filter(None, [summary["caveat"]])])


def check_features(features: ClipFeatures, width: int, dtype: str) -> str | None:
    """Why features cannot be stored, or None if they can."""
    for name, array in zip(features._fields, features, strict=True):
        if array is None:
            continue
        if array.ndim != 2 or array.shape[1] != width or array.dtype not in (np.float16, np.float32, np.float64):
            return f"its {name} features are {array.dtype} {list(array.shape)}, not float [T, {width}]"
        if not np.isfinite(array).all():
            return f"its {name} features hold NaN or infinity"
        if np.abs(array, dtype=np.float64).max(initial=0) > np.finfo(dtype).max:
            return f"its {name} features leave the range of {dtype}; store them as float32"
        if len(array) != len(features.visual):
            return f"its features differ in length: visual has {len(features.visual)} frames, {name} {len(array)}"
    return None if len(features.visual) else "its features hold no frame"


def _same_clip(stored: ClipMeta, listed: ClipMeta) -> bool:
    """Whether a stored clip is the listed one, with all that the list says of it."""
    segments = shift_segments(listed.segments, max(stored.trimmed_frames, 0) / FRAME_RATE)
    same = all(getattr(stored, name) == getattr(listed, name) for name in (*TEXT_COLUMNS, "label"))
    return (
        same and np.shape(stored.segments) == np.shape(segments) and np.allclose(stored.segments, segments, atol=1e-3)
    )


def read_failures(path: Path) -> list[Failure]:
    """The failures in a log."""
    try:
        failures = [Failure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Failure(*map(str, dataclasses.astuple(failure))) for failure in failures]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a failure log ({error}); remove it and its shard to extract both again"
        ) from error


def _failure_log(shard: Path) -> Path:
    return shard.with_suffix(".failures.jsonl")


def _write_lines(path: Path, failures: Iterable[Failure]) -> None:
    with whole_file(path) as temporary:
        lines = (json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures)
        temporary.write_text("".join(lines), encoding="utf-8")
