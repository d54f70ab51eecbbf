"""Videos that browsers do not play become videos that they do, with the same pictures at the same times."""

import av
import numpy as np
import pytest

from apps.playable import playable
from tests.browser import opened


def streams(path):
    """Codec, seconds and pictures of each kind of stream."""
    with av.open(str(path)) as file:
        kinds = (*file.streams.video, *file.streams.audio)
        return {s.type: (s.codec_context.name, float(s.duration * s.time_base), s.frames) for s in kinds}


def test_an_old_codec_is_encoded_anew(real_clips):
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
    assert min(alike) > 0.98  # one may store its greys in another range
    assert not copy.exists()


def test_what_browsers_play_stays_as_it_is(real_clips):
    with playable(real_clips["jwpIntro"]) as same:
        assert same == real_clips["jwpIntro"]


def test_the_browser_shows_the_copys_pictures(browser, real_clips, tmp_path):
    page = tmp_path / "page.html"
    with playable(real_clips["testMovie"]) as copy:
        page.write_text(f'<video src="{copy.as_uri()}" preload="auto"></video>')
        with opened(browser, page, beside=copy) as window:
            window.wait_for_function("document.querySelector('video').readyState >= 2")
            size = window.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))")
    assert size == [352, 288]
