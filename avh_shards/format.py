"""The feature shard format: names, dtypes and units, and functions that open and validate a shard.

A shard is an HDF5 file with the AV-HuBERT features of N clips, F frames in total, laid end to end. All arrays are
contiguous and uncompressed: local files can be memory-mapped, and remote ones read by byte ranges.
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
UNKNOWN_STATE = "unknown"  # value of the attribute `trimmed` for imported features
RANDOM_WEIGHTS, SIMULATED = "random", "simulated"  # values of weights_sha256, and entries of the note `trained_on`
CAVEATS = {
    RANDOM_WEIGHTS: "RANDOM AV-HuBERT weights: the features and all numbers computed from them are meaningless",
    SIMULATED: "SIMULATED features: numbers made of them show that the programs work, not how well fakes are found",
}
SHARD_PATTERN = "features-*.h5"

# (dtype, shape of an item) of optional contents, in the order of the clips; clip n is value[offset[n]:offset[n+1]].
RAGGED = {"waveform": (np.int16, ()), "crops": (np.uint8, (96, 96))}  # 16 kHz samples; grey mouth crops at 25 Hz
OPTIONAL = ("multimodal", *RAGGED)
FEATURES = ("visual", "audio", "multimodal")
TEXT_ATTRIBUTES = ("encoder", "weights_sha256", "settings", "created_by")


class Variant(enum.Enum):
    """The part of each clip that a set stores; the value names the set's folder if an extraction writes both sets."""

    UNTRIMMED = "untrimmed"  # the whole clip
    TRIMMED = "trimmed"  # the clip from the end of its leading silence


@dataclasses.dataclass(frozen=True)
class ShardTable:
    """The metadata of a shard's clips, and the position of their features in the file."""

    path: FilePath
    size: int  # bytes of the file
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    attributes: Mapping[str, object]
    features: dict[str, Extent]  # visual and audio, [F, D] float16 or float32; multimodal if stored
    ragged: dict[str, tuple[Int64[np.ndarray, "borders"], Extent]]  # offsets and values of waveform and crops if stored

    def extent(self, content: str) -> Extent:
        """Returns the position of an array in the file: features, or the values of all clips end to end."""
        return self.features[content] if content in self.features else self.ragged[content][1]


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Arrays of different lengths, one per clip, stored end to end; `ragged[n]` is that of clip n."""

    offset: Int64[np.ndarray, "borders"]
    value: np.ndarray  # [S, ...], memory-mapped

    def __getitem__(self, clip: int) -> np.ndarray:
        if not 0 <= clip < len(self.offset) - 1:
            raise IndexError(clip)
        return self.value[self.offset[clip] : self.offset[clip + 1]]


@dataclasses.dataclass(frozen=True)
class Shard:
    """An open shard, whose arrays are read from disk only where they are accessed.

    It holds N clips with F frames in total, at 25 Hz. `audio` and `multimodal` (the pass with both modalities) are
    stored like `visual`, and `offset` has N + 1 entries. `attributes` are the root attributes of the file: `encoder`,
    `trimmed`, `settings`, ... Optional contents that the file lacks are None.
    """

    path: Path
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    visual: Float[np.ndarray, "F D"]  # float16 or float32, not normalised
    audio: Float[np.ndarray, "F D"]
    attributes: Mapping[str, object]
    multimodal: Float[np.ndarray, "F D"] | None = None
    waveform: Ragged | None = None  # int16 at 16 kHz, from the start of the stored clip to the end of its sound
    crops: Ragged | None = None  # uint8 [T, 96, 96] per clip

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.visual.shape[1]


def shard_name(shard: int) -> str:
    """Returns the file name of a shard with a number; it matches SHARD_PATTERN."""
    return f"features-{shard:05d}.h5"


def open_shard(path: AnyPath) -> Shard:
    """Opens and validates a local shard.

    Args:
      path: an HDF5 file of shard format 1.

    Returns:
      The shard, with memory-mapped arrays.

    Raises:
      UserError: the file is missing, not local, truncated, inconsistent, or of another format or version.
    """
    path = as_path(path)
    if not isinstance(path, Path):
        raise UserError(f"{path}: cannot be memory-mapped; copy the shard to a local disk")
    table = read_shard_table(path)
    # A single memory map keeps h5py's global lock off the hot path and costs one file descriptor per shard.
    buffer = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Any] = {name: extent.within(buffer) for name, extent in table.features.items()}
    arrays |= {name: Ragged(offset, extent.within(buffer)) for name, (offset, extent) in table.ragged.items()}
    return Shard(path, table.clips, table.offset, attributes=table.attributes, **arrays)


def read_shard_table(path: AnyPath) -> ShardTable:
    """Reads and validates the clip table of a shard, local or at a URL, without its features.

    Raises:
      UserError: the file is missing, truncated, inconsistent, or of another format or version.
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
    """Returns the paths of a folder's shards in order; for the path of a single shard, just that path.

    Raises:
      UserError: `directory` contains no shards.
    """
    folder = reachable(directory)
    if folder.is_file():
        return [folder]
    paths = sorted(folder.glob(SHARD_PATTERN), key=str) if folder.exists() else []
    if not paths:
        raise UserError(f"{folder}: no feature shards ({SHARD_PATTERN}) there; create them with launch.extract")
    return paths


def results_folder(path: AnyPath) -> FilePath:
    """Returns the path of a folder for results, which need not exist.

    Raises:
      UserError: the path is a file, or a folder of shards, to which nothing else is written.
    """
    folder = as_path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name one for the results")
    if folder.exists() and any(folder.glob(SHARD_PATTERN)):
        raise UserError(f"{folder}: holds feature shards; name another folder for the results")
    return folder


def marks(*records: Mapping[str, object]) -> list[str]:
    """Returns the keys of CAVEATS that apply to a number.

    Args:
      records: what the number was computed from: attributes of shards or score files, or notes of weights.
        `weights_sha256` identifies the encoder of the features; `trained_on` lists the marks of the data that weights
        were trained on, separated by commas.
    """
    names = ("weights_sha256", "trained_on")
    found = {mark for record in records for name in names for mark in str(record.get(name, "")).split(",")}
    return [mark for mark in CAVEATS if mark in found]


def caveat(*records: Mapping[str, object]) -> str:
    """Returns the caveat to show with every number computed from these records (see `marks`); "" if none applies."""
    return "; ".join(CAVEATS[mark] for mark in marks(*records))


def marked(name: str, *records: Mapping[str, object]) -> str:
    """Returns a name with the marks of these records (see `marks`), for example "FakeAVCeleb (SIMULATED)"."""
    found = ", ".join(mark.upper() for mark in marks(*records))
    return f"{name} ({found})".lstrip() if found else name


@contextlib.contextmanager
def describing(path: AnyPath) -> Iterator[None]:
    """Converts errors in the contents of an HDF5 file into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a valid avh-align HDF5 file ({one_line(error)})") from error


def check_format(file: HDF5File, name: str, version: int) -> None:
    """Checks the format, version and frame rate of a file.

    Args:
      file: the opened file.
      name: expected value of the attribute `format`.
      version: expected value of the attribute `version`.

    Raises:
      UserError: one of them differs.
    """
    found, number, rate = (file.attributes.get(attribute) for attribute in ("format", "version", "frame_rate"))
    if found != name or number != version:
        raise UserError(
            f"{file.path}: format {found!r} version {number!r}, but this program reads {name!r} version {version}"
        )
    if rate != FRAME_RATE:
        raise UserError(f"{file.path}: {rate!r} frames a second, but this program reads {FRAME_RATE}")


def json_attribute(path: AnyPath, attributes: Mapping[str, object], name: str) -> dict:
    """Parses an attribute that holds a JSON object; returns {} if the attribute is absent.

    Raises:
      UserError: the attribute is not a JSON object.
    """
    try:
        found = json.loads(str(attributes.get(name, "{}")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: its attribute {name!r} is not a JSON object; extract this shard again")
    return found


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Returns the (old, new) values that differ between two nested records, by dotted name; None = absent."""
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
    """Raises a UserError if an attribute of a shard does not conform to the format."""
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
        frames = f"{ragged['crops'][0][-1]} and {offset[-1]} in total"
        raise UserError(f"{path}: /crops and features differ in frames per clip ({frames}); extract this shard again")
