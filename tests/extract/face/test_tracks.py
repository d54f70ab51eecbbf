"""Shots and faces of made-up films: each cut is found, and each face is followed from its first frame to its last."""

import numpy as np
import pytest

from extract.face.landmarks import every_frame, tracked
from extract.face.mouth import find_mouths
from extract.face.tracks import SHORTEST, find_tracks
from tests.films import RIGHT, Cast, hide


@pytest.fixture(scope="module")
def cast(real_clips) -> Cast:
    return Cast(real_clips, 50)


@pytest.fixture(scope="module")
def film(cast) -> list[np.ndarray]:
    """One person, nobody, two people, one of whom leaves and returns; each shot is as long as a cut allows."""
    left = cast.shot(30, 1, left="jwp")
    nobody = cast.shot(20, 2)
    two = cast.shot(50, 3, left="movie", right="obama")
    hide(two, RIGHT, 22, 27)
    return [*left, *nobody, *two]


@pytest.fixture(scope="module")
def shots(film):
    return find_tracks(lambda: iter(film), "dlib-tracked")


def sides(shot) -> list[str]:
    """Returns the side on which each face of a shot is."""
    return ["left" if track.boxes[:, [0, 2]].mean() < 0.5 else "right" for track in shot.tracks]


def test_shots_begin_at_the_cuts(shots):
    np.testing.assert_allclose([(shot.start, shot.stop) for shot in shots], [(0, 30), (30, 50), (50, 100)], atol=2)
    assert [shot.stop for shot in shots[:-1]] == [shot.start for shot in shots[1:]]


def test_each_face_is_followed_through_its_shot(shots):
    assert [sides(shot) for shot in shots] == [["left"], [], ["left", "right"]]
    for shot in (shots[0], shots[2]):
        for track in shot.tracks:
            assert (track.start, track.stop) == (shot.start, shot.stop)
            assert len(track.mouths.crops) == len(track.boxes) == len(track.mouths.points)
    assert [track.found for track in shots[2].tracks] == pytest.approx([1, 0.75], abs=0.1)


def test_the_crops_of_each_face_are_those_of_a_film_of_only_this_face(cast, shots):
    """Searches for other faces leave a track as it is, whatever else the picture shows."""
    single = cast.shot(50, 3, left="movie")
    crops = find_mouths(lambda: iter(single), tracked()).crops
    np.testing.assert_array_equal(shots[2].tracks[0].mouths.crops, crops)


def test_one_face_without_a_cut_has_the_crops_of_the_whole_video(cast, monkeypatch):
    frames = cast.pictures["jwp"][:SHORTEST]
    for landmarks, finder in (("dlib-tracked", tracked()), ("dlib", every_frame())):
        whole = find_mouths(lambda: iter(frames), finder)
        ((track,),) = (shot.tracks for shot in find_tracks(lambda: iter(frames), landmarks))
        np.testing.assert_array_equal(track.mouths.crops, whole.crops)
        np.testing.assert_array_equal(track.mouths.points, whole.points)
    monkeypatch.setattr("extract.face.mouth.HELD_BYTES", 0)  # frames that wait for landmarks are decoded again
    frames = [*cast.shot(2, 1), *cast.shot(SHORTEST, 1, left="jwp")]
    ((track,),) = (shot.tracks for shot in find_tracks(lambda: iter(frames), "dlib-tracked"))
    assert (track.start, len(track.mouths.crops)) == (0, len(frames))
