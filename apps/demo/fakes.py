"""True clips and cheap fakes as real media files: the picture untouched, the sound own, swapped, shifted or spliced."""

import csv
import json
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from avh_shards import SAMPLE_RATE, as_path, atomic_write
from avh_shards.paths import AnyPath
from extract.media import read_audio
from extract.media.decode import open_media

SHIFTS = (0.2, 0.4, 0.6)  # seconds by which the sound of the first, second, third clip comes late
SPLICE = (0.35, 0.65)  # part of a clip whose sound is another clip's
COLUMNS = ("path", "label", "category", "identity", "fake_segments")  # of the clip list


def make_clips(sources: dict[str, Path], media: AnyPath, clip_list: AnyPath) -> None:
    """Writes four clips for each source, all through the same encoder, and their list.

    Args:
      sources: real clips by name.
      media: folder of the new clips: own.mp4 (real), swapped.mp4, shifted.mp4, spliced.mp4 in a folder a source.
      clip_list: CSV file: path, label, category, identity, fake_segments.
    """
    sounds = {name: read_audio(path) for name, path in sources.items()}
    names, rows = list(sources), []
    for index, name in enumerate(names):
        other = sounds[names[(index + 1) % len(names)]]
        for category, (sound, segments) in _variants(sounds[name], other, SHIFTS[index % len(SHIFTS)]).items():
            path = f"{name}/{category}.mp4"
            _write_clip(sources[name], sound, as_path(media) / path)
            rows.append((path, int(category != "own"), category, name, json.dumps(segments)))
    with atomic_write(clip_list) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *rows])


def _variants(own: Float[np.ndarray, " S"], other: Float[np.ndarray, " R"], shift: float) -> dict[str, tuple]:
    """Category -> (sound, fake segments in seconds)."""
    length, late = len(own), round(shift * SAMPLE_RATE)
    start, stop = (round(part * length) for part in SPLICE)
    spliced = own.copy()
    spliced[start:stop] = np.resize(other, length)[start:stop]
    whole, part = [[0, length / SAMPLE_RATE]], [[start / SAMPLE_RATE, stop / SAMPLE_RATE]]
    return {
        "own": (own, []),
        "swapped": (np.resize(other, length), whole),
        # Rolled, not padded: no silence at the start that would give the fake away.
        "shifted": (np.roll(own, late), whole),
        "spliced": (spliced, part),
    }


def _write_clip(video: Path, sound: Float[np.ndarray, " S"], path: AnyPath) -> None:
    """Copies the video stream of a file and encodes a new sound beside it."""
    with (
        atomic_write(path) as temporary,
        open_media(video) as source,
        av.open(str(temporary), "w", format="mp4") as target,
    ):
        picture = source.streams.best("video")
        copy = target.add_stream_from_template(picture)
        voice = target.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for packet in source.demux(picture):
            if packet.dts is not None:  # the last, empty packet flushes a decoder
                packet.stream = copy
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        target.mux(voice.encode(frame))
        target.mux(voice.encode(None))
