"""AVH-Align's official features, an npz file a clip, into shards."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import MAX_FRAMES, inside, near_name, refuse_shared_names
from avh_shards.errors import ClipError, Failure, is_passing
from avh_shards.format import SIMULATED
from avh_shards.lists import read_text
from avh_shards.lock import locked
from avh_shards.paths import FilePath, as_path
from avh_shards.text import one_line
from extract.convert.archives import open_archive, read_arrays
from extract.progress import ProgressBar, Stopwatch
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip, check_features
from extract.store.shard_set import SET_SETTINGS, ShardSet, task_lock
from extract.store.summary import ExtractionSummary, merge


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
      output: folder of the shards; shards that are already there are kept, as in `run.local.extract`.
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
            visual, audio = read_arrays(archive, ["visual", "audio"], MAX_FRAMES * width)
            return ClipFeatures(visual, audio), f"{SIMULATED}.npy" in archive.namelist()
    except FileNotFoundError:
        raise ClipError("import", f"no such file: {path}{near_name(path)}", passing=True) from None
    except Exception as error:  # a damaged file can make numpy and zlib raise anything; this clip is then logged
        reason = one_line(f"{type(error).__name__}: {error}"[:200])
        raise ClipError("import", f"not a file of npz features ({reason})") from error


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
