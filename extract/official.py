"""AVH-Align's official features, an npz file a clip, into shards."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from extract.clips import Failure, inside, near_name, refuse_shared_names
from extract.progress import Progress
from extract.schema import ClipMeta, InputError, place
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
      clips: the clip list; `a/b.mp4` means the file `a/b.npz`.
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
    attributes = {"encoder": "imported", "weights_sha256": "unknown", "width": width, "trimmed": "unknown"}
    attributes["settings"] = json.dumps(settings, sort_keys=True)
    writer = ShardWriter(place(output), dtype, attributes)
    shards = ShardSet(writer, clips, clips_per_shard)
    missing = shards.missing()
    with Progress(len(clips), len(clips) - sum(len(shards.clips_of(shard)) for shard in missing)) as progress:
        for shard in missing:
            listed = shards.clips_of(shard)
            watch = Stopwatch()
            with watch.stage("read"):
                outcomes = [_import_clip(clip, features, width, dtype) for clip in listed]
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


def _import_clip(clip: ClipMeta, features: str | os.PathLike, width: int, dtype: str) -> StoredClip | Failure:
    found = read_npz(inside(features, clip.path, ".npz"))
    reason = found if isinstance(found, str) else check_features(found, width, dtype)
    return Failure(clip.path, "import", reason) if reason else StoredClip(clip, found)
