"""The faces of a video: its shots, and in each shot the faces that are visible for a second or more, one by one.

Every face of a shot is followed by the finder that otherwise follows the only speaker, so the crops of a video with one
face and no cut are the same. A finder takes the face nearest to where its own was last, unless another finder follows
it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import dlib
import numpy as np
from jaxtyping import Float, UInt8

from avh_shards.clip import FRAME_RATE
from extract.face.landmarks import (
    NO_POINTS,
    PERIOD,
    Detections,
    Points,
    Searcher,
    Tracker,
    fill_gaps,
    same_speaker,
    search_all,
    search_scaled,
)
from extract.face.mouth import Mouths, MouthStream, crop_mouths
from extract.media.decode import Frame, to_grey
from extract.media.shots import iterate_shots

SHORTEST = FRAME_RATE  # frames of a track; shorter ones are dropped
GAP = FRAME_RATE  # frames for which a face may be lost within a track; its points are interpolated
EDGE = FRAME_RATE // 2  # frames at the start and end of a shot in which a face may not be found; its points are held
NEW_FACES = FRAME_RATE // 2  # pictures between two searches for new faces while others are followed
SEARCHES = {"dlib": (Searcher, search_all), "dlib-tracked": (Tracker, search_scaled)}


@dataclasses.dataclass(frozen=True)
class Track:
    """One face in T consecutive frames of a shot."""

    start: int  # its first frame in the video
    mouths: Mouths
    boxes: Float[np.ndarray, "T 4"]  # left, top, right, bottom of the landmarks, as shares of the frame's size
    found: float  # share of the frames in which the face was found

    @property
    def stop(self) -> int:
        """The frame after its last one."""
        return self.start + len(self.boxes)


@dataclasses.dataclass(frozen=True)
class Shot:
    """A shot: frames start:stop of the video, and its tracks in the order in which they begin, from left to right."""

    start: int
    stop: int
    tracks: tuple[Track, ...]


def find_tracks(decode: Callable[[], Iterable[Frame]], landmarks: str) -> list[Shot]:
    """Cuts a video into shots and follows every face in each.

    Args:
      decode: returns the frames from the start, each time it is called; they are decoded again only if the frames that
        wait for landmarks would exceed the memory for them.
      landmarks: how faces are found, "dlib" or "dlib-tracked".

    Returns:
      The shots, in order, at least one.

    Raises:
      UserError: the landmark model is not installed.
    """
    shots: list[Shot] = []
    faces = None
    for index, (frame, begins) in enumerate(iterate_shots(decode())):
        if begins:
            shots += [faces.finish()] if faces else []
            faces = _ShotFaces(index, landmarks, decode)
        assert faces is not None
        faces.add(frame)
    return [*shots, *([faces.finish()] if faces else [])]


class _Follower:
    """One face of a shot: its finder, its points in every frame, and its crops as far as they are known."""

    def __init__(self, shot: "_ShotFaces", face: dlib.rectangle, confidence: float, before: Sequence[Frame]):
        """Starts to follow a detected face.

        Args:
          shot: the faces of the shot.
          face: the face.
          confidence: the detector's confidence.
          before: the shot's frames so far if the face was probably there all along, else none.
        """
        self.shot = shot
        self.first = face, confidence
        self.finder = shot.finder(shot.search_picture, self._choose)
        self.start = shot.start + shot.count - len(before)
        self.points: list[Points | None] = []
        self.stream = MouthStream()
        for frame in before:
            self.add(frame, None)

    def add(self, frame: Frame, points: Points | None) -> None:
        self.points.append(points)
        self.stream.add(frame, points)

    @property
    def lost(self) -> int:
        """Frames since the face was last found."""
        return sum(1 for _ in itertools.takewhile(lambda points: points is None, reversed(self.points)))

    def is_at(self, face: dlib.rectangle) -> bool:
        """Returns whether a detected face is this one: it surrounds the centre of the current points."""
        points = self.points[-1]
        return points is not None and face.contains(dlib.point(*points.mean(axis=0).round().astype(int).tolist()))

    def may_be(self, face: dlib.rectangle) -> bool:
        """Returns whether a detected face is within a face's width of where this one was last detected."""
        last = self.finder.face
        assert last is not None
        shift = face.center() - last.center()
        return math.hypot(shift.x, shift.y) <= last.width()

    def _choose(
        self, faces: Sequence[dlib.rectangle], confidences: Sequence[float], previous: dlib.rectangle | None
    ) -> tuple[dlib.rectangle, float] | None:
        """Selects this face among those detected: one nearby that no other finder follows."""
        if previous is None:
            return self.first
        others = [other for other in self.shot.followed if other is not self]
        free = [self.may_be(face) and not any(other.is_at(face) for other in others) for face in faces]
        near = [*itertools.compress(faces, free)]
        return same_speaker(near, [*itertools.compress(confidences, free)], previous) if near else None


class _ShotFaces:
    """The faces of the shot that is being decoded."""

    def __init__(self, start: int, landmarks: str, decode: Callable[[], Iterable[Frame]]):
        self.start = start
        self.decode = decode
        self.finder, self.search = SEARCHES[landmarks]
        self.count = 0  # frames so far
        self.first: list[Frame] = []  # the first frames, for faces that are found a little late
        self.size = (1, 1)  # width and height of the frames
        self.followed: list[_Follower] = []
        self.tracks: list[Track] = []  # of faces that have left
        self.picture: Frame | None = None
        self.detected: Detections | None = None  # in the whole picture, if it has been searched
        self.searched = NEW_FACES  # pictures since the last search of a whole picture; initially due for one

    def add(self, frame: Frame) -> None:
        """Follows all faces into the next frame, and starts to follow new ones."""
        if frame is self.picture:  # slow videos repeat pictures
            for face in self.followed:
                face.add(frame, face.points[-1])
        else:
            self._look(frame)
        for face in [face for face in self.followed if face.lost > GAP]:
            self.followed.remove(face)
            self._end(face, len(face.points) - face.lost)
        self.count += 1
        self.first = [*self.first, frame] if self.count <= EDGE else []

    def _look(self, frame: Frame) -> None:
        self.picture = frame
        self.size = frame.shape[1::-1]
        self.detected = None
        self.searched += 1
        for face in self.followed:
            face.add(frame, face.finder.find(frame))
        if self.searched >= (NEW_FACES if self.followed else PERIOD):
            self.search_picture(to_grey(frame))
        found = zip(*(self.detected or ((), ())), strict=True)
        for face, confidence in sorted(found, key=lambda pair: pair[0].left()):
            if not any(other.is_at(face) or (other.lost and other.may_be(face)) for other in self.followed):
                follower = _Follower(self, face, confidence, self.first)
                self.followed.append(follower)
                follower.add(frame, follower.finder.find(frame))

    def search_picture(self, grey: UInt8[np.ndarray, "H W"]) -> Detections:
        """Detects the faces in the whole picture, once for all who ask."""
        found = self.detected
        if found is None:
            self.detected = found = self.search(grey)
            self.searched = 0
        return found

    def finish(self) -> Shot:
        """Ends the shot."""
        for face in self.followed:
            self._end(face, len(face.points) - (face.lost if face.lost > EDGE else 0))
        tracks = sorted(self.tracks, key=lambda track: (track.start, track.boxes[0, 0]))
        return Shot(self.start, self.start + self.count, tuple(tracks))

    def _end(self, face: _Follower, length: int) -> None:
        """Makes a track of the first `length` frames of a face, unless they are too few."""
        if length < SHORTEST:
            return
        found = face.points[:length]
        landmarks = fill_gaps(np.stack([NO_POINTS if points is None else points for points in found]))
        if face.stream.overflowed:
            mouths = crop_mouths(itertools.islice(self.decode(), face.start, face.start + length), landmarks)
        else:
            mouths = face.stream.finish(landmarks)
        boxes = np.concatenate([landmarks.min(axis=1), landmarks.max(axis=1)], axis=1) / (self.size * 2)
        share = sum(points is not None for points in found) / length
        self.tracks.append(Track(face.start, mouths, boxes, share))
