"""How files begin: which kind a file is, for messages, and whether a command may replace it.

A file's kind shows in its first bytes, and of zip archives in the last. Nothing in a file is trusted.
"""

import codecs
from pathlib import Path

PYTORCH_FILE = "a PyTorch file"
SAFETENSORS_FILE = "a .safetensors file"

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
PNG = b"\x89PNG\r\n\x1a\n"
GZIP = b"\x1f\x8b"
WORKBOOK = b"\xd0\xcf\x11\xe0"  # Excel before 2007
# Patterns of such beginnings, like the above: a command replaces a file only if it is of the kind that it writes.
HTML = rb"<!doctype html>"
SAFETENSORS = rb".{8}\{"  # the length of a JSON header, and the header

PART = 1 << 16  # bytes at either end that are looked at
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens a PyTorch file of the format before torch 1.6, as a pickled number
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
    """Returns what a file is, as a phrase such as PYTORCH_FILE; None if that cannot be told.

    Only a little of the file is read and nothing in it is trusted: it may still be damaged.
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


def _zip_kind(head: bytes, tail: bytes) -> str:
    """The kind of a zip archive, by its first member's name and by the list of members at its end."""
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
        return "a web page, not the file that was to be downloaded"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return "a text file" if all(c.isprintable() or c.isspace() for c in text) else None
