"""The feature-shard format: names, dtypes, units, and opening a shard with every promise checked.

A shard is one HDF5 file that holds the AV-HuBERT features of N clips, F frames in all, laid end to end. It is the
only thing that the PyTorch side (`extract`) and the JAX side (`jax_avh`) share, so this module needs numpy and h5py
alone (and jaxtyping, for annotations).
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int64

FORMAT = "avh-features"
VERSION = 1
FRAME_RATE = 25  # Hz, AV-HuBERT's input rate
SAMPLE_RATE = 16_000  # Hz, of every waveform
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
REAL, FAKE, UNKNOWN = 0, 1, -1  # clip labels
RANDOM_WEIGHTS = "random"  # in place of weights_sha256: the features mean nothing
SHARD_PATTERN = "features-*.h5"

# Columns of /clips that hold one value a clip, under the names of ClipMeta's fields.
TEXT_COLUMNS = ("path", "category", "split", "identity")
NUMBER_COLUMNS = {"label": np.int8, "leading_silence": np.float32, "trimmed_frames": np.int32}


class InputError(ValueError):
    """The user's mistake, in one sentence: which file or flag, what is wrong, what to do."""


@dataclasses.dataclass(frozen=True)
class ClipMeta:
    """What is known of a clip beside its features."""

    path: str  # key of the clip: relative, unique in its set
    label: int = UNKNOWN  # REAL, FAKE or UNKNOWN
    category: str = ""  # e.g. RealVideo-FakeAudio
    split: str = ""
    identity: str = ""  # of the speaker
    leading_silence: float = math.nan  # seconds, of the untrimmed audio; NaN = unknown
    trimmed_frames: int = -1  # dropped at the start; -1 = unknown
    segments: tuple[tuple[float, float], ...] = ()  # fake stretches, seconds of the stored clip


@dataclasses.dataclass(frozen=True)
class Shard:
    """An open shard. The features are read from disk only where they are touched."""

    path: Path
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is rows offset[n]:offset[n+1]
    visual: Float[np.ndarray, "F D"]  # float16 or float32, not normalised
    audio: Float[np.ndarray, "F D"]
    attributes: dict[str, object]

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.visual.shape[1]


def open_shard(path: str | os.PathLike) -> Shard:
    """Opens a shard and checks that it is whole.

    Args:
      path: an HDF5 file of shard format 1.

    Returns:
      The shard; `visual` and `audio` are memory-mapped arrays [F, D].

    Raises:
      InputError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    path = Path(path)
    with reading(path) as file:
        check_format(file, path, FORMAT, VERSION)
        clips, offset = read_clip_table(file)
        # One map a file: h5py's global lock is then off the hot path, and a shard costs one descriptor.
        buffer = np.memmap(path, np.uint8, "r")
        visual, audio = (_map_array(file[name], buffer) for name in ("visual", "audio"))
        attributes = {name: getattr(value, "item", lambda v=value: v)() for name, value in file.attrs.items()}
    frames, width = int(offset[-1]), attributes.get("width")
    for name, array in (("visual", visual), ("audio", audio)):
        if array.shape != (frames, width) or array.dtype not in (np.float16, np.float32):
            raise InputError(
                f"{path}: /{name} is {array.dtype} {list(array.shape)}, "
                f"but its clips promise float [{frames}, {width}]; extract this shard again"
            )
    return Shard(path, clips, offset, visual, audio, attributes)


def list_shards(directory: str | os.PathLike) -> list[Path]:
    """Paths of a folder's shards in order; a single shard stands for itself.

    Raises:
      InputError: there is no shard at `directory`.
    """
    directory = Path(directory)
    if directory.is_file():
        return [directory]
    paths = sorted(directory.glob(SHARD_PATTERN))
    if not paths:
        raise InputError(f"{directory}: no feature shards ({SHARD_PATTERN}) there; make them with launch.extract")
    return paths


def caveat(attributes: dict[str, object]) -> str:
    """What must stand beside every number made from features with these shard attributes; "" for real weights."""
    if attributes.get("weights_sha256") == RANDOM_WEIGHTS:
        return "RANDOM AV-HuBERT weights: the features mean nothing, nor does any number made of them"
    return ""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading; whatever is missing or damaged in it becomes an InputError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # as h5py raises them
        raise InputError(f"{path}: not a whole HDF5 file of ours ({' '.join(str(error).split())})") from error


def check_format(file: h5py.File, path: Path, name: str, version: int) -> None:
    """Refuses a file of another format or version."""
    found, number = file.attrs.get("format"), file.attrs.get("version")
    if found != name or number != version:
        raise InputError(
            f"{path}: format {found!r} version {number}, but this program reads {name!r} version {version}"
        )
    if (rate := file.attrs.get("frame_rate")) != FRAME_RATE:
        raise InputError(f"{path}: {rate} frames a second, but this program reads {FRAME_RATE}")


def write_clip_table(file: h5py.File, clips: Sequence[ClipMeta], offset: Int64[np.ndarray, "borders"]) -> None:
    """Writes /clips and /segments."""
    group = file.create_group("clips")
    group["offset"] = offset
    for name in TEXT_COLUMNS:
        column = np.array([getattr(clip, name) for clip in clips], dtype=object)
        group.create_dataset(name, data=column, dtype=h5py.string_dtype())
    for name, dtype in NUMBER_COLUMNS.items():
        group[name] = np.array([getattr(clip, name) for clip in clips], dtype=dtype)
    segments = [segment for clip in clips for segment in clip.segments]
    file["segments/offset"] = offsets([len(clip.segments) for clip in clips])
    file["segments/value"] = np.array(segments, dtype=np.float32).reshape(-1, 2)


def read_clip_table(file: h5py.File) -> tuple[tuple[ClipMeta, ...], Int64[np.ndarray, "borders"]]:
    """Reads /clips and /segments: the clips and their offset [N+1].

    Raises:
      ValueError: a column has another length than the others, or an offset does not rise.
    """
    group, segments = file["clips"], file["segments"]
    columns = {name: group[name].asstr()[:] for name in TEXT_COLUMNS}
    columns |= {name: group[name][:].astype(dtype, casting="safe").tolist() for name, dtype in NUMBER_COLUMNS.items()}
    offset, segment_offset = (table["offset"][:].astype(np.int64, casting="safe") for table in (group, segments))
    value = segments["value"][:].astype(np.float64, casting="safe")
    _check_clip_table(columns, offset, segment_offset, value)
    rows = zip(*columns.values(), strict=True)
    return tuple(
        ClipMeta(
            **dict(zip(columns, row, strict=True)),
            segments=tuple(map(tuple, value[segment_offset[n] : segment_offset[n + 1]].tolist())),
        )
        for n, row in enumerate(rows)
    ), offset


def _check_clip_table(columns: dict, offset: np.ndarray, segment_offset: np.ndarray, value: np.ndarray) -> None:
    """Raises a ValueError if the parts of a clip table contradict each other."""
    count = len(offset) - 1
    if offset.ndim != 1 or segment_offset.ndim != 1 or value.ndim != 2 or value.shape[1] != 2:
        raise ValueError("/clips/offset, /segments/offset or /segments/value has another shape")
    if any(len(column) != count for column in columns.values()) or len(segment_offset) != count + 1:
        raise ValueError("the columns of /clips have different lengths")
    if len(set(columns["path"])) != count:
        raise ValueError("/clips/path names a clip twice")
    if any("\0" in text for name in TEXT_COLUMNS for text in columns[name]):
        raise ValueError("a text of /clips holds a zero byte")
    if offset[0] != 0 or (np.diff(offset) < 1).any():
        raise ValueError("/clips/offset does not rise from 0")
    if segment_offset[0] != 0 or (np.diff(segment_offset) < 0).any() or segment_offset[-1] != len(value):
        raise ValueError("/segments/offset does not fit /segments/value")


def offsets(lengths: Sequence[int] | Int64[np.ndarray, " N"]) -> Int64[np.ndarray, "borders"]:
    """Start of each of N pieces laid end to end, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def check_output(path: str | os.PathLike) -> None:
    """Makes the folder of an output file; refuses, before any work is done, a place where no file can be.

    Raises:
      InputError: the path is a folder or a device, or its folder cannot be made.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a folder or a device; name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path; the file written there gets the name `path` only when the block ends well."""
    path = Path(path)
    check_output(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _map_array(dataset: h5py.Dataset, buffer: np.memmap) -> np.ndarray:
    """A contiguous dataset as a view of its mapped file."""
    if not Path(dataset.file.filename).samefile(buffer.filename):
        raise ValueError(f"{dataset.name} is a link into another file")
    start = dataset.id.get_offset()
    if start is None:  # empty, or not contiguous: some other writer made this file
        return dataset[:]
    return buffer[start : start + dataset.nbytes].view(dataset.dtype).reshape(dataset.shape)
