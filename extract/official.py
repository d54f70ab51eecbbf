"""AVH-Align's official features, an npz file a clip, into shards."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from extract.clips import Failure, inside, near_name, refuse_shared_names
from extract.progress import Progress
from extract.schema import SIMULATED, ClipMeta, InputError, place
from extract.shard_set import ShardSet, merge
from extract.shards import ClipFeatures, ShardWriter, StoredClip, check_features
from extract.stopwatch import Stopwatch


def import_features(
    clips: Sequence[ClipMeta],
    features: str | os.PathLike,
    output: str | os.PathLike,
    dtype: str = "float16",
    width: int = 1024,
    clips_per_shard: int = 256,
) -> dict[str, object]:
    """Packs AVH-Align's npz features (keys `visual` and `audio`, [T, D]) into shards.

    Args:
      clips: the clip list; `a/b.mp4` means the file `a/b.npz`. Whether the set is marked as simulated is decided by
        the first file that can be read; files that differ from it are failures.
      features: folder of the npz files.
      output: folder of the shards; shards that are already there are kept.
      dtype: of the stored features.
      width: D; features of another width are failures.
      clips_per_shard: clips in one shard.

    Returns:
      What `extraction.json` says.

    Raises:
      InputError: there is no such folder, or `output` holds shards of another run.
    """
    if not Path(features).is_dir():
        raise InputError(f"{features}: no such folder of npz features")
    refuse_shared_names(clips)
    settings = {"source": "npz", "dtype": dtype, "clips_per_shard": clips_per_shard}
    marks = (_is_simulated(inside(features, clip.path, ".npz")) for clip in clips)
    simulated = next((mark for mark in marks if mark is not None), False)
    attributes = {"encoder": "imported", "weights_sha256": SIMULATED if simulated else "unknown", "width": width}
    attributes |= {"trimmed": "unknown"}
    attributes["settings"] = json.dumps(settings, sort_keys=True)
    writer = ShardWriter(place(output), dtype, attributes)
    shards = ShardSet(writer, clips, clips_per_shard)
    missing = shards.missing()
    with Progress(len(clips), len(clips) - sum(len(shards.clips_of(shard)) for shard in missing)) as progress:
        for shard in missing:
            listed = shards.clips_of(shard)
            watch = Stopwatch()
            with watch.stage("read"):
                outcomes = [_import_clip(clip, features, width, dtype, simulated) for clip in listed]
            writer.write(shard, listed, outcomes, watch.seconds)
            failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
            frames = sum(len(outcome.features.visual) for outcome in outcomes if not isinstance(outcome, Failure))
            progress.add(len(listed), frames, failed)
    return merge(writer.directory)


def read_npz(path: Path) -> ClipFeatures | str:
    """Official features of one clip, or why there are none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return ClipFeatures(arrays["visual"], arrays["audio"])
    except FileNotFoundError:
        return f"no such file: {path}{near_name(path)}"
    except Exception as error:  # a damaged file can make numpy and zlib raise anything; this clip is then logged
        return f"not a file of npz features ({' '.join(str(error).split())})"


def _is_simulated(path: Path) -> bool | None:
    """Whether a file of features is marked as simulated (launch.demo's are); None if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{SIMULATED}.npy" in archive.namelist()
    except Exception:  # a damaged file can make zipfile raise anything
        return None


def _import_clip(
    clip: ClipMeta, features: str | os.PathLike, width: int, dtype: str, simulated: bool
) -> StoredClip | Failure:
    path = inside(features, clip.path, ".npz")
    found = read_npz(path)
    reason = found if isinstance(found, str) else check_features(found, width, dtype)
    if not reason and _is_simulated(path) != simulated:
        reason = "SIMULATED features among others, or the reverse; import them into a set of their own"
    return Failure(clip.path, "import", reason) if reason else StoredClip(clip, found)
