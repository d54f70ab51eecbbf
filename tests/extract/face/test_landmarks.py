"""Landmarks and crops in one pass equal two passes; tracked points are close to per-frame ones; faces are counted."""

import math

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta
from avh_shards.errors import ClipError
from extract.face import crop_mouths, detect_landmarks, landmarks
from extract.face import mouth as mouth_module
from extract.face.landmarks import detector, every_frame, fill_gaps, tracked
from extract.face.mouth import find_mouths
from extract.prepare import PrepareSettings, prepare_clip
from tests.media import ramp, read_frames, tone, write_media

FACE = np.random.default_rng(0).uniform(20, 60, (68, 2))
FACE_IN_14 = np.where(np.arange(30)[:, None, None] % 2, FACE, np.nan)
FACE_IN_14[1] = np.nan


def clip_with_gaps(known: list[bool]) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames of noise, and points that wander, NaN where unknown."""
    rng = np.random.default_rng(len(known))
    frames = list(rng.integers(0, 256, (len(known), 80, 90, 3), dtype=np.uint8))
    points = FACE + rng.normal(0, 2, (len(known), 1, 2)).cumsum(axis=0)
    return frames, np.where(np.array(known)[:, None, None], points, np.nan)


def finder(points: np.ndarray):
    left = iter(points)

    def find(frame):
        found = next(left)
        return None if np.isnan(found).any() else found

    return find


@pytest.mark.parametrize("held", [2**29, 80 * 90 * 3 * 2])  # the second decodes twice
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(known=st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_one_pass_equals_two(monkeypatch, held, known):
    monkeypatch.setattr(mouth_module, "HELD_BYTES", held)
    frames, points = clip_with_gaps(known)
    streamed = find_mouths(lambda: iter(frames), finder(points))
    whole = crop_mouths(frames, fill_gaps(points))
    np.testing.assert_array_equal(streamed.crops, whole.crops)
    np.testing.assert_allclose(streamed.points, whole.points, atol=1e-4)


def test_frames_are_decoded_once_and_held_only_while_they_wait():
    frames, points = clip_with_gaps([True] * 100)
    given_out, most = 0, 0

    def decode():
        nonlocal given_out
        for frame in frames:
            given_out += 1
            yield frame

    stream = mouth_module.MouthStream()
    for frame, place in zip(decode(), points, strict=True):
        stream.add(frame, place)
        most = max(most, len(stream.held))
    assert given_out == 100
    assert most == mouth_module.SMOOTHED_FRAMES - 1


def test_no_face_at_all_is_told():
    frames, points = clip_with_gaps([True] * 5)
    with pytest.raises(ClipError, match="no face found"):
        find_mouths(lambda: iter(frames), finder(points * np.nan))


def eye_distance(points: np.ndarray) -> np.ndarray:
    """Returns the distance between the outer eye corners, which 300-W normalises by."""
    return np.linalg.norm(points[:, 36] - points[:, 45], axis=1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("obama_speech", 80),  # small faces
        pytest.param("obama_speech", None, marks=pytest.mark.slow),
        pytest.param("testMovie", None, marks=pytest.mark.slow),  # large faces
    ],
)
def test_tracked_points_are_close_to_those_of_every_frame(real_clips, name, count):
    frames = read_frames(real_clips[name])[:count]
    every = detect_landmarks(frames)
    distance = np.linalg.norm(detect_landmarks(frames, tracked()) - every, axis=2) / eye_distance(every)[:, None]
    assert np.median(distance) <= 0.02
    assert np.percentile(distance, 95) <= 0.05


@pytest.fixture
def runs(monkeypatch):
    """Records the sizes of the pictures that the detector processes."""
    sizes, run = [], landmarks._run

    def counted(grey, upsamplings):
        sizes.append((grey.shape, upsamplings))
        return run(grey, upsamplings)

    monkeypatch.setattr(landmarks, "_run", counted)
    return sizes


def test_the_detector_looks_at_small_pictures_now_and_then(real_clips, runs):
    frames = read_frames(real_clips["testMovie"])[:50]
    detect_landmarks(frames, tracked())
    assert [upsamplings for _, upsamplings in runs].count(1) == 1  # one full search
    assert len(runs) <= 1 + 2 * 50 / landmarks.PERIOD
    assert max(np.prod(size) for size, upsamplings in runs if not upsamplings) < 0.75 * frames[0, ..., 0].size


def test_a_hard_cut_is_followed_at_once(real_clips, runs):
    """After a cut to another person elsewhere, the points follow that person from the first frame."""
    one = read_frames(real_clips["testMovie"])[:13]
    other = np.roll(one[:, :, ::-1], 60, axis=2) // 2  # mirrored, moved, darker
    found = detect_landmarks(np.concatenate([one, other]), tracked())[13:]
    separate = detect_landmarks(other, tracked())
    assert [upsamplings for _, upsamplings in runs][:10].count(1) >= 2
    assert np.median(np.linalg.norm(found - separate, axis=2) / eye_distance(separate)[:, None]) <= 0.02


def test_a_face_that_leaves_is_a_gap_and_found_again(real_clips):
    frames = read_frames(real_clips["testMovie"])[:12]
    find = tracked()
    shown = [find(frame) for frame in (*frames, *np.zeros_like(frames), *frames)]
    assert all(points is not None for points in shown[:12])
    assert all(points is None for points in shown[12:24])
    assert shown[24] is not None  # the cut to a bright picture is searched immediately


def test_a_repeated_picture_costs_nothing(real_clips, runs):
    frame = read_frames(real_clips["testMovie"])[0]
    find = tracked()
    first = find(frame)
    assert all(find(frame) is first for _ in range(20))
    assert len(runs) == 1


def counted(find, frames) -> str:
    """Returns the number of faces in each frame, as digits."""
    for frame in frames:
        find(frame)
    return "".join(map(str, find.faces()))


def covered(frames: np.ndarray, how: str) -> list[np.ndarray]:
    """Hides the first face of frames, or blackens the whole frames."""
    (face, *_), _, _ = detector().run(cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY), 1, 0.0)
    reach = face.width() // 3
    place = slice(max(face.top() - reach, 0), face.bottom() + reach), slice(face.left() - reach, face.right() + reach)
    hidden = []
    for frame in frames.copy():
        part = frame[place]
        part[:] = {"grey": 128, "blurred": cv2.GaussianBlur(part, (0, 0), face.width() / 4), "black": part}[how]
        hidden.append(frame * (how != "black"))
    return hidden


@pytest.mark.parametrize(
    ("name", "how", "left"),
    [
        ("jwpIntro", "grey", 13),
        ("jwpIntro", "black", 13),
        # The points do not show when this face disappears, so the frames since the last detection do not count.
        ("testMovie", "blurred", 11),
    ],
)
def test_a_face_that_is_hidden_does_not_count(real_clips, name, how, left):
    frames = read_frames(real_clips[name])[:24]
    assert counted(tracked(), [*frames[:13], *covered(frames[13:], how)]) == "1" * left + "0" * (24 - left)


def test_a_blank_that_lasts_until_another_face_is_taken_does_not_count(real_clips):
    """The speaker is covered from frame 11 on; at frame 14 the detector selects the man next to him."""
    frames = read_frames(real_clips["obama_speech"])[:20]
    assert counted(tracked(), [*frames[:11], *covered(frames, "grey")[11:]]) == "2" * 10 + "0" * 4 + "1" * 6


def test_a_face_in_the_second_half_counts_from_its_first_frame(real_clips):
    frames = read_frames(real_clips["testMovie"])[:12]
    assert counted(tracked(), [*np.zeros_like(frames), *frames]) == "0" * 12 + "1" * 12


@pytest.mark.parametrize("finder", [every_frame, tracked])
def test_several_faces_are_counted_until_a_cut(real_clips, finder):
    """A poster next to the speaker, then the speaker in another scene."""
    frames = read_frames(real_clips["testMovie"])[:10]
    two_faces = [np.hstack([frame, frames[0]]) for frame in frames[:5]]
    one_face = [np.hstack([frame, np.full_like(frame, 255)]) for frame in frames[5:]]
    assert counted(finder(), [*two_faces, *one_face]) == "2" * 5 + "1" * 5


def test_a_repeated_picture_counts_in_every_frame_that_shows_it(real_clips):
    frame = read_frames(real_clips["testMovie"])[0]
    assert counted(tracked(), [*[frame] * 5, *[np.zeros_like(frame)] * 3]) == "11111000"


@pytest.fixture
def clip(tmp_path):
    write_media(tmp_path / "x.mkv", ramp([0] * 30), sound=tone(1.2), audio_codec="pcm_s16le")
    return ClipMeta("x.mkv")


@pytest.mark.parametrize("single", [False, True])
def test_given_points_are_used(tmp_path, clip, single):
    points = FACE + np.arange(30)[:, None, None] / 10
    points[4] = np.nan
    np.savez(tmp_path / "x.npz", landmarks=points)
    place = tmp_path / "x.npz" if single else tmp_path
    prepared = prepare_clip(clip, tmp_path, PrepareSettings(landmarks=str(place)))
    wanted = crop_mouths(read_frames(tmp_path / "x.mkv"), fill_gaps(points))
    np.testing.assert_array_equal(prepared.crops, wanted.crops)
    assert prepared.meta.face_share == 29 / 30
    assert math.isnan(prepared.meta.several_faces)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (None, "no such file"),
        ({"points": np.zeros((30, 68, 2))}, "not an npz file with `landmarks`"),
        ({"landmarks": np.zeros((30, 5, 2))}, r"is \[30, 5, 2\]"),
        ({"landmarks": np.full((30, 68, 2), np.inf)}, "not finite"),
        ({"landmarks": np.full((30, 68, 2), "x")}, "not an npz file with `landmarks`"),
        ({"landmarks": np.array([{}], dtype=object)}, "not an npz file with `landmarks`"),
        ({"landmarks": np.zeros((29, 68, 2))}, "has points for 29 frames, not 30"),
        ({"landmarks": np.zeros((36, 68, 2))}, "has points for 36 frames, not 30"),
        ({"landmarks": np.full((30, 68, 2), np.nan)}, "^no face found$"),
        ({"landmarks": FACE_IN_14}, "^a face in 14 of 30 frames, less than --min_face_share=0.5$"),
    ],
)
def test_points_that_do_not_fit_are_told(tmp_path, clip, arrays, reason):
    if arrays is not None:
        np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ClipError, match=reason):
        prepare_clip(clip, tmp_path, PrepareSettings(landmarks=str(tmp_path)))
