"""Zip archives and .npz files, which anyone may have written; AVH-Align's official features in them, into shards."""

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

MOST_DIRECTORY = 1 << 22  # bytes of an archive's list of members, enough for some 40,000 of them


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
      clips: the clip list; `a/b.mp4` means the file `a/b.npz`. Whether the set is marked as simulated is decided by
        the first file that can be read; files that differ from it are failures.
      features: folder of the npz files.
      output: folder of the shards; shards that are already there are kept, as in `run.job.extract`.
      dtype: of the stored features.
      width: D; features of another width are failures.
      clips_per_shard: clips in one shard.
      retry_failed: which clips that failed before are tried again: none, passing or all.

    Returns:
      The summary of the set.

    Raises:
      UserError: there is no such folder, `output` holds shards of another run, or another run is writing there.
    """
    if not Path(features).is_dir():
        raise UserError(f"{features}: no such folder of npz features")
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
    assert summary is not None  # all shards are there
    return summary


def read_npz(path: Path, width: int) -> tuple[ClipFeatures, bool]:
    """Reads the official features of one clip, no longer than a clip of that width may be.

    Returns:
      The features, and whether the file marks them as simulated (as launch.demo's are).

    Raises:
      ClipError: there are none.
    """
    try:
        with open_archive(path) as archive:
            visual = read_array(archive, "visual", MAX_FRAMES * width)
            audio = read_array(archive, "audio", MAX_FRAMES * width)
            return ClipFeatures(visual, audio), f"{SIMULATED}.npy" in archive.namelist()
    except FileNotFoundError:
        raise ClipError("import", f"no such file: {path}{near_name(path)}", passing=True) from None
    except Exception as error:  # a damaged file can make numpy and zlib raise anything; this clip is then logged
        reason = one_line(f"{type(error).__name__}: {error}"[:200])
        raise ClipError("import", f"not a file of npz features ({reason})") from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive if its list of members is of a reasonable size: ZipFile keeps all of it in memory.

    Raises:
      FileNotFoundError: the file does not exist.
      zipfile.BadZipFile: it is not an archive, or lists too many members.
    """
    with _Opening(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.opening = False
        yield archive


def read_array(archive: zipfile.ZipFile, name: str, numbers: int) -> np.ndarray:
    """Reads an array from an open .npz file; it is known to be small enough before memory is allocated for it.

    Args:
      archive: the file.
      name: of the array.
      numbers: the most that it may hold.

    Raises:
      Exception: whatever numpy, zipfile and zlib raise at a damaged file; ValueError for an array that is too large.
    """
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"it holds no array `{name}`")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # all that numpy writes
        raise ValueError(f"`{name}` is compressed in a way that numpy does not use")
    with archive.open(member) as file:
        old = np.lib.format.read_magic(file) == (1, 0)  # a later header differs in the width of its length
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if math.prod(shape) > numbers or math.prod(shape) * dtype.itemsize > numbers * np.dtype(np.float64).itemsize:
        raise ValueError(f"`{name}` is {dtype} {list(shape)}, larger than it may be")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _is_simulated_set(clips: Sequence[ClipMeta], features: str | os.PathLike, width: int, settings: FilePath) -> bool:
    """Whether a set is one of simulated features: as an earlier run recorded, else as the first readable file says."""
    if settings.exists():
        with contextlib.suppress(ValueError, AttributeError, RecursionError):  # damaged: the set itself says so
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
        reason = "SIMULATED features among others, or the reverse; import them into a set of their own"
    return Failure(clip.path, "import", reason) if reason else StoredClip(clip, stored)


class _Opening(io.BufferedReader):
    """A file that hands out little at once while an archive is being opened: only its list of members is ever long."""

    opening = True

    def read(self, size: int | None = -1) -> bytes:
        if self.opening and (size or 0) > MOST_DIRECTORY:
            raise zipfile.BadZipFile("it lists too many members")
        return super().read(size)
