"""Fuzzing of media files: the preparation of a clip returns frames and sound, or a reason."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from avh_shards import ClipMeta
from extract import prepare as clip
from extract.prepare import PrepareSettings, prepare_clip
from tests.fuzz.campaign import campaign
from tests.media import pretended_face, tone, write_media

KINDS = {  # suffix -> codecs
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "pcm_s16le"),
    "mkv": ("libx264", "flac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "pcm_s16le"),
    "ts": ("libx264", "mp2"),
    "flv": ("flv1", "aac"),
    "wav": (None, "pcm_s16le"),
}
HEAD = 2000  # bytes that receive most changes: headers matter more than pictures


@functools.cache
def whole(suffix: str) -> bytes:
    """Returns a small intact file of a kind."""
    video, audio = KINDS[suffix]
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(12)] if video else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"whole.{suffix}"
        write_media(path, frames, sound=tone(0.5, 48000), rate=48000, video_codec=video or "", audio_codec=audio)
        return path.read_bytes()


def damaged(number: int) -> tuple[str, bytes]:
    """Returns the suffix and the bytes of a randomly damaged file."""
    rng = np.random.default_rng(number)
    suffix = list(KINDS)[number % len(KINDS)]
    data = bytearray(whole(suffix))
    for _ in range(rng.integers(1, 6)):
        size = int(rng.choice([HEAD, len(data)]))
        place = int(rng.integers(max(min(size, len(data)) - 8, 1)))
        if rng.random() < 0.3:  # an mp4 file has its index at the end
            place = max(len(data) - 1 - place, 0)
        length = int(rng.choice([1, 2, 4, 8]))
        change = rng.integers(7)
        if change == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif change == 1:
            data[place : place + length] = rng.bytes(length)
        elif change == 2:
            data[place : place + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
        elif change == 3:
            del data[place : place + int(rng.integers(1, 500))]
        elif change == 4:
            part = data[place : place + int(rng.integers(1, 500))]
            data[place:place] = part
        elif change == 5:
            data[place:place] = rng.bytes(length)
        elif rng.random() < 0.2:
            del data[place:]
    return suffix, bytes(data)


def prepare_damaged(number: int) -> None:
    """Prepares a damaged clip without the cost of face detection."""
    clip.FINDERS["dlib-tracked"] = pretended_face
    suffix, data = damaged(number)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"x.{suffix}").write_bytes(data)
        if suffix == "wav":
            roi = Path(folder) / "x_roi.mp4"
            write_media(roi, [np.full((96, 96, 3), k, np.uint8) for k in range(12)])
        settings = PrepareSettings(input="roi" if suffix == "wav" else "media")
        prepared = prepare_clip(ClipMeta(f"x.{suffix}"), folder, settings)
        assert len(prepared.crops) == len(prepared.audio) >= 2
        assert np.isfinite(prepared.audio).all()


def test_whole_files_are_read(monkeypatch):
    monkeypatch.setitem(clip.FINDERS, "dlib-tracked", None)
    monkeypatch.setitem(globals(), "damaged", lambda number: (list(KINDS)[number], whole(list(KINDS)[number])))
    for number in range(len(KINDS)):
        prepare_damaged(number)


def test_damaged_files():
    outcomes = campaign(prepare_damaged, 100)
    assert min(outcomes["read"], outcomes["refused"]) > 5


@pytest.mark.slow
def test_many_damaged_files():
    campaign(prepare_damaged, 10_000, processes=2)
