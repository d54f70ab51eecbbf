"""Official files in and out: per-clip npz features -> shards; alignment weights `.pt` <-> `.safetensors`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from extract.clips import Failure, inside, refuse_shared_names
from extract.progress import Progress
from extract.schema import ClipMeta, InputError, check_output, place, whole_file
from extract.shard_set import ShardSet, merge
from extract.shards import ClipFeatures, ShardWriter, StoredClip, check_features
from extract.stopwatch import Stopwatch
from extract.unpickle import load_restricted


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
        return f"no such file: {path}"
    except Exception as error:  # a damaged file can make numpy and zlib raise anything; this clip is then logged
        return f"not a file of npz features ({' '.join(str(error).split())})"


def convert_weights(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Converts alignment weights between an official `.pt` and `.safetensors`, by the files' endings.

    Names and layout stay the official ones. A `.pt` that this writes holds `state_dict` alone.

    Raises:
      InputError: an ending is neither, or the source is missing, damaged, refused, or holds no weights.
    """
    readers = {".pt": _read_official, ".safetensors": _read_safetensors}
    writers = {".pt": _write_official, ".safetensors": _write_safetensors}
    endings = Path(source).suffix, Path(target).suffix
    if not (endings[0] in readers and endings[1] in writers and endings[0] != endings[1]):
        raise InputError(f"cannot convert {source} to {target}: one must end in .pt, the other in .safetensors")
    weights = readers[endings[0]](Path(source))
    check_output(target)
    with whole_file(target) as temporary:
        writers[endings[1]](weights, temporary)


def _import_clip(clip: ClipMeta, features: str | os.PathLike, width: int, dtype: str) -> StoredClip | Failure:
    found = read_npz(inside(features, clip.path, ".npz"))
    reason = found if isinstance(found, str) else check_features(found, width, dtype)
    return Failure(clip.path, "import", reason) if reason else StoredClip(clip, found)


def _read_official(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_restricted(path)
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path}: not an AVH-Align file: it holds no `state_dict`")
    named = all(isinstance(name, str) and name.isascii() for name in weights)
    if not named or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path}: not an AVH-Align file: its `state_dict` holds more than named tensors")
    return {name: value.clone().contiguous() for name, value in weights.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: not a readable .safetensors file ({error})") from error


def _write_safetensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save(weights))


def _write_official(weights: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"state_dict": weights}, file)
