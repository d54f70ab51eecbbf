"""Conversion of videos that browsers cannot play, with the same pictures at the same times."""

import av
import numpy as np
import pytest

from apps.playable import playable
from extract.media import iterate_video, read_audio
from tests.browser import opened
from tests.media import ramp, read_frames, rotate, shown_times, tone, write_media


def streams(path):
    """Returns codec, seconds and number of pictures of each kind of stream."""
    with av.open(str(path)) as file:
        kinds = (*file.streams.video, *file.streams.audio)
        return {s.type: (s.codec_context.name, float(s.duration * s.time_base), s.frames) for s in kinds}


def test_a_video_with_an_old_codec_is_converted(real_clips):
    before = streams(real_clips["testMovie"])
    with playable(real_clips["testMovie"]) as copy:
        after = streams(copy)
        with av.open(str(copy)) as one, av.open(str(real_clips["testMovie"])) as other:
            frames = [[f.to_ndarray(format="gray") for f in file.decode(video=0)] for file in (one, other)]
    assert (before["video"][0], after["video"][0], after["audio"][0]) == ("mpeg4", "h264", "aac")
    for kind in ("video", "audio"):
        assert after[kind][1] == pytest.approx(before[kind][1], abs=0.06)
    assert len(frames[0]) == len(frames[1]) == 237
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*frames, strict=True)]
    assert min(alike) > 0.98  # their grey levels may have different ranges
    assert not copy.exists()


def test_a_playable_video_is_not_converted(real_clips):
    with playable(real_clips["jwpIntro"]) as same:
        assert same == real_clips["jwpIntro"]


def test_the_browser_shows_the_copys_pictures(browser, real_clips, tmp_path):
    page = tmp_path / "page.html"
    with playable(real_clips["testMovie"]) as copy:
        page.write_text(f'<video src="{copy.as_uri()}" preload="auto"></video>')
        with opened(browser, page, linked=copy) as window:
            window.wait_for_function("document.querySelector('video').readyState >= 2")
            size = window.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))")
    assert size == [352, 288]


def test_a_mirrored_video_becomes_an_upright_one_at_its_times(tmp_path):
    times = [k / 30 for k in range(45)]
    frames = [frame[:, ::-1].copy() for frame in ramp(times)]
    stored = write_media(tmp_path / "x.mp4", frames, times, tone(1.5))
    with playable(stored) as same:
        assert same == stored
    with playable(rotate(stored, tmp_path / "mirrored.mp4", (-1, 0, 0, 1))) as copy, av.open(str(copy)) as file:
        decoded = list(file.decode(video=0))
        shown = shown_times(np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]))
    np.testing.assert_allclose(shown, times, atol=0.02)
    np.testing.assert_allclose([frame.time for frame in decoded], times, atol=0.002)


def test_the_copy_of_an_opposite_pair_of_channels_is_heard(tmp_path):
    sound = tone(1, silence=0.3, channels=2) * np.float32([[1], [-1]])
    source = write_media(tmp_path / "x.mkv", ramp([0] * 25), sound=sound, audio_codec="pcm_s16le")
    with playable(source) as copy:
        np.testing.assert_allclose(len(read_frames(copy)), len(list(iterate_video(source))), atol=1)
        heard = read_audio(copy)
    assert abs(np.flatnonzero(np.abs(heard) > 0.1)[0] / 16_000 - 0.3) < 0.02
