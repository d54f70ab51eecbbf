"""Weight files from untrusted sources: detection of their kind, reading of .safetensors files and of their notes.

The first bytes of a file determine its kind; zip archives also need the last. No content is trusted.
"""

import codecs
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors

from avh_shards.errors import UserError
from avh_shards.paths import GZIP, HDF5, PNG, ZIP, FilePath, local_file
from avh_shards.text import one_line

NOTES = "avh-align"  # metadata key of this project's notes, which record how the weights were trained
MOST_DETAILS = 8  # most mismatched parameters that a message names
MOST_HEADER = 1 << 22  # bytes of names and shapes; the weights of this project need a few thousand

PYTORCH_FILE = "a PyTorch file"
SAFETENSORS_FILE = "a .safetensors file"
PART = 1 << 16  # bytes examined at either end of a file
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # pickled at the start of PyTorch files in the format before torch 1.6
BEGINNINGS = {
    HDF5: "an HDF5 file",
    b"\x93NUMPY": "an .npy file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (`git lfs pull` fetches it)",
    b"GGUF": "a GGUF file",
    GZIP: "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"(\xb5/\xfd": "a zstd archive",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1aE\xdf\xa3": "a video file",  # Matroska, WebM
    b"OggS": "a video or sound file",
    b"FLV\x01": "a video file",
    b"ID3": "a sound file",
    b"fLaC": "a sound file",
    b"\xff\xd8\xff": "a picture",
    PNG: "a picture",
    b"GIF8": "a picture",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
}
RIFF = {b"AVI ": "a video file", b"WAVE": "a sound file", b"WEBP": "a picture"}


def file_kind(path: Path) -> str | None:
    """Returns the kind of a file as a phrase such as PYTORCH_FILE, or None if it is unknown.

    Reads only the ends of the file, which may still be damaged elsewhere.
    """
    with path.open("rb") as file:
        head = file.read(PART)
        size = file.seek(0, 2)
        file.seek(max(size - PART, 0))
        tail = file.read()
    if not size:
        return "an empty file"
    if head.startswith(ZIP):
        return _zip_kind(head, tail)
    if LEGACY_MAGIC.to_bytes(10, "little") in head[:32]:
        return PYTORCH_FILE
    if head[8:9] == b"{" and head[7] == 0:  # the header's length, then the header
        return SAFETENSORS_FILE
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head[4:8] == b"ftyp":  # MP4, QuickTime
        return "a video file"
    if head.startswith(b"RIFF"):
        return RIFF.get(head[8:12])
    if head[257:262] == b"ustar":
        return "a tar archive"
    return _text_kind(head)


@contextlib.contextmanager
def open_safetensors(path: FilePath, framework: str) -> Iterator[safetensors.safe_open]:
    """Opens a .safetensors file without reading its arrays.

    Args:
      path: the file; one at a URL is copied to the local disk while it is open.
      framework: type of the arrays that are read from it, "numpy" or "pt".

    Yields:
      The open file.

    Raises:
      UserError: the file is missing, damaged or of another kind, or reading from it inside the block fails.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    with contextlib.ExitStack() as stack:
        try:
            local = stack.enter_context(local_file(path))
            kind = file_kind(local)
            if kind not in (SAFETENSORS_FILE, None):
                way = "; convert it with launch.convert" if kind == PYTORCH_FILE else ""
                raise UserError(f"{path}: {kind}, but .safetensors weights are expected{way}")
            with local.open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
                size = file.seek(0, 2)
            if header > min(MOST_HEADER, size - 8):
                raise ValueError("it does not begin with a header of names and shapes")
            yield stack.enter_context(safetensors.safe_open(local, framework))
        except UserError:
            raise
        except (OSError, safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a readable .safetensors file ({one_line(str(error)[:500])})") from error


def pack_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """Returns notes as the metadata of a .safetensors file."""
    # A single entry, because safetensors writes several in arbitrary order and equal weights must give equal files.
    return {NOTES: json.dumps(dict(notes))}


def unpack_notes(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the notes in a file's metadata (`method`, `head`, `modality`, ...), each on one line; {} if absent.

    Raises:
      ValueError: the notes are not a JSON object, or are nested too deeply.
    """
    try:
        notes = json.loads((metadata or {}).get(NOTES, "{}"))
        return {name: one_line(text) for name, text in notes.items()}
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"its metadata `{NOTES}` is not a JSON object") from None


def misfits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describes the parameters that are missing, superfluous or of the wrong shape, in the order of their names.

    Args:
      found: the shapes in a file, by name.
      wanted: the expected shapes, by name.

    Returns:
      A phrase for each mismatch, such as "head.bias missing for (1,)".
    """
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'nothing')}" for name in wrong]


def _zip_kind(head: bytes, tail: bytes) -> str:
    """Returns the kind of a zip archive, judged by its first member's name and the directory at its end."""
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length]
    members = first + tail[tail.find(b"PK\x01\x02") :]
    if b"/constants.pkl" in members or b"/code/__torch__" in members:
        return "a TorchScript program"
    if b"/data.pkl" in members:
        return PYTORCH_FILE
    return "an .npz file" if first.endswith(b".npy") else "a zip archive"


def _text_kind(head: bytes) -> str | None:
    start = head.lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return "a web page, not the intended download"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return "a text file" if all(c.isprintable() or c.isspace() for c in text) else None
