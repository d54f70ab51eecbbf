"""A feature shard: names, dtypes, units, and opening one with every promise checked.

A shard is one HDF5 file that holds the AV-HuBERT features of N clips, F frames in all, laid end to end. All arrays are
contiguous and uncompressed, so that a local file is memory-mapped, and any file read by ranges of bytes.
"""

import contextlib
import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from avh_shards.clip import FRAME_RATE, ClipMeta, read_clip_table
from avh_shards.errors import UserError
from avh_shards.hdf5 import Extent, HDF5File, open_hdf5
from avh_shards.paths import AnyPath, FilePath, as_path, reachable
from avh_shards.text import one_line

SHARD_FORMAT = "avh-features"
SHARD_VERSION = 1
UNKNOWN_STATE = "unknown"  # as the attribute `trimmed` of imported features
RANDOM_WEIGHTS, SIMULATED = "random", "simulated"  # in place of weights_sha256, and in a note `trained_on`
CAVEATS = {
    RANDOM_WEIGHTS: "RANDOM AV-HuBERT weights: the features mean nothing, nor does any number made of them",
    SIMULATED: "SIMULATED features: numbers made of them show that the programs work, not how well fakes are found",
}
SHARD_PATTERN = "features-*.h5"

# Optional contents, in clips' order; clip n is value[offset[n]:offset[n+1]]: dtype, shape of an item.
RAGGED = {"waveform": (np.int16, ()), "crops": (np.uint8, (96, 96))}  # 16 kHz samples; grey mouth crops at 25 Hz
OPTIONAL = ("multimodal", *RAGGED)
FEATURES = ("visual", "audio", "multimodal")
TEXT_ATTRIBUTES = ("encoder", "weights_sha256", "settings", "created_by")


class Variant(enum.Enum):
    """What a set stores of its clips; the value names its folder, where both sets of an extraction are made."""

    UNTRIMMED = "untrimmed"  # all of it
    TRIMMED = "trimmed"  # from the end of the leading silence


@dataclasses.dataclass(frozen=True)
class ShardTable:
    """What a shard says of its clips, and where their features lie."""

    path: FilePath
    size: int  # bytes of the file
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    attributes: Mapping[str, object]
    features: dict[str, Extent]  # visual and audio, [F, D] float16 or float32; multimodal if stored
    ragged: dict[str, tuple[Int64[np.ndarray, "borders"], Extent]]  # offset and values of waveform and crops, if stored

    def extent(self, content: str) -> Extent:
        """Where one of its arrays lies: features, or the values of all clips end to end."""
        return self.features[content] if content in self.features else self.ragged[content][1]


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Arrays of different lengths, one a clip, end to end."""

    offset: Int64[np.ndarray, "borders"]
    value: np.ndarray  # [S, ...], memory-mapped

    def __getitem__(self, clip: int) -> np.ndarray:
        if not 0 <= clip < len(self.offset) - 1:
            raise IndexError(clip)
        return self.value[self.offset[clip] : self.offset[clip + 1]]


@dataclasses.dataclass(frozen=True)
class Shard:
    """An open shard. Arrays are read from disk only where they are touched."""

    path: Path
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    visual: Float[np.ndarray, "F D"]  # float16 or float32, not normalised
    audio: Float[np.ndarray, "F D"]
    attributes: Mapping[str, object]
    multimodal: Float[np.ndarray, "F D"] | None = None
    waveform: Ragged | None = None  # int16 at 16 kHz, from the stored clip's start to the end of its sound
    crops: Ragged | None = None  # uint8 [T, 96, 96] a clip

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.visual.shape[1]


def shard_name(shard: int) -> str:
    """File name of a shard of a set, by its number; SHARD_PATTERN finds them all."""
    return f"features-{shard:05d}.h5"


def open_shard(path: AnyPath) -> Shard:
    """Opens a local shard and checks that it is whole.

    Args:
      path: an HDF5 file of shard format 1.

    Returns:
      The shard; its arrays are memory-mapped.

    Raises:
      UserError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    path = Path(str(path))
    table = read_shard_table(path)
    # One map a file: h5py's global lock is then off the hot path, and a shard costs one descriptor.
    buffer = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Any] = {name: extent.within(buffer) for name, extent in table.features.items()}
    arrays |= {name: Ragged(offset, extent.within(buffer)) for name, (offset, extent) in table.ragged.items()}
    return Shard(path, table.clips, table.offset, attributes=table.attributes, **arrays)


def read_shard_table(path: AnyPath) -> ShardTable:
    """Reads what a shard, local or at a URL, says of its clips, without its arrays.

    Raises:
      UserError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    file = open_hdf5(path)
    check_format(file, SHARD_FORMAT, SHARD_VERSION)
    _check_attributes(path, file.attributes)
    with describing(path):
        clips, offset = read_clip_table(file)
        features = {name: file.extents[name] for name in FEATURES if name in file.extents}
        if absent := {"visual", "audio"} - features.keys():
            raise ValueError(f"no array /{absent.pop()}")
        _check_features(path, features, int(offset[-1]), file.attributes.get("width"))
        ragged = {
            name: (file.array(f"{name}/offset").astype(np.int64, casting="safe"), file.extents[f"{name}/value"])
            for name in RAGGED
            if f"{name}/value" in file
        }
        _check_ragged(path, ragged, offset)
    return ShardTable(file.path, file.size, clips, offset, file.attributes, features, ragged)


def list_shards(directory: AnyPath) -> list[FilePath]:
    """Paths of a folder's shards in order; a single shard stands for itself.

    Raises:
      UserError: `directory` holds no shard.
    """
    folder = reachable(directory)
    if folder.is_file():
        return [folder]
    paths = sorted(folder.glob(SHARD_PATTERN), key=str) if folder.exists() else []
    if not paths:
        raise UserError(f"{folder}: no feature shards ({SHARD_PATTERN}) there; make them with launch.extract")
    return paths


def results_folder(path: AnyPath) -> FilePath:
    """The place of a folder for results, which may be new.

    Raises:
      UserError: it is a file, or holds shards, beside which nothing else is written.
    """
    folder = as_path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name one for the results")
    if folder.exists() and any(folder.glob(SHARD_PATTERN)):
        raise UserError(f"{folder}: holds feature shards; name another folder for the results")
    return folder


def marks(*records: Mapping[str, object]) -> list[str]:
    """Returns which of CAVEATS apply to a number.

    Args:
      records: what it was made from: attributes of shards or score files, notes of weights. `weights_sha256` names the
        encoder of the features; `trained_on` holds the marks of weights' training, separated by commas.
    """
    names = ("weights_sha256", "trained_on")
    found = {mark for record in records for name in names for mark in str(record.get(name, "")).split(",")}
    return [mark for mark in CAVEATS if mark in found]


def caveat(*records: Mapping[str, object]) -> str:
    """Returns what must accompany every number made from these (see `marks`); "" for features of real weights."""
    return "; ".join(CAVEATS[mark] for mark in marks(*records))


def marked(name: str, *records: Mapping[str, object]) -> str:
    """Returns a name as it may appear next to numbers made from these (see `marks`): "FakeAVCeleb (SIMULATED)"."""
    found = ", ".join(mark.upper() for mark in marks(*records))
    return f"{name} ({found})".lstrip() if found else name


@contextlib.contextmanager
def describing(path: AnyPath) -> Iterator[None]:
    """Turns errors in the contents of one of our files into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole HDF5 file of ours ({one_line(error)})") from error


def check_format(file: HDF5File, name: str, version: int) -> None:
    """Raises a UserError for a file of another format or version."""
    found, number, rate = (file.attributes.get(attribute) for attribute in ("format", "version", "frame_rate"))
    if found != name or number != version:
        raise UserError(
            f"{file.path}: format {found!r} version {number!r}, but this program reads {name!r} version {version}"
        )
    if rate != FRAME_RATE:
        raise UserError(f"{file.path}: {rate!r} frames a second, but this program reads {FRAME_RATE}")


def json_attribute(path: AnyPath, attributes: Mapping[str, object], name: str) -> dict:
    """Returns an attribute that is a JSON object; {} if there is none of this name.

    Raises:
      UserError: it is not a JSON object.
    """
    try:
        found = json.loads(str(attributes.get(name, "{}")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: its attribute {name!r} is not a JSON object; extract this shard again")
    return found


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Returns what two nested records hold differently, old and new, by dotted names; None = absent."""
    found: dict[str, tuple[object, object]] = {}
    for name in dict.fromkeys([*old, *new]):
        one = old.get(name)
        other = new.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= {f"{name}.{inner}": values for inner, values in differences(one, other).items()}
        elif one != other:
            found[name] = (one, other)
    return found


def _check_attributes(path: AnyPath, attributes: Mapping[str, object]) -> None:
    """Raises a UserError if an attribute of a shard is not what the format says."""
    fits = {name: isinstance(text := attributes.get(name, ""), str) and text.isprintable() for name in TEXT_ATTRIBUTES}
    fits["width"] = type(width := attributes.get("width")) is int and width > 0
    fits["trimmed"] = attributes.get("trimmed") in (True, False, UNKNOWN_STATE, None)
    if wrong := [name for name, fit in fits.items() if not fit]:
        found = attributes.get(wrong[0])
        raise UserError(f"{path}: its attribute {wrong[0]!r} is {found!r}; extract this shard again")
    json_attribute(path, attributes, "settings")
    seconds = json_attribute(path, attributes, "seconds")
    if any(type(value) not in (int, float) for value in seconds.values()):
        raise UserError(f"{path}: its attribute 'seconds' holds more than numbers; extract this shard again")


def _check_features(path: AnyPath, features: dict[str, Extent], frames: int, width: object) -> None:
    for name, array in features.items():
        if array.shape != (frames, width) or array.dtype not in (np.float16, np.float32):
            raise UserError(
                f"{path}: /{name} is {array.dtype} {list(array.shape)}, "
                f"but its clips promise float [{frames}, {width}]; extract this shard again"
            )


def _check_ragged(
    path: AnyPath, ragged: dict[str, tuple[np.ndarray, Extent]], offset: Int64[np.ndarray, "borders"]
) -> None:
    for name, (own, extent) in ragged.items():
        rises = len(own) == len(offset) and own[0] == 0 and (np.diff(own) >= 0).all()
        if (extent.dtype, extent.shape[1:]) != RAGGED[name] or not rises or own[-1] != extent.shape[0]:
            raise UserError(f"{path}: /{name} does not fit its clips; extract this shard again")
    if "crops" in ragged and not np.array_equal(ragged["crops"][0], offset):
        frames = f"{ragged['crops'][0][-1]}, not {offset[-1]}"
        raise UserError(f"{path}: /crops holds another number of frames than the features: {frames}; extract it again")
