"""The page of a video whose faces are scored one by one, in a real browser: boxes, curves, colours and keys."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from avh_shards.clip import track_key
from jax_avh.reference import Reference
from jax_avh.report.video import BOX_STEP, FaceVerdict, ShotVerdict, Verdict, write_video_page
from jax_avh.scores import POOLINGS, pool_all
from tests.browser import DESKTOP, PHONE, opened
from tests.jax_avh.report.test_report import NASTY, check_look, state_of, wait_until
from tests.media import tone, write_media

WIDTH, HEIGHT, SIDE = 96, 160, 32  # pixels of a film in upright format, and of the square that is its first face
FRAMES = 50
CUT = 25  # frame
PLACES = np.stack([np.linspace(0, WIDTH - SIDE, FRAMES), np.linspace(0, HEIGHT - SIDE, FRAMES)], axis=1)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A white square that moves on black for a second, and then on blue."""
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames[CUT:, ..., 2] = 90
    for frame, (x, y) in zip(frames, PLACES.round().astype(int), strict=True):
        frame[y : y + SIDE, x : x + SIDE] = 255
    return write_media(tmp_path_factory.mktemp("film") / "film.mp4", list(frames), sound=tone(2))


def face(shot: int, number: int, first: int, last: int, boxes: np.ndarray, **more) -> FaceVerdict:
    scores = np.random.default_rng([shot, number]).normal(size=last - first).round(3)
    pooled = {name: float(score) for name, score in pool_all(scores).items()}
    own = {"frame_scores": scores.tolist(), "scores": pooled, "own_score": pooled["logsumexp"]} | more
    places = [tuple(box) for box in boxes[first:last:BOX_STEP].tolist()]
    return FaceVerdict(track_key(NASTY, shot, number), first / 25, last / 25, places, 1.0, **own)


@pytest.fixture(scope="module")
def verdict() -> tuple[Verdict, np.ndarray]:
    """The square is the speaker of the first shot; the second has three faces, of which nobody clearly speaks."""
    boxes = np.concatenate([PLACES, PLACES + SIDE], axis=1) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    still = np.tile([0.1, 0.8, 0.3, 0.95], (FRAMES, 1))
    first = [face(1, 1, 0, CUT, boxes, speaker=True), face(1, 2, 5, CUT, still)]
    silent = face(2, 3, CUT, FRAMES, still + 0.05, frame_scores=[], scores={}, remark="nobody speaks " + NASTY)
    second = [face(2, 1, CUT, FRAMES, boxes), face(2, 2, CUT, FRAMES, still), silent]
    shots = [ShotVerdict(0.0, 1.0, first), ShotVerdict(1.0, 2.0, second, "no face fits " + NASTY)]
    frame = np.full(FRAMES, np.nan, np.float32)
    frame[:CUT] = first[0].frame_scores
    scores = {name: float(pool(frame[:CUT])) for name, pool in POOLINGS.items()}
    known = Verdict(NASTY, 2.0, scores, (0.0, 1.0), method="avh_align", which_faces="speaker", shots=shots)
    return known, frame


def square_and_box(page) -> tuple[np.ndarray, np.ndarray]:
    """Returns left, top, right, bottom of the white square and of the first visible box, in pixels of the window."""
    stage = page.locator(".stage").bounding_box()
    page.evaluate("boxes.style.visibility = 'hidden'; video.controls = false")
    picture = cv2.imdecode(np.frombuffer(page.locator(".stage").screenshot(), np.uint8), cv2.IMREAD_COLOR)
    page.evaluate("boxes.style.visibility = ''")
    rows, columns = np.nonzero((picture > 200).all(axis=2))
    square = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    box = page.locator(".box:visible").first.bounding_box()
    left, top = box["x"] - stage["x"], box["y"] - stage["y"]
    return square, np.array([left, top, left + box["width"], top + box["height"]])


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)])
def test_boxes_follow_the_faces_over_the_playing_video(browser, film, verdict, tmp_path, size):
    """In a window of any size, also while it changes; the picture is narrower than the page."""
    write_video_page(tmp_path / "v.html", film, *verdict)
    with opened(browser, tmp_path / "v.html", size, "dark") as page:  # whose rounded corners are not white
        for seconds, names in ((0.0, ["1.1"]), (0.48, ["1.1", "1.2"]), (1.4, ["2.1", "2.2", "2.3"])):
            page.evaluate(f"video.currentTime = {seconds}")
            state_of(page)
            assert page.locator(".box:visible").all_inner_texts() == names
            square, box = square_and_box(page)
            np.testing.assert_allclose(box, square, atol=0.03 * np.ptp(square[1::2]) + 4)
        page.set_viewport_size({"width": 500, "height": 500})
        page.wait_for_timeout(100)
        square, box = square_and_box(page)
        np.testing.assert_allclose(box, square, atol=6)
        page.evaluate("video.currentTime = 0")
        state_of(page)
        before = page.locator(".box:visible").first.bounding_box()
        page.get_by_role("button", name="Play face 1.1").click()
        wait_until(page, "video.currentTime > 0.4")
        assert page.locator(".box").first.bounding_box()["x"] > before["x"] + 5
        wait_until(page, "video.ended")


def test_a_click_and_keys_move_the_video_and_read_out_its_faces(browser, film, verdict, tmp_path):
    write_video_page(tmp_path / "v.html", film, *verdict)
    faces = [face for shot in verdict[0].shots for face in shot.faces]
    with opened(browser, tmp_path / "v.html") as page:
        slider = page.get_by_role("slider", name="Position in the video")
        slider.click()
        one, other = (face.frame_scores[0] for face in faces[2:4])
        text = f"1.00 s: face 2.1: score {one:.2f}; face 2.2: score {other:.2f}; face 2.3: not scored"
        assert state_of(page) == [1.0, 1.0, text]
        page.keyboard.press("ArrowLeft")
        text = f"0.96 s: face 1.1, likely speaker: score {faces[0].frame_scores[24]:.2f}; "
        assert state_of(page)[2].startswith(text)
        page.get_by_role("button", name="Play face 2.2").focus()
        page.keyboard.press("Enter")
        wait_until(page, "video.currentTime > 1.2")


@pytest.mark.parametrize(("size", "scheme", "which"), [(PHONE, "dark", "speaker"), (DESKTOP, "light", "all")])
def test_the_page_names_shots_and_faces(browser, film, verdict, tmp_path, size, scheme, which):
    """Faces differ in names and dashes, not only in colours."""
    real = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32)
    reference = Reference({"method": "avh_align"}, np.full(300, 25), {"logsumexp": real[0]}, 1.0)
    largest = dataclasses.replace(verdict[0], which_faces="largest")
    write_video_page(tmp_path / "largest.html", film, largest, verdict[1])
    with opened(browser, tmp_path / "largest.html", size, scheme) as page:
        assert page.locator(".box.solid").all_text_contents() == ["1.1", "1.2", "2.1", "2.2"]
        assert page.locator(".plot path.dashed").count() == 0
        assert "the largest face of each shot, whether or not it speaks" in page.locator("main").inner_text()
    judged = dataclasses.replace(verdict[0], which_faces=which).compared(verdict[1], reference)
    write_video_page(tmp_path / "v.html", film, judged, verdict[1])
    with opened(browser, tmp_path / "v.html", size, scheme) as page:
        check_look(page, size[0])
        text = page.locator("main").inner_text()
        assert f"2 shots, 5 faces; likely speaker: 1.1; no likely speaker: 1.00-2.00 s (no face fits {NASTY})" in text
        assert judged.reference.sentence[1:] in text
        assert ("all faces, one after the other" in text) == (which == "all")
        chosen = page.locator("tr:has(.patch.face-0), tr:has(.patch.face-4)").all()
        rows = [row.inner_text().split("\t") for row in chosen]
        assert [row[2] for row in rows] == ["likely speaker", f"not scored: nobody speaks {NASTY}"]
        assert page.locator(".plot path").count() == 4
        assert page.locator(".plot path.dashed").count() == 3
        assert page.locator(".plot .label").all_inner_texts() == ["1.1", "1.2", "2.1", "2.2"]
        assert page.locator("line.cut").count() == 1
        assert page.locator(".box.solid").all_text_contents() == ["1.1"]
        colours = page.evaluate(
            "[...boxes.children].map((box) => getComputedStyle(box).borderColor.match(/[0-9]+/g).map(Number))"
        )
        # Okabe and Ito (2008): blue, vermilion, bluish green, reddish purple, orange
        assert colours == [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0]]
