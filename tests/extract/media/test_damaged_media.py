"""One run over a folder of odd and damaged media: each has features or a logged reason, as the table says."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from avh_shards import ClipMeta, open_shard
from extract.media import iterate_video
from extract.run.job import ExtractSettings, Job, extract
from extract.store.shard import ClipFeatures, read_failures
from tests.media import rotate, tone, write_media

LENGTH = 24  # frames of most clips
CUT = "cannot be decoded|cut short|no video stream|no frame|no samples|no audio stream"
CUT_OR_NOTHING = f"{CUT}|no such|shorter than 2 frames"
NOT_MEDIA = "cannot be decoded"


@dataclasses.dataclass(frozen=True)
class Material:
    """Raw material of the clips."""

    folder: Path
    face: list[np.ndarray]  # more than a second of a real speaker, 288x352
    other: list[np.ndarray]  # another speaker, resized to the same size
    two_faces: Path

    def write(self, name: str, **options) -> Path:
        """Encodes the speaker with a tone by default; other options are passed to `write_media`."""
        defaults = {"frames": self.face[:LENGTH], "sound": tone(LENGTH / 25)}
        return write_media(self.folder / name, **(defaults | options))


Make = Callable[[Material, str], object]
TABLE: dict[str, tuple[Make, range | str | None]] = {}  # name -> maker; frames or reason; None = both


def written(**options) -> Make:
    return lambda material, name: material.write(name, **options)


def fast_start(material: Material, name: str, part: float = 1.0, first: bool = True) -> None:
    """Remuxes a clip with its index first or last, and keeps only `part` of its bytes."""
    whole = material.write(f"whole_{name}", sound=SOUND_44, rate=44100)
    with (
        av.open(str(whole)) as source,
        av.open(
            str(material.folder / name), "w", format="mp4", options={"movflags": "faststart"} if first else {}
        ) as target,
    ):
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                target.mux(packet)
    whole.unlink()
    data = (material.folder / name).read_bytes()
    (material.folder / name).write_bytes(data[: int(part * len(data))])


def raw(data: bytes) -> Make:
    return lambda material, name: (material.folder / name).write_bytes(data)


def changed(change: Callable[[bytes], bytes]) -> Make:
    def make(material: Material, name: str) -> None:
        path = material.write(name)
        path.write_bytes(change(path.read_bytes()))

    return make


def pictures(change: Callable[[list[np.ndarray]], list[np.ndarray]], **options) -> Make:
    def make(material: Material, name: str) -> None:
        frames = change(material.face[:LENGTH])
        material.write(name, **({"frames": frames, "sound": tone(max(len(frames), 2) / 25)} | options))

    return make


def resized(width: int, height: int, count: int = LENGTH, **options) -> Make:
    return pictures(lambda frames: [cv2.resize(frame, (width, height)) for frame in frames[:count]], **options)


def timed(rate: float, count: int = LENGTH) -> Make:
    """Shows the speaker's frames at a different rate."""
    return (
        written(frames=None, times=None)
        if not rate
        else lambda material, name: material.write(
            name, frames=material.face[:count], times=[k / rate for k in range(count)], sound=tone(count / rate)
        )
    )


def renamed(suffix: str, **options) -> Make:
    """Writes a file of one kind under the suffix of another."""
    return lambda material, name: material.write(f"{name}{suffix}", **options).rename(material.folder / name)


def flipped_bytes(data: bytes) -> bytes:
    damaged = bytearray(data)
    for place in np.random.default_rng(0).integers(len(data) // 4, 3 * len(data) // 4, 200):
        damaged[place] ^= 0xFF
    return bytes(damaged)


def panned(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Moves the face out of the picture to the left, halfway through."""
    return [
        np.hstack([frame[:, shift:], np.zeros_like(frame[:, :shift])])
        for frame, shift in zip(frames, [0] * 12 + [350] * 12, strict=True)
    ]


def silent_noise(material: Material, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (LENGTH, 96, 128, 3), dtype=np.uint8)
    material.write(name, frames=list(noise))


def two_sounds(material: Material, name: str) -> None:
    """Adds a silent second sound track; the first is better."""
    whole = material.write(f"whole_{name}")
    with av.open(str(whole)) as source, av.open(str(material.folder / name), "w") as target:
        kinds = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        second = target.add_stream("aac", rate=16000, layout="mono")
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = kinds[packet.stream]
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        for part in (
            *av.AudioResampler(format="fltp", layout="mono", rate=16000, frame_size=1024).resample(frame),
            None,
        ):
            target.mux(second.encode(part))
    whole.unlink()


def turned(material: Material, name: str) -> None:
    """Stores the video on its side with the rotation in its header; players show it upright."""
    side = [np.ascontiguousarray(np.rot90(frame)) for frame in material.face[:LENGTH]]
    rotate(material.write(f"side_{name}", frames=side), material.folder / name)
    (material.folder / f"side_{name}").unlink()


FULL = range(LENGTH - 1, LENGTH + 2)  # frames: encoders pad sound, timestamps round
NEAR = range(LENGTH - 3, LENGTH + 4)  # where containers count in coarser ticks
SOUND_44 = tone(LENGTH / 25, rate=44100)
for tenth in range(1, 10):
    TABLE[f"index_last_cut_{tenth}.mp4"] = (lambda m, n, t=tenth: fast_start(m, n, t / 10, first=False), NOT_MEDIA)
    TABLE[f"index_first_cut_{tenth}.mp4"] = (lambda m, n, t=tenth: fast_start(m, n, t / 10), CUT)
    TABLE[f"matroska_cut_{tenth}.mkv"] = (changed(lambda data, t=tenth: data[: t * len(data) // 10]), CUT_OR_NOTHING)
TABLE |= {
    "index_first.mp4": (fast_start, FULL),
    "index_last.mp4": (lambda m, n: fast_start(m, n, first=False), FULL),
    "no_index.mp4": (changed(lambda data: data.replace(b"moov", b"xxxx")), NOT_MEDIA),
    "flipped_bytes.mp4": (changed(flipped_bytes), None),
    "zero_bytes.mp4": (raw(b""), NOT_MEDIA),
    "zeros.mp4": (raw(b"\0" * 5000), NOT_MEDIA),
    "head_only.mp4": (raw(b"\0\0\0\x18ftypmp42"), NOT_MEDIA),
    "text.mp4": (raw(b"this is no film\n" * 99), NOT_MEDIA),
    "list_of_files.mp4": (raw(b"ffconcat version 1.0\nfile index_first.mp4\n"), "is a list of other files"),
    "page.mp4": (raw(b"<html><body>404 Not Found</body></html>"), NOT_MEDIA),
    "archive.mp4": (raw(b"PK\x03\x04" + b"\0" * 500), NOT_MEDIA),
    "picture.mp4": (
        lambda m, n: cv2.imwrite(str(m.folder / "p.png"), m.face[0]) and (m.folder / "p.png").rename(m.folder / n),
        "no audio stream",
    ),
    "folder.mp4": (lambda m, n: (m.folder / n).mkdir(), "no such file"),
    "dangling.mp4": (lambda m, n: (m.folder / n).symlink_to("nowhere"), "no such file"),
    "missing.mp4": (lambda m, n: None, "no such file"),
    "wrong_name.txt": (renamed(".mp4"), FULL),
    "mkv_named.mp4": (renamed(".mkv"), FULL),
    "wav_named.mp4": (renamed(".wav", frames=None, audio_codec="pcm_s16le"), "no video stream"),
    "Ünïcode näme (1) 'x'.mp4": (written(), FULL),
    "vp9_opus.webm": (
        written(video_codec="libvpx-vp9", audio_codec="libopus", sound=tone(LENGTH / 25, rate=48000), rate=48000),
        FULL,
    ),
    "mpeg4_mp3.avi": (written(video_codec="mpeg4", audio_codec="libmp3lame"), NEAR),
    "mpeg4_pcm.mov": (written(video_codec="mpeg4", audio_codec="pcm_s16le"), FULL),
    "h264_aac.flv": (written(sound=SOUND_44, rate=44100), NEAR),
    "h264_aac.ts": (written(sound=SOUND_44, rate=44100), NEAR),
    "wmv2_mp3.avi": (written(video_codec="wmv2", audio_codec="libmp3lame"), NEAR),
    "flv1_mp3.flv": (written(video_codec="flv1", audio_codec="libmp3lame", sound=SOUND_44, rate=44100), NEAR),
    "hevc.mp4": (written(video_codec="libx265"), FULL),
    "ffv1_flac.mkv": (written(video_codec="ffv1", audio_codec="flac"), FULL),
    "one_pixel.mkv": (resized(1, 1, video_codec="ffv1"), "no face found"),
    "sixteen_pixels.mp4": (resized(16, 16), "no face found"),
    "odd_size.mkv": (resized(353, 289, video_codec="ffv1"), FULL),
    "large_4000x3000.mp4": (resized(4000, 3000, 3, video_codec="mpeg4"), range(2, 5)),
    "rate_1.mp4": (timed(1, 3), range(50, 77)),
    "rate_10.mp4": (timed(10, 12), range(28, 32)),
    "rate_120.mp4": (timed(120, 36), range(6, 10)),
    "rate_varies.mp4": (lambda m, n: m.write(n, times=list(np.cumsum([0.02, 0.07] * (LENGTH // 2)) - 0.02)), FULL),
    "sound_8_khz.mkv": (written(sound=tone(LENGTH / 25, rate=8000), rate=8000, audio_codec="pcm_s16le"), FULL),
    "sound_96_khz.mkv": (written(sound=tone(LENGTH / 25, rate=96000), rate=96000, audio_codec="pcm_s16le"), FULL),
    "sound_22_khz.mp4": (written(sound=tone(LENGTH / 25, rate=22050), rate=22050), FULL),
    "sound_5_1.mp4": (written(sound=tone(LENGTH / 25, rate=48000, channels=6), rate=48000), FULL),
    "sound_stereo.mp4": (written(sound=tone(LENGTH / 25, rate=48000, channels=2), rate=48000), FULL),
    "sound_shorter.mp4": (written(sound=tone(0.4)), range(9, 13)),
    "sound_longer.mp4": (written(sound=tone(3.0)), FULL),
    "sound_late.mkv": (written(sound_start=0.4, audio_codec="pcm_s16le"), FULL),
    "sound_first.mkv": (written(sound_first=True, audio_codec="pcm_s16le"), FULL),
    "sound_clipped.mkv": (written(sound=np.sign(tone(LENGTH / 25)), audio_codec="pcm_s16le"), FULL),
    "two_sounds.mp4": (two_sounds, FULL),
    "silent.mp4": (written(sound=np.zeros((1, 16000), np.float32)), "silent audio"),
    "no_sound.mp4": (written(sound=None), "no audio stream"),
    "no_picture.mp4": (written(frames=None), "no video stream"),
    "one_frame.mkv": (pictures(lambda frames: frames[:1], audio_codec="pcm_s16le"), "shorter than 2 frames"),
    "two_frames.mkv": (pictures(lambda frames: frames[:2], audio_codec="pcm_s16le"), range(2, 3)),
    "turned.mp4": (turned, FULL),
    "upside_down.mp4": (pictures(lambda frames: [frame[::-1].copy() for frame in frames]), None),
    "dark.mp4": (pictures(lambda frames: [frame // 8 for frame in frames]), None),
    "grey.mp4": (
        pictures(lambda frames: [frame.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8) for frame in frames]),
        FULL,
    ),
    "no_face.mp4": (silent_noise, "no face found"),
    "face_leaves.mp4": (pictures(panned), FULL),
    "two_faces.mp4": (lambda m, n: shutil.copy(m.two_faces, m.folder / n), range(210, 225)),
    "hard_cut.mp4": (lambda m, n: m.write(n, frames=m.face[:12] + m.other[:12]), FULL),
}


def means_of_frames(network, clips, *options):
    """Replaces start_encoding: each feature of a frame is the mean of its crop, or of its filterbank values."""

    def features(inputs):
        means = inputs.reshape(len(inputs), -1).mean(axis=1, keepdims=True, dtype=np.float32)
        return np.tile(means, (1, network.config.width))

    return lambda: [ClipFeatures(features(clip.crops), features(clip.audio)) for clip in clips]


@pytest.mark.parametrize("every_cut", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_kind_gives_features_or_a_reason(tmp_path, real_clips, tiny_checkpoint, monkeypatch, every_cut):
    """Uses one run, and so one test. The encoder, which reads no file, is replaced."""
    table = TABLE if every_cut else {n: made for n, made in TABLE.items() if not re.search("_cut_[2345679]", n)}
    monkeypatch.setattr("extract.avhubert.encoder.start_encoding", means_of_frames)
    face = list(iterate_video(real_clips["testMovie"]))[:60]
    other = [cv2.resize(frame, (352, 288)) for frame in list(iterate_video(real_clips["jwpIntro"]))[:20]]
    material = Material(tmp_path / "media", face, other, real_clips["obama_speech"])
    material.folder.mkdir()
    for name, (make, _) in table.items():
        make(material, name)
    settings = ExtractSettings(dtype="float32", processes=2, clip_timeout=120.0)
    output = tmp_path / "out"
    extract(Job([ClipMeta(name) for name in table], str(material.folder), str(output), settings), tiny_checkpoint)
    shard = open_shard(output / "features-00000.h5")
    assert np.isfinite(shard.visual).all()
    found: dict[str, int | str] = {failure.path: failure.reason for failure in read_failures(output / "failures.jsonl")}
    stored = {clip.path: length for clip, length in zip(shard.clips, np.diff(shard.offset).tolist(), strict=True)}
    assert not found.keys() & stored.keys()
    found |= stored
    assert found.keys() == table.keys()
    wrong = {name: found[name] for name, (_, expected) in table.items() if not fits(found[name], expected)}
    assert not wrong


def fits(found: int | str, expected: range | str | None) -> bool:
    """Returns whether this number of frames, or this reason, is the expected outcome of a clip."""
    if expected is None:
        return True
    if isinstance(expected, str) or isinstance(found, str):
        return isinstance(expected, str) and isinstance(found, str) and bool(re.search(expected, found))
    return found in expected


def test_there_are_enough_kinds():
    assert len(TABLE) >= 40
