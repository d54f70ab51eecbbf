"""Media files from real encoders for tests; the length of a bar in each frame shows its time, the sound is a tone."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from extract.face.landmarks import CountingFinder
from extract.media import read_video

CLOCK = 1000  # ticks per second of the video's timestamps
POINTS = np.random.default_rng(0).uniform(5, 40, (68, 2))


def tone(seconds: float, rate: int = 16000, silence: float = 0.0, channels: int = 1) -> np.ndarray:
    """Returns a 440 Hz tone [channels, S], float32, after some silence."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) * (time >= silence)
    return np.tile(wave.astype(np.float32), (channels, 1))


def ramp(times: list[float]) -> list[np.ndarray]:
    """Returns a frame for each time with a white bar from the left, 100 pixels long per second."""
    frames = np.zeros((len(times), 16, 1024, 3), np.uint8)
    for frame, time in zip(frames, times, strict=True):
        frame[:, : round(100 * time)] = 255
    return list(frames)


def shown_times(frames: np.ndarray) -> np.ndarray:
    """Returns the time that each decoded frame of a ramp shows, to 0.01 s."""
    return (frames[..., 0] > 127).sum(axis=2).mean(axis=1) / 100


def read_frames(path: Path, fps_policy: str = "resample") -> np.ndarray:
    """Returns all frames of a video, [T, H, W, 3]."""
    return read_video(path, fps_policy)


def pretended_face() -> CountingFinder:
    """Returns a finder that reports the same face in every picture, at no cost."""
    counts: list[int] = []

    def look(frame: np.ndarray) -> np.ndarray:
        counts.append(1)
        return POINTS

    return CountingFinder(look, counts)


def write_media(
    path: Path,
    frames: list[np.ndarray] | None = None,
    times: list[float] | None = None,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    sound_start: float = 0.0,
    sound_first: bool = False,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
) -> Path:
    """Encodes frames (shown at `times`, by default 25 per second) and a sound [C, S]."""
    with av.open(str(path), "w") as container:
        streams = {}
        for kind in ("sound", "frames") if sound_first else ("frames", "sound"):
            if kind == "frames" and frames is not None:
                streams[kind] = _video_stream(container, frames[0].shape, video_codec)
            if kind == "sound" and sound is not None:
                layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
                streams[kind] = container.add_stream(audio_codec, rate=rate, layout=layout)
        if frames is not None:
            _encode_frames(container, streams["frames"], frames, times or [k / 25 for k in range(len(frames))])
        if sound is not None:
            _encode_sound(container, streams["sound"], sound, rate, sound_start)
    return path


def _video_stream(container, shape, codec):
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK)
    if codec == "libx264":
        stream.options = {"crf": "0", "preset": "ultrafast"}
    return stream


def _encode_frames(container, stream, frames, times):
    for picture, time in zip(frames, times, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time * CLOCK), Fraction(1, CLOCK)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode_sound(container, stream, sound, rate, start):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
    for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def rotate(path: Path, turned: Path, orientation: tuple[int, int, int, int] = (0, 1, -1, 0)) -> Path:
    """Copies an mp4 and sets its first track's matrix: (x, y) is shown at (a x + c y, b x + d y).

    By default that is a quarter turn clockwise.
    """
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    version = data[place]
    matrix = place + 4 + (32 if version else 20) + 16
    a, b, c, d = (value << 16 for value in orientation)
    values = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    for k, value in enumerate(values):
        data[matrix + 4 * k : matrix + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    turned.write_bytes(data)
    return turned
