"""A feature shard: names, dtypes, units, and opening one with every promise checked.

A shard is one HDF5 file that holds the AV-HuBERT features of N clips, F frames in all, laid end to end. All arrays are
contiguous and uncompressed, so that a local file is memory-mapped, and any file read by ranges of bytes.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Float, Int64

from extract.schema.clip import FRAME_RATE, ClipMeta, read_clip_table
from extract.schema.files import AnyPath, InputError, Place, place, reachable

FORMAT = "avh-features"
VERSION = 1
RANDOM_WEIGHTS = "random"  # in place of weights_sha256: the features mean nothing
SHARD_PATTERN = "features-*.h5"

# Optional contents, in clips' order; clip n is value[offset[n]:offset[n+1]]: dtype, shape of an item.
RAGGED = {"waveform": (np.int16, ()), "crops": (np.uint8, (96, 96))}  # 16 kHz samples; grey mouth crops at 25 Hz
OPTIONAL = ("multimodal", *RAGGED)
FEATURES = ("visual", "audio", "multimodal")


class Extent(NamedTuple):
    """Where an array lies in its file."""

    start: int  # byte
    dtype: np.dtype
    shape: tuple[int, ...]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """First byte of row `first`, and the byte after row `last - 1`."""
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        return self.start + first * row, self.start + last * row

    def view(self, data: np.ndarray) -> np.ndarray:
        """Bytes of some rows as these rows."""
        return data.view(self.dtype).reshape(-1, *self.shape[1:])

    def within(self, file: np.ndarray) -> np.ndarray:
        """The array, out of the bytes of its whole file."""
        first, last = self.span(0, self.shape[0])
        return self.view(file[first:last])


@dataclasses.dataclass(frozen=True)
class ShardTable:
    """What a shard says of its clips, and where their features lie."""

    path: Place
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    attributes: dict[str, object]
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
    attributes: dict[str, object]
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


def open_shard(path: str | os.PathLike) -> Shard:
    """Opens a local shard and checks that it is whole.

    Args:
      path: an HDF5 file of shard format 1.

    Returns:
      The shard; its arrays are memory-mapped.

    Raises:
      InputError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    path = Path(path)
    with reading(path) as file:
        table = _read_table(file, path)
    # One map a file: h5py's global lock is then off the hot path, and a shard costs one descriptor.
    buffer = np.memmap(path, np.uint8, "r")
    features = {name: extent.within(buffer) for name, extent in table.features.items()}
    ragged = {name: Ragged(offset, extent.within(buffer)) for name, (offset, extent) in table.ragged.items()}
    return Shard(path, table.clips, table.offset, attributes=table.attributes, **features, **ragged)


def read_shard_table(path: AnyPath) -> ShardTable:
    """Reads what a shard, local or at a URL, says of its clips, without its arrays.

    Raises:
      InputError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    with reading(path) as file:
        return _read_table(file, path)


def list_shards(directory: AnyPath) -> list:
    """Paths of a folder's shards in order; a single shard stands for itself.

    Raises:
      InputError: there is no shard at `directory`.
    """
    directory = reachable(directory)
    if directory.is_file():
        return [directory]
    paths = sorted(directory.glob(SHARD_PATTERN), key=str) if directory.exists() else []
    if not paths:
        raise InputError(f"{directory}: no feature shards ({SHARD_PATTERN}) there; make them with launch.extract")
    return paths


def caveat(attributes: dict[str, object]) -> str:
    """What must stand beside every number made from features with these shard attributes; "" for real weights."""
    if attributes.get("weights_sha256") == RANDOM_WEIGHTS:
        return "RANDOM AV-HuBERT weights: the features mean nothing, nor does any number made of them"
    return ""


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[h5py.File]:
    """Opens an HDF5 file, local or at a URL; whatever is missing or damaged in it becomes an InputError.

    A file that draws on others is refused: it could bring any file of this machine into what is made of it.
    """
    path = place(path)
    try:
        with contextlib.ExitStack() as stack:
            source = path if isinstance(path, Path) else stack.enter_context(path.open("rb"))
            file = stack.enter_context(h5py.File(source, "r"))
            _check_inside(file)
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # as h5py raises them
        raise InputError(f"{path}: not a whole HDF5 file of ours ({' '.join(str(error).split())})") from error


def check_format(file: h5py.File, path: object, name: str, version: int) -> None:
    """Refuses a file of another format or version."""
    found, number = file.attrs.get("format"), file.attrs.get("version")
    if found != name or number != version:
        raise InputError(
            f"{path}: format {found!r} version {number}, but this program reads {name!r} version {version}"
        )
    if (rate := file.attrs.get("frame_rate")) != FRAME_RATE:
        raise InputError(f"{path}: {rate} frames a second, but this program reads {FRAME_RATE}")


def read_attributes(file: h5py.File) -> dict[str, object]:
    """A file's attributes as Python's own numbers and texts.

    Raises:
      ValueError: one is an array.
    """
    return {name: getattr(value, "item", lambda v=value: v)() for name, value in file.attrs.items()}


def _check_inside(file: h5py.File) -> None:
    """Raises a ValueError if a link leads into another file, or a dataset is stored in others."""
    names: list[str] = []
    file.visit_links(names.append)
    for name in names:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink | h5py.SoftLink):
            raise ValueError(f"/{name} is a link into another file")
        item = file[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            raise ValueError(f"/{name} is stored in other files")


def _read_table(file: h5py.File, path: AnyPath) -> ShardTable:
    check_format(file, path, FORMAT, VERSION)
    clips, offset = read_clip_table(file)
    attributes = read_attributes(file)
    features = {name: _extent(file[name]) for name in FEATURES if name in file}
    if absent := {"visual", "audio"} - features.keys():
        raise KeyError(f"no /{absent.pop()}")
    _check_features(path, features, int(offset[-1]), attributes.get("width"))
    ragged = {
        name: (file[name]["offset"][:].astype(np.int64, casting="safe"), _extent(file[name]["value"]))
        for name in RAGGED
        if name in file
    }
    _check_ragged(path, ragged, offset)
    return ShardTable(place(path), clips, offset, attributes, features, ragged)


def _check_features(path: AnyPath, features: dict[str, Extent], frames: int, width: object) -> None:
    for name, array in features.items():
        if array.shape != (frames, width) or array.dtype not in (np.float16, np.float32):
            raise InputError(
                f"{path}: /{name} is {array.dtype} {list(array.shape)}, "
                f"but its clips promise float [{frames}, {width}]; extract this shard again"
            )


def _check_ragged(
    path: AnyPath, ragged: dict[str, tuple[np.ndarray, Extent]], offset: Int64[np.ndarray, "borders"]
) -> None:
    for name, (own, extent) in ragged.items():
        if (extent.dtype, extent.shape[1:]) != RAGGED[name] or not _fits(own, len(offset) - 1, extent.shape[0]):
            raise InputError(f"{path}: /{name} does not fit its clips; extract this shard again")
    if "crops" in ragged and not np.array_equal(ragged["crops"][0], offset):
        raise InputError(f"{path}: /crops holds another number of frames than the features; extract it again")


def _fits(offset: Int64[np.ndarray, "borders"], clips: int, values: int) -> bool:
    """Whether offsets rise from 0 to the end of the values, clip by clip."""
    rises = len(offset) == clips + 1 and offset[0] == 0 and (np.diff(offset) >= 0).all()
    return bool(rises and offset[-1] == values)


def _extent(dataset: h5py.Dataset) -> Extent:
    """Where a dataset lies in its file.

    Raises:
      ValueError: it does not lie in one piece.
    """
    start = dataset.id.get_offset()
    if start is None and dataset.size:
        raise ValueError(f"{dataset.name} is stored in chunks, or compressed")
    return Extent(start or 0, dataset.dtype, dataset.shape)
