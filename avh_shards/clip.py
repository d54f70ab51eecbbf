"""Metadata of a clip, and the tables that store it in HDF5 files."""

import dataclasses
import itertools
import math
import re
from collections.abc import Container, Sequence

import h5py
import numpy as np
from jaxtyping import Int64

from avh_shards.hdf5 import HDF5File, write_text

FRAME_RATE = 25  # Hz, AV-HuBERT's input rate
SAMPLE_RATE = 16_000  # Hz, of every waveform
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
FULL_SCALE = 32768  # of int16 waveforms: |x| = 1
REAL, FAKE, UNKNOWN = 0, 1, -1  # clip labels

# Columns of /clips with one value per clip, named after the fields of ClipMeta.
TEXT_COLUMNS = ("path", "category", "split", "identity")
NUMBER_COLUMNS = {
    "label": np.int8,
    "leading_silence": np.float32,
    "trimmed_frames": np.int32,
    "face_share": np.float32,
    "several_faces": np.float32,
}
LATER_COLUMNS = ("face_share", "several_faces")  # absent from older files, where they are unknown

# Seconds by which a fake segment may outlast its clip because of rounding, a stream that ends early or trimming.
OVERHANG = 1.0
SPEAKER = re.compile("(?:^|/)(id[0-9]+)/")  # a speaker's folder in VoxCeleb2
TRACK = re.compile("#shot([0-9]+)[.]face([0-9]+)$")  # ending of the key of a face's track


@dataclasses.dataclass(frozen=True, slots=True)  # slots: millions of clips take half the memory
class ClipMeta:
    """Metadata of one clip: everything that is stored about it except its features.

    `category`, `split` and `identity` are "" if unknown. Frames are those at 25 Hz.
    """

    path: str  # key of the clip: relative, unique in its set
    label: int = UNKNOWN  # REAL, FAKE or UNKNOWN
    category: str = ""  # e.g. RealVideo-FakeAudio
    split: str = ""
    identity: str = ""  # of the speaker
    leading_silence: float = math.nan  # seconds in the untrimmed audio; NaN = unknown
    trimmed_frames: int = -1  # frames dropped at the start; -1 = unknown
    segments: tuple[tuple[float, float], ...] = ()  # fake stretches (start, end), seconds in the stored clip
    face_share: float = math.nan  # share of the untrimmed clip's frames with a detected face; NaN = unknown
    several_faces: float = math.nan  # share of these frames with several detected faces; NaN = unknown


def ends_beyond(clip: ClipMeta, frames: int) -> bool:
    """Returns whether a fake segment starts at or after a clip's end, or outlasts the clip by more than OVERHANG.

    This detects times in milliseconds or frames, and segments of another clip.

    Args:
      clip: the clip, whose segments are in seconds.
      frames: its length in frames.
    """
    length = frames / FRAME_RATE
    return any(start >= length or end > length + OVERHANG for start, end in clip.segments)


def write_clip_table(file: h5py.File, clips: Sequence[ClipMeta], offset: Int64[np.ndarray, "borders"]) -> None:
    """Writes the groups /clips and /segments.

    Args:
      file: an HDF5 file that is open for writing.
      clips: the metadata of N clips.
      offset: [N + 1] row at which each clip starts, and the end of the last clip.
    """
    file["clips/offset"] = offset
    for name in TEXT_COLUMNS:
        write_text(file, f"clips/{name}", [getattr(clip, name) for clip in clips])
    for name, dtype in NUMBER_COLUMNS.items():
        file[f"clips/{name}"] = np.array([getattr(clip, name) for clip in clips], dtype=dtype)
    segments = np.array([segment for clip in clips for segment in clip.segments], dtype=np.float64).reshape(-1, 2)
    file["segments/offset"] = offsets([len(clip.segments) for clip in clips])
    file["segments/value"] = np.minimum(segments, np.finfo(np.float32).max).astype(np.float32)


def read_clip_table(file: HDF5File) -> tuple[tuple[ClipMeta, ...], Int64[np.ndarray, "borders"]]:
    """Reads the groups /clips and /segments.

    Returns:
      The metadata of N clips, and the row at which each clip starts followed by the end of the last, [N + 1].

    Raises:
      ValueError: a column is missing or differs in length, an offset does not rise, a text is not printable, a
        segment is not 0 <= start <= end, or a share of frames is not between 0 and 1.
    """
    columns: dict[str, list] = {name: file.text(f"clips/{name}") for name in TEXT_COLUMNS}
    for name, dtype in NUMBER_COLUMNS.items():
        if name in LATER_COLUMNS and f"clips/{name}" not in file:
            continue
        columns[name] = file.array(f"clips/{name}").astype(dtype, casting="safe").tolist()
    offset, segment_offset = (
        file.array(f"{of}/offset").astype(np.int64, casting="safe") for of in ("clips", "segments")
    )
    value = file.array("segments/value").astype(np.float64, casting="safe")
    _check_clip_table(columns, offset, segment_offset, value)
    pieces = itertools.pairwise(segment_offset)
    columns["segments"] = [tuple(map(tuple, value[start:stop].tolist())) for start, stop in pieces]
    for name in LATER_COLUMNS:
        columns.setdefault(name, [math.nan] * (len(offset) - 1))
    return tuple(map(ClipMeta, *(columns[field.name] for field in dataclasses.fields(ClipMeta)))), offset


def _check_clip_table(columns: dict, offset: np.ndarray, segment_offset: np.ndarray, value: np.ndarray) -> None:
    """Raises a ValueError if the parts of a clip table contradict each other."""
    count = len(offset) - 1
    if offset.ndim != 1 or segment_offset.ndim != 1 or value.ndim != 2 or value.shape[1] != 2:
        raise ValueError("/clips/offset, /segments/offset or /segments/value has the wrong shape")
    if any(len(column) != count for column in columns.values()) or len(segment_offset) != count + 1:
        raise ValueError("the columns of /clips have different lengths")
    if len(set(columns["path"])) != count:
        raise ValueError("/clips/path lists a clip twice")
    if not set(columns["label"]) <= {REAL, FAKE, UNKNOWN}:
        raise ValueError("/clips/label holds a value that is not 0, 1 or -1")
    if not all(text.isprintable() for name in TEXT_COLUMNS for text in columns[name]):
        raise ValueError("a text column of /clips holds control characters")
    if offset[0] != 0 or (np.diff(offset) < 1).any():
        raise ValueError("/clips/offset does not rise from 0")
    if segment_offset[0] != 0 or (np.diff(segment_offset) < 0).any() or segment_offset[-1] != len(value):
        raise ValueError("/segments/offset does not match /segments/value")
    if not ((value[:, 0] >= 0) & (value[:, 0] <= value[:, 1]) & (value[:, 1] < np.inf)).all():
        raise ValueError("/segments/value holds a segment that is not 0 <= start <= end")
    shares = (share for name in LATER_COLUMNS for share in columns.get(name, ()))
    if not all(math.isnan(share) or 0 <= share <= 1 for share in shares):
        raise ValueError("/clips/face_share or /clips/several_faces holds a value that is not between 0 and 1")


def offsets(lengths: Sequence[int] | Int64[np.ndarray, " N"]) -> Int64[np.ndarray, "borders"]:
    """Returns the offsets of N consecutive pieces: the start of each, and the end of the last.

    Args:
      lengths: the length of each piece.

    Returns:
      [N + 1] offsets, the first of which is 0.
    """
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def track_key(path: str, shot: int, face: int) -> str:
    """Returns the key of one face in one shot of a video, both counted from 1: "video.mp4#shot3.face2"."""
    return f"{path}#shot{shot}.face{face}"


def track_numbers(key: str) -> tuple[int, int]:
    """Returns shot and face of the key of a track, and (0, 0) for that of a whole video."""
    found = TRACK.search(key)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def video_of(key: str) -> str:
    """Returns the path of the video that a track's key belongs to; the path of a whole video is its own key."""
    return TRACK.sub("", key)


def listed_path(key: str, listed: Container[str]) -> str:
    """Returns the path by which a clip list names the clip with a key: the key itself, or that of the track's video."""
    return key if key in listed else video_of(key)


def speaker_of(path: str) -> str:
    """Returns the VoxCeleb2 speaker, the first folder named idNNNNN in a clip's path, or "" if there is none."""
    found = SPEAKER.search(path)
    return found.group(1) if found else ""
