"""Decoding: frames by presentation time, sound and picture on one timeline, damaged files rejected."""

import wave

import av
import numpy as np
import pytest
import soxr
from av.stream import Disposition

from avh_shards.errors import ClipError
from extract.media import read_audio
from tests.conftest import TESTDATA
from tests.media import ramp, read_frames, rotate, shown_times, tone, write_media

STEP = 0.025  # seconds: time resolution of the bar


def shown(path, **options):
    return shown_times(read_frames(path, **options))


@pytest.mark.parametrize("rate", [1, 10, 11.9, 24, 25, 29.97, 30, 50, 59.94, 120])
def test_frames_are_the_nearest_in_time(tmp_path, rate):
    times = [k / rate for k in range(int(4 * rate))]
    path = write_media(tmp_path / "x.mp4", ramp(times), times)
    found = shown(path)
    wanted = np.arange(len(found)) / 25
    assert abs(len(found) / 25 - 4) <= 1 / rate + 0.04
    inside = wanted <= times[-1]
    assert np.abs(found - wanted)[inside].max() <= 0.5 / rate + STEP
    assert len(read_frames(path, fps_policy="native")) == len(times)


def test_25_frames_a_second_pass_unchanged(tmp_path):
    path = write_media(tmp_path / "x.mp4", ramp([k / 5 for k in range(60)]))
    np.testing.assert_array_equal(read_frames(path), read_frames(path, fps_policy="native"))


def test_variable_frame_rate(tmp_path):
    rng = np.random.default_rng(0)
    times = np.round(np.cumsum(rng.uniform(0.01, 0.2, 50)), 3)
    times -= times[0]
    path = write_media(tmp_path / "x.mp4", ramp(times), times.tolist())
    found = shown(path)
    wanted = np.arange(len(found)) / 25
    nearest = times[np.abs(times[None] - wanted[:, None]).argmin(axis=1)]
    assert np.abs(found - nearest).max() <= STEP
    assert abs(len(found) - 25 * times[-1]) < 25 * 0.2 + 2


def test_native_frames_of_a_faster_source_drift_away_from_the_sound(tmp_path):
    """Only resampling keeps sound and picture in sync."""
    times = [k / 30 for k in range(240)]
    path = write_media(tmp_path / "x.mp4", ramp(times), times)
    at = 150  # six seconds of sound
    assert abs(shown(path)[at] - 6) <= STEP
    assert abs(shown(path, fps_policy="native")[at] - 5) <= STEP


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_sound_keeps_its_place(tmp_path, suffix):
    codec = "libx264" if suffix != "avi" else "mpeg4"
    path = write_media(
        tmp_path / f"x.{suffix}", ramp([0] * 50), sound=tone(2, silence=1.0), video_codec=codec, audio_codec="pcm_s16le"
        if suffix in ("avi", "mov", "mkv") else "aac",
    )  # fmt: skip
    sound = read_audio(path)
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    assert abs(loud[0] / 16000 - 1) < 0.01
    assert abs(len(sound) / 16000 - 2) < 0.1


def test_sound_that_starts_later_is_led_by_silence(tmp_path):
    path = write_media(tmp_path / "x.mkv", ramp([0] * 50), sound=tone(1), sound_start=0.5, audio_codec="pcm_s16le")
    sound = read_audio(path)
    assert abs(np.flatnonzero(np.abs(sound) > 0.1)[0] / 16000 - 0.5) < 0.01


def test_picture_that_starts_later_is_led_by_its_first_frame(tmp_path):
    times = [0.5 + k / 25 for k in range(50)]
    path = write_media(tmp_path / "x.mkv", ramp(times), times, sound=tone(2.5), audio_codec="pcm_s16le")
    found = shown(path)
    assert np.abs(found[:12] - 0.5).max() <= STEP
    assert abs(found[50] - 2) <= STEP


def test_sound_before_picture_in_the_file(tmp_path):
    first, second = (
        write_media(tmp_path / f"{k}.mp4", ramp([0, 1, 2]), sound=tone(0.12), sound_first=bool(k)) for k in (0, 1)
    )
    np.testing.assert_array_equal(read_frames(first), read_frames(second))
    np.testing.assert_array_equal(read_audio(first), read_audio(second))


def test_of_several_streams_one_is_taken_whole(tmp_path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        videos = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        sounds = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        for stream in videos:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(10):  # interleaved, as in real files
            for stream, level in zip(videos, (50, 200), strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
                frame.pts = k
                container.mux(stream.encode(frame))
            for stream, level in zip(sounds, (1000, 9000), strict=True):
                frame = av.AudioFrame.from_ndarray(np.full((1, 640), level, np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts = 16000, 640 * k
                container.mux(stream.encode(frame))
        for stream in (*videos, *sounds):
            container.mux(stream.encode(None))
    frames, sound = read_frames(path), read_audio(path)
    assert len(frames) == 10
    assert np.ptp(frames.mean(axis=(1, 2, 3))) < 3
    assert len(sound) == 6400
    assert len(np.unique(sound)) == 1


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=16000, layout="mono"), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(ClipError, match="no video stream"):
        read_frames(path)


def test_rotated_files_come_upright(tmp_path):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :16] = 200  # bright on the left: a clockwise quarter turn puts it on top
    path = write_media(tmp_path / "x.mp4", [picture] * 5)
    frames = read_frames(rotate(path, tmp_path / "turned.mp4"))
    assert frames.shape == (5, 64, 48, 3)
    assert frames[:, :12].mean() > 150
    assert frames[:, 24:].mean() < 50


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (44100, 2), (48000, 6), (96000, 2)])
def test_sound_is_the_channel_mean_at_16_khz(tmp_path, rate, channels):
    sound = tone(1, rate, channels=channels) * np.linspace(0.2, 1, channels, dtype=np.float32)[:, None]
    path = write_media(tmp_path / "x.mkv", sound=sound, rate=rate, audio_codec="pcm_s16le")
    heard = read_audio(path)
    assert heard.dtype == np.float32
    stored = np.round(sound * 32768).clip(-32768, 32767) / 32768
    wanted = soxr.resample(stored.mean(axis=0).astype(np.float32), rate, 16000, quality="HQ")
    assert heard.shape == wanted.shape
    np.testing.assert_allclose(heard, wanted, rtol=0, atol=1e-4)


def test_wav_equals_its_samples():
    with wave.open(str(TESTDATA / "s4.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    np.testing.assert_array_equal(read_audio(TESTDATA / "s4.wav"), samples)


def test_files_without_a_stream(tmp_path):
    sound = write_media(tmp_path / "sound.mp4", sound=tone(1))
    picture = write_media(tmp_path / "picture.mp4", ramp([0, 1]))
    with pytest.raises(ClipError, match="no video stream"):
        read_frames(sound)
    with pytest.raises(ClipError, match="no audio stream"):
        read_audio(picture)


def test_missing_empty_and_foreign_files(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no film " * 1000)
    for name, reason in (("none.mp4", "no such file"), ("empty.mp4", "decoded"), ("text.mp4", "decoded")):
        for read in (read_frames, read_audio):
            with pytest.raises(ClipError, match=reason):
                read(tmp_path / name)


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, part):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    whole = write_media(tmp_path / "whole.mp4", frames, sound=tone(4)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ClipError):
        read_frames(tmp_path / "cut.mp4")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_streamable_file_cut_short_is_refused(tmp_path, part, real_clips):
    """Its header comes first, so decoding starts normally and only ends early."""
    fast = tmp_path / "fast.mp4"
    with (
        av.open(str(real_clips["jwpIntro"])) as source,
        av.open(str(fast), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    assert len(read_frames(fast)) == 144
    whole = fast.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ClipError):
        read_frames(tmp_path / "cut.mp4")
