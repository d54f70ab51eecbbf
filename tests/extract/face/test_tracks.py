"""Shots and faces of made-up films: each cut is found, and each face is followed from its first frame to its last."""

import cv2
import dlib
import numpy as np
import pytest
import scenedetect

from extract.face.landmarks import Searcher, every_frame, tracked
from extract.face.mouth import find_mouths
from extract.face.tracks import GAP, SEARCHES, SHORTEST, find_tracks
from extract.media.shots import iterate_shots
from tests.films import LEFT, RIGHT, SIDE, hide
from tests.media import read_frames, write_media


def sides(shot) -> list[str]:
    """Returns the side on which each face of a shot is."""
    return ["left" if track.boxes[:, [0, 2]].mean() < 0.5 else "right" for track in shot.tracks]


def test_shots_begin_at_the_cuts(talk):
    ends = [(shot.start, shot.stop) for shot in talk.shots]
    np.testing.assert_allclose(ends, [(0, 75), (75, 95), (95, 125)], atol=2)
    assert [stop for _, stop in ends[:-1]] == [start for start, _ in ends[1:]]


def test_each_face_is_followed_through_its_shot(talk):
    """The last person is in one shot only, and one shot is without a face."""
    assert [sides(shot) for shot in talk.shots] == [["left", "right"], [], ["right"]]
    for shot in talk.shots:
        for track in shot.tracks:
            assert (track.start, track.stop, track.found) == (shot.start, shot.stop, 1)
            assert len(track.mouths.crops) == len(track.boxes) == len(track.mouths.points)


def test_the_crops_of_each_face_are_those_of_a_film_of_only_this_face(cast, talk):
    """Searches for other faces leave a track as it is, whatever else the picture shows."""
    frames = cast.shot(75, 1, left="movie")
    crops = find_mouths(lambda: iter(frames), tracked()).crops
    np.testing.assert_array_equal(talk.shots[0].tracks[0].mouths.crops, crops)


@pytest.mark.parametrize(("away", "tracks"), [(4, 1), pytest.param(GAP + 12, 2, marks=pytest.mark.slow)])
def test_a_face_that_leaves_and_returns(cast, away, tracks):
    """A short absence is a gap in its track, a longer one ends the track; nobody else is taken for the missing one."""
    frames = cast.shot(2 * SHORTEST + away + 14 * tracks, 1, left="movie", right="obama")
    hide(frames, RIGHT, SHORTEST + 7, SHORTEST + 6 + away)
    (shot,) = find_tracks(lambda: iter(frames), "dlib-tracked")
    assert sides(shot) == ["left", *["right"] * tracks]
    left, *right = shot.tracks
    assert (left.start, left.stop, left.found) == (0, len(frames), 1)
    assert (right[0].start, right[-1].stop) == (0, len(frames))
    assert all(track.found < 1 for track in right) == (tracks == 1)
    assert all((track.boxes[:, 0] > 0.5).all() for track in right)


def test_a_face_that_its_finder_misses_for_a_moment_is_not_followed_twice(monkeypatch):
    """A search for new faces sees it before its own finder looks again."""
    here = dlib.rectangle(20, 20, 60, 60)
    points = np.random.default_rng(0).uniform(30, 50, (68, 2))

    class Waiting(Searcher):
        def find(self, frame):
            self.face = here
            return None if 20 <= frame[0, 0, 0] < 40 else points

    monkeypatch.setitem(SEARCHES, "waiting", (Waiting, lambda grey: ([here], [1.0])))
    monkeypatch.setattr("extract.face.tracks.iterate_shots", lambda frames: ((f, f is frames[0]) for f in frames))
    frames = [np.full((80, 80, 3), number, np.uint8) for number in range(60)]
    (shot,) = find_tracks(lambda: frames, "waiting")
    assert [(track.start, track.stop, track.found) for track in shot.tracks] == [(0, 60, pytest.approx(40 / 60))]


def test_one_face_without_a_cut_has_the_crops_of_the_whole_video(cast):
    frames = cast.pictures["jwp"][:SHORTEST]
    for landmarks, finder in (("dlib-tracked", tracked()), ("dlib", every_frame())):
        whole = find_mouths(lambda: iter(frames), finder)
        ((track,),) = (shot.tracks for shot in find_tracks(lambda: iter(frames), landmarks))
        np.testing.assert_array_equal(track.mouths.crops, whole.crops)
        np.testing.assert_array_equal(track.mouths.points, whole.points)


def test_a_face_that_is_found_late_or_waits_for_much_memory(cast, monkeypatch):
    """At the start of a shot, its points are held; frames that would take too much memory are decoded again."""
    frames = cast.shot(SHORTEST + 8, 1, left="obama")
    hide(frames, LEFT, 0, 0)
    frames = [frame[:, : 2 * LEFT + SIDE] for frame in frames]
    (held,) = find_tracks(lambda: iter(frames), "dlib-tracked")[0].tracks
    assert (held.start, held.stop) == (0, len(frames))
    assert held.found < 1
    assert (held.boxes[0] == held.boxes[1]).all()
    monkeypatch.setattr("extract.face.mouth.HELD_BYTES", 0)
    (again,) = find_tracks(lambda: iter(frames), "dlib-tracked")[0].tracks
    np.testing.assert_array_equal(held.mouths.crops, again.mouths.crops)


def test_a_still_picture_is_one_shot_and_repeats_cost_nothing():
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    found = [*iterate_shots([frame] * 1000)]
    assert [begins for _, begins in found] == [True, *[False] * 999]
    assert all(shown is frame for shown, _ in found)
    assert list(iterate_shots([])) == []


@pytest.mark.slow
def test_shots_are_those_of_the_package_itself(talk, real_clips, tmp_path):
    """Its own command line reads the file in its own way."""
    path = write_media(tmp_path / "talk.mp4", talk.frames)
    for video in (path, *real_clips.values()):
        scenes = scenedetect.detect(str(video), scenedetect.AdaptiveDetector())
        wanted = [0, *(round(25 * start.seconds) for start, _ in scenes[1:])]
        found = [index for index, (_, begins) in enumerate(iterate_shots(read_frames(video))) if begins]
        np.testing.assert_allclose(found, wanted, atol=2)


@pytest.mark.slow
def test_a_tall_video_has_the_same_shots_and_faces(talk):
    """1080x1920 pixels, as telephones record them."""
    halves = [[frame[19:161, x : x + SIDE] for x in (LEFT, RIGHT)] for frame in talk.frames]
    tall = [cv2.resize(np.vstack(half), (1080, 1920)) for half in halves]
    shots = find_tracks(lambda: iter(tall), "dlib-tracked")
    np.testing.assert_allclose([shot.start for shot in shots], [shot.start for shot in talk.shots], atol=2)
    above = [["top" if track.boxes[:, [1, 3]].mean() < 0.5 else "bottom" for track in shot.tracks] for shot in shots]
    assert above == [["top", "bottom"], [], ["bottom"]]
