"""Landmarks by tracking: the detector looks at a small picture around the last face, every few frames and on doubt.

Between detections the predictor starts from the last face's box. The small picture is a level of the detector's own
image pyramid, so the box, and with it the points, come out nearly as they would from the full picture.

Faces are counted without further detections. A frame between two detections counts like the one before it, unless the
next regular detection does not find that face again: nobody knows then when it went, and these frames, four at most,
count as frames without a face, as do those that wait for the next search. The small picture does not show faces
elsewhere: their number is that of the last search of everything (the first frame, a cut, a lost face), so one that
comes or goes in between is not noticed.
"""

import cv2
import dlib
import numpy as np
from jaxtyping import UInt8

from extract.face.landmarks import (
    SAME_FACE,
    UPSAMPLINGS,
    CountingFinder,
    Frame,
    Points,
    detector,
    overlap,
    predict,
    same_speaker,
)
from extract.media.decode import to_grey

PERIOD = 5  # frames between two detections
LOW_SCORE = 0.3  # of the detector; below it, every frame is detected
DRIFT = 0.06  # of the face's width: the points' centre has left its place in the box
JUMP = 0.1  # of the face's width: mean move of the points from one frame to the next
CUT = 20.0  # grey levels: mean change of the thumbnail that counts as another scene
THUMBNAIL = (32, 24)  # pixels
SEARCH_SIDE = 1280  # pixels: a picture with a longer side is shrunk before a search
PYRAMID = 5 / 6  # between levels of the detector's pyramid
SMALLEST_FACE = 80  # pixels: the detector's window
REGION = 3.0  # side of the searched region, in widths of the face
CELL = 8  # pixels: the detector's grid

Grey = UInt8[np.ndarray, "H W"]


def tracked() -> CountingFinder:
    """A finder that tracks the speaker; see the module."""
    tracker = _Tracker()
    return CountingFinder(tracker.find, tracker.counts)


class _Tracker:
    def __init__(self):
        self.face: dlib.rectangle | None = None  # of the last detection
        self.points: Points | None = None  # of the last frame; None = the face is lost
        self.centre = np.zeros(2)  # of the points, in pixels from the box's own, at the last detection
        self.score = 0.0
        self.age = PERIOD  # frames since the last detection, or search without success: the first frame is searched
        self.thumbnail: np.ndarray | None = None
        self.counts: list[int] = []  # faces in each picture so far
        self.searched = 0  # faces that the last search of everything found
        self.count = 0  # faces in the picture of the last detection

    def find(self, frame: Frame) -> Points | None:
        grey = to_grey(frame)
        self.age += 1
        self.counts.append(0)
        cut = self._is_cut(grey)
        if self.points is None and not cut and self.age < PERIOD:
            return None  # lost: a search of everything is expensive and waits its turn; the frames between are gaps
        if self.points is None or cut:
            return self._search(grey)
        if self.age >= PERIOD or self.score < LOW_SCORE:
            return self._confirm(grey)
        assert self.face is not None
        points = predict(grey, self.face)
        return self._detect(grey) if self._in_doubt(points) else self._keep(points)

    def _is_cut(self, grey: Grey) -> bool:
        before = self.thumbnail
        self.thumbnail = cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        return before is None or bool(np.abs(self.thumbnail - before).mean() > CUT)

    def _in_doubt(self, points: Points) -> bool:
        assert self.face is not None
        assert self.points is not None
        width = self.face.width()
        drift = np.abs(points.mean(axis=0) - _centre(self.face) - self.centre).max()
        jump = np.linalg.norm(points - self.points, axis=1).mean()
        return bool(drift > DRIFT * width or jump > JUMP * width)

    def _confirm(self, grey: Grey) -> Points | None:
        """Detects; if the face is not there any more, the pictures since the last detection count as without one."""
        face = self.face
        tracked = self.age - 1
        points = self._detect(grey)
        if points is None or face is None or self.face is None or overlap(self.face, face) < SAME_FACE:
            end = len(self.counts) - 1
            self.counts[end - tracked : end] = [0] * tracked
        return points

    def _detect(self, grey: Grey) -> Points | None:
        """Detects around the last face; looks everywhere if it is not there."""
        assert self.face is not None
        assert self.points is not None
        scale = _level(self.face.width())
        centre = self.points.mean(axis=0) * scale
        reach = REGION / 2 * self.face.width() * scale
        left, top = (max(0, int((c - reach) // CELL)) * CELL for c in centre)
        small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        region = np.ascontiguousarray(small[top : int(centre[1] + reach), left : int(centre[0] + reach)])
        found = _run(region, 0) if min(region.shape) >= SMALLEST_FACE else None
        return self._take(grey, found, scale, left, top) if found else self._search(grey)

    def _search(self, grey: Grey) -> Points | None:
        scale = min(1.0, SEARCH_SIDE / max(grey.shape))
        small = grey if scale == 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = _run(small, UPSAMPLINGS)
        self.age = 0
        self.searched = len(found[0]) if found else 0
        if not found:
            self.points = None
            return None
        return self._take(grey, found, scale, 0, 0)

    def _take(self, grey: Grey, found, scale: float, left: int, top: int) -> Points:
        """Goes on from a detection in a picture scaled by `scale` and cut at (left, top)."""
        faces = [_rectangle(face, scale, left, top) for face in found[0]]
        self.face, self.score = same_speaker(faces, found[1], self.face)
        self.age = 0
        self.count = max(len(faces), self.searched)
        points = predict(grey, self.face)
        self.centre = points.mean(axis=0) - _centre(self.face)
        return self._keep(points)

    def _keep(self, points: Points) -> Points:
        self.points = points
        self.counts[-1] = self.count
        return points


def _run(grey: Grey, upsamplings: int):
    """Faces and their confidences, or None."""
    faces, confidences, _ = detector().run(grey, upsamplings, 0.0)
    return (faces, confidences) if faces else None


def _level(width: int) -> float:
    """Scale of the smallest level, in the full search's pyramid, on which a face of `width` is still found."""
    scale = 2.0**UPSAMPLINGS
    while width * scale * PYRAMID >= SMALLEST_FACE:
        scale *= PYRAMID
    return scale


def _rectangle(face: dlib.rectangle, scale: float, left: int, top: int) -> dlib.rectangle:
    """A face of a scaled and cut picture, in the full one."""
    corners = (face.left() + left, face.top() + top, face.right() + left, face.bottom() + top)
    return dlib.rectangle(*(round(value / scale) for value in corners))


def _centre(face: dlib.rectangle) -> np.ndarray:
    return np.array([(face.left() + face.right()) / 2, (face.top() + face.bottom()) / 2])
