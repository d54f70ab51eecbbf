"""Safe reading of untrusted zip and .npz files, and import of AVH-Align's official npz features into shards."""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import MAX_FRAMES, inside, near_name, refuse_shared_names
from avh_shards.errors import ClipError, Failure, is_passing
from avh_shards.format import SIMULATED
from avh_shards.lists import read_text
from avh_shards.paths import FilePath, as_path, locked
from avh_shards.text import one_line
from extract.progress import ProgressBar, Stopwatch
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip, check_features
from extract.store.shard_set import SET_SETTINGS, ExtractionSummary, ShardSet, merge, task_lock

MOST_DIRECTORY = 1 << 22  # bytes of an archive's central directory, enough for some 40,000 members


def import_features(
    clips: Sequence[ClipMeta],
    features: str | os.PathLike,
    output: str | os.PathLike,
    dtype: str = "float16",
    width: int = 1024,
    clips_per_shard: int = 256,
    retry_failed: str = "passing",
) -> ExtractionSummary:
    """Packs AVH-Align's npz features (keys `visual` and `audio`, [T, D]) into shards.

    Args:
      clips: the clip list; `a/b.mp4` refers to the file `a/b.npz`. The first readable file decides whether the set is
        marked as simulated; files that differ from it are failures.
      features: folder of the npz files.
      output: folder of the shards; existing shards are kept, as in `run.job.extract`.
      dtype: dtype of the stored features.
      width: feature width D; features with a different width are failures.
      clips_per_shard: number of clips per shard.
      retry_failed: failures of an earlier run to retry: none, passing or all.

    Returns:
      The summary of the set.

    Raises:
      UserError: the folder does not exist, two clips refer to the same file, `output` holds shards of a different run,
        or another run is writing there.
    """
    if not Path(features).is_dir():
        raise UserError(f"{features}: no such folder; name the folder of the npz features")
    refuse_shared_names(clips)
    settings = {"source": "npz", "dtype": dtype, "clips_per_shard": clips_per_shard}
    simulated = _is_simulated_set(clips, features, width, as_path(output) / SET_SETTINGS)
    attributes = {
        "encoder": "imported",
        "weights_sha256": SIMULATED if simulated else "unknown",
        "width": width,
        "trimmed": "unknown",
        "settings": json.dumps(settings, sort_keys=True),
    }
    writer = ShardWriter(as_path(output), dtype, attributes)
    shards = ShardSet(writer, clips, clips_per_shard)
    with locked(writer.directory, task_lock(writer.directory)):
        missing = shards.missing()
        for shard in sorted(set(range(shards.count)) - set(missing)):
            failed = shards.failed(shard, retry_failed)
            again = {clip.path: _import_clip(clip, features, width, dtype, simulated) for clip in failed}
            tried = {path: outcome if isinstance(outcome, Failure) else None for path, outcome in again.items()}
            if shards.can_gain(shard, tried):
                missing.append(shard)
        with ProgressBar(len(clips), len(clips) - sum(len(shards.clips_of(shard)) for shard in missing)) as progress:
            for shard in sorted(missing):
                listed = shards.clips_of(shard)
                watch = Stopwatch()
                with watch.stage("read"):
                    outcomes = [_import_clip(clip, features, width, dtype, simulated) for clip in listed]
                writer.write(shard, listed, outcomes, watch.seconds)
                stored = [outcome for outcome in outcomes if isinstance(outcome, StoredClip)]
                frames = sum(len(clip.features.visual) for clip in stored)
                progress.add(len(listed), frames, len(outcomes) - len(stored))
    summary = merge(writer.directory)
    assert summary is not None  # all shards exist
    return summary


def read_npz(path: Path, width: int) -> tuple[ClipFeatures, bool]:
    """Reads the official features of one clip.

    Args:
      path: the npz file.
      width: feature width D; arrays with more than MAX_FRAMES * D numbers are rejected.

    Returns:
      The features, and whether the file marks them as simulated, as launch.demo does.

    Raises:
      ClipError: the file is missing, damaged or too large, or has no features.
    """
    try:
        with open_archive(path) as archive:
            visual = read_array(archive, "visual", MAX_FRAMES * width)
            audio = read_array(archive, "audio", MAX_FRAMES * width)
            return ClipFeatures(visual, audio), f"{SIMULATED}.npy" in archive.namelist()
    except FileNotFoundError:
        raise ClipError("import", f"no such file: {path}{near_name(path)}", passing=True) from None
    except Exception as error:  # numpy and zlib can raise anything on a damaged file; only this clip fails
        reason = one_line(f"{type(error).__name__}: {error}"[:200])
        raise ClipError("import", f"not a file of npz features ({reason})") from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive, rejecting a huge central directory because ZipFile keeps all of it in memory.

    Raises:
      FileNotFoundError: the file does not exist.
      zipfile.BadZipFile: the file is not an archive, or lists too many members.
    """
    with _Opening(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.opening = False
        yield archive


def read_array(archive: zipfile.ZipFile, name: str, numbers: int) -> np.ndarray:
    """Reads an array from an open .npz file after checking its size, before any memory is allocated for it.

    Args:
      archive: the open file.
      name: name of the array.
      numbers: largest number of elements allowed.

    Raises:
      Exception: whatever numpy, zipfile and zlib raise on a damaged file; ValueError for an array that is missing or
        too large.
    """
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"it has no array `{name}`")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the only methods that numpy writes
        raise ValueError(f"`{name}` uses a compression method that numpy does not write")
    with archive.open(member) as file:
        old = np.lib.format.read_magic(file) == (1, 0)  # later versions have a wider length field
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if math.prod(shape) > numbers or math.prod(shape) * dtype.itemsize > numbers * np.dtype(np.float64).itemsize:
        raise ValueError(f"`{name}` is {dtype} {list(shape)}, larger than allowed")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _is_simulated_set(clips: Sequence[ClipMeta], features: str | os.PathLike, width: int, settings: FilePath) -> bool:
    """Returns whether a set has simulated features, from an earlier run's settings or else the first readable file."""
    if settings.exists():
        with contextlib.suppress(ValueError, AttributeError, RecursionError):  # the set reports damaged settings itself
            return json.loads(read_text(settings)).get("weights_sha256") == SIMULATED
    for clip in clips:
        with contextlib.suppress(ClipError):
            return read_npz(inside(features, clip.path, ".npz"), width)[1]
    return False


def _import_clip(
    clip: ClipMeta, features: str | os.PathLike, width: int, dtype: str, simulated: bool
) -> StoredClip | Failure:
    try:
        stored, marked = read_npz(inside(features, clip.path, ".npz"), width)
    except ClipError as error:
        return Failure(clip.path, error.stage, error.reason, is_passing(error))
    reason = check_features(stored, width, dtype)
    if not reason and marked != simulated:
        reason = "SIMULATED features cannot be mixed with others; import each kind into its own set"
    return Failure(clip.path, "import", reason) if reason else StoredClip(clip, stored)


class _Opening(io.BufferedReader):
    """A file that rejects long reads while an archive is being opened: only the central directory can be long."""

    opening = True

    def read(self, size: int | None = -1) -> bytes:
        if self.opening and (size or 0) > MOST_DIRECTORY:
            raise zipfile.BadZipFile("it lists too many members")
        return super().read(size)
