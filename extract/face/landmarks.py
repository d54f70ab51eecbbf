"""68 facial landmarks per frame, found with dlib for one speaker throughout the clip, with gaps filled.

Points follow the 300-W annotation (33 nose base, 36/39/42/45 eye corners, 48-67 mouth). A finder is called with the
frames of a clip in order and returns the points of each, or None where it finds no face. The three finders detect faces
in every frame, track a face between detections, or read points from a file. All of them count the faces in each frame.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import dlib
import numpy as np
from jaxtyping import Float, Int, UInt8

from avh_shards import UserError
from avh_shards.clip_list import MAX_FRAMES
from avh_shards.errors import ClipError
from avh_shards.text import one_line
from extract.convert.npz import open_archive, read_array
from extract.media.decode import Frame, to_grey

POINTS = 68
UPSAMPLINGS = 1  # before detection, to find faces of 40 pixels
SAME_FACE = 0.3  # least overlap (intersection over union) with the face in the previous frame
MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
SYSTEM_MODEL = Path("/usr/share/dlib") / MODEL_FILE  # Debian's libdlib-data

# Tracking.
PERIOD = 5  # frames between two detections
LOW_SCORE = 0.3  # detector confidence below which every frame is detected
DRIFT = 0.06  # largest shift of the points' centre within the box, in face widths
JUMP = 0.1  # largest mean move of the points between frames, in face widths
CUT = 20.0  # grey levels: mean change of the thumbnail above which the scene has changed
THUMBNAIL = (32, 24)  # pixels
SEARCH_SIDE = 1280  # pixels: a picture with a longer side is scaled down before a search
PYRAMID = 5 / 6  # scale between levels of the detector's pyramid
SMALLEST_FACE = 80  # pixels: the detector's window
REGION = 3.0  # side of the searched region, in face widths
CELL = 8  # pixels: the detector's grid

Grey = UInt8[np.ndarray, "H W"]
Points = Float[np.ndarray, "68 2"]  # (x, y) in pixels
Finder = Callable[[Frame], Points | None]
Detections = tuple[Sequence[dlib.rectangle], Sequence[float]]  # faces in a picture, and the detector's confidences
# Selects a face: (faces, confidences, the previous frame's face or None) -> face and confidence, or None.
Choice = Callable[
    [Sequence[dlib.rectangle], Sequence[float], dlib.rectangle | None], tuple[dlib.rectangle, float] | None
]

NONE_DETECTED: Detections = ((), ())
NO_POINTS: Points = np.full((POINTS, 2), np.nan)  # the points of a frame without a face


class CountingFinder:
    """A finder that counts faces and processes repeated pictures only once: slow videos repeat them at 25 fps.

    A repeated picture keeps its points, and its faces count in every frame that shows it.
    """

    def __init__(self, look: Callable[[Frame], Points | None], counts: list[int]):
        """Wraps a finder of pictures.

        Args:
          look: returns the points of a picture, or None.
          counts: number of faces in each picture so far; `look` updates it and may correct earlier entries.
        """
        self._look = look
        self._counts = counts
        self._repeats: list[int] = []  # frames that show each picture
        self._last: Frame | None = None
        self._points: Points | None = None

    def __call__(self, frame: Frame) -> Points | None:  # noqa: D102 (a finder)
        if frame is not self._last:
            self._last = frame
            self._points = self._look(frame)
            self._repeats.append(0)
        self._repeats[-1] += 1
        return self._points

    def faces(self) -> Int[np.ndarray, " T"]:
        """Returns the number of faces in each frame so far; 0 where none was found."""
        return np.repeat(np.array(self._counts, np.int64), np.array(self._repeats, np.int64))


def every_frame() -> CountingFinder:
    """Returns a finder that runs the detector on every full frame, as the official program does.

    The first face is the one with the highest confidence. Later faces are those that overlap the previous one, or again
    the one with the highest confidence. All faces in every picture are counted.
    """
    searcher = Searcher()
    return CountingFinder(searcher.find, searcher.counts)


def tracked() -> CountingFinder:
    """Returns a finder that tracks the speaker between detections; see `Tracker`."""
    tracker = Tracker()
    return CountingFinder(tracker.find, tracker.counts)


class GivenPoints:
    """A finder that reads points from an npz file with `landmarks` [T, 68, 2], NaN in frames without a face."""

    def __init__(self, path: str | os.PathLike):
        """Reads the file.

        Raises:
          ClipError: the file is missing or damaged, or the array has a different shape.
        """
        self.path = path
        self.used = 0
        self.points = _read_points(Path(path))

    def __call__(self, frame: Frame) -> Points | None:  # noqa: D102 (a finder)
        self.used += 1
        points = self.points[min(self.used, len(self.points)) - 1]
        return None if np.isnan(points).any() else points

    def faces(self) -> Int[np.ndarray, " T"]:
        """Returns 1 for each frame in the file that has points, else 0; other faces in a frame are unknown."""
        without = np.isnan(self.points).any(axis=(1, 2))
        return np.where(without, 0, 1)


def detect_landmarks(frames: Iterable[Frame], find: Finder | None = None) -> Float[np.ndarray, "T 68 2"]:
    """Finds the speaker's landmarks in every frame and fills gaps.

    Args:
      frames: RGB frames, as an array or iterable.
      find: a finder, which takes each frame in order and returns its points or None; `every_frame` by default.

    Returns:
      (x, y) in pixels, float64, in the order of the 300-W annotation.

    Raises:
      ClipError: no frame shows a face.
      UserError: the landmark model is not installed.
    """
    find = find or every_frame()
    return fill_gaps(np.stack([NO_POINTS if (points := find(frame)) is None else points for frame in frames]))


def fill_gaps(points: Float[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T 68 2"]:
    """Fills frames of NaN by linear interpolation, and by the nearest points before the first and after the last.

    Raises:
      ClipError: every frame is NaN.
    """
    known = np.flatnonzero(~np.isnan(points[:, 0, 0]))
    if not len(known):
        raise ClipError("landmarks", "no face found")
    columns = points.reshape(len(points), -1).T
    filled = [np.interp(np.arange(len(points)), known, column[known]) for column in columns]
    return np.stack(filled, axis=1).reshape(points.shape)


def predict(grey: Grey, face: dlib.rectangle) -> Points:
    """Returns the points of a face."""
    return np.array([(point.x, point.y) for point in predictor()(grey, face).parts()], float)


def search_all(grey: Grey) -> Detections:
    """Detects faces in a picture of any size; takes seconds for large ones."""
    faces, confidences = _run(grey, UPSAMPLINGS) or NONE_DETECTED
    return list(faces), list(confidences)


def search_scaled(grey: Grey) -> Detections:
    """Detects faces in a picture scaled down to SEARCH_SIDE pixels; they are in pixels of the original."""
    scale = min(1.0, SEARCH_SIDE / max(grey.shape))
    small = grey if scale == 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    faces, confidences = _run(small, UPSAMPLINGS) or NONE_DETECTED
    return [_rectangle(face, scale, 0, 0) for face in faces], list(confidences)


def same_speaker(faces, confidences, previous) -> tuple[dlib.rectangle, float]:
    """Selects the speaker's face.

    Args:
      faces: detected rectangles.
      confidences: detector confidence of each.
      previous: the speaker's rectangle in the previous frame, or None.

    Returns:
      The face that overlaps `previous` most, or the one with the highest confidence if none overlaps it enough, and its
      confidence.
    """
    best = int(np.argmax(confidences))
    if previous is not None:
        overlaps = [overlap(face, previous) for face in faces]
        if max(overlaps) >= SAME_FACE:
            best = int(np.argmax(overlaps))
    return faces[best], float(confidences[best])


def overlap(a: dlib.rectangle, b: dlib.rectangle) -> float:
    """Returns the intersection over union of two rectangles."""
    common = a.intersect(b).area()
    return common / (a.area() + b.area() - common)


def _read_points(path: Path) -> Float[np.ndarray, "T 68 2"]:
    try:
        with open_archive(path) as archive:
            points = read_array(archive, "landmarks", MAX_FRAMES * POINTS * 2).astype(np.float64)
    except FileNotFoundError:
        raise ClipError("landmarks", f"no such file: {path}") from None
    except Exception as error:  # parsers can raise anything on a damaged zip or npy
        reason = one_line(str(error)[:200])
        raise ClipError("landmarks", f"{path}: not an npz file with `landmarks` ({reason})") from error
    if points.ndim != 3 or points.shape[1:] != (POINTS, 2) or np.isinf(points).any() or not len(points):
        raise ClipError("landmarks", f"{path}: `landmarks` is {list(points.shape)}, not finite [T, {POINTS}, 2]")
    return points


@functools.cache
def detector():
    """Returns dlib's frontal face detector, loaded once."""
    return dlib.get_frontal_face_detector()


@functools.cache
def predictor():
    """Returns dlib's 68-point landmark model, loaded once.

    Raises:
      UserError: the model is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")  # importing the package needs an old setuptools
    folders = spec.submodule_search_locations if spec else None
    for file in [*(Path(folder) / "models" / MODEL_FILE for folder in folders or ()), SYSTEM_MODEL]:
        if file.is_file():
            return dlib.shape_predictor(str(file))
    raise UserError(f"{MODEL_FILE}: not found; install the package face-recognition-models (extra `extract`)")


class Searcher:
    """Finder of pictures that runs the detector on each, and chooses one of the faces."""

    def __init__(self, search: Callable[[Grey], Detections] = search_all, choose: Choice = same_speaker):
        self.face: dlib.rectangle | None = None  # in the last picture that shows one
        self.counts: list[int] = []  # faces in each picture so far
        self._search = search
        self._choose = choose

    def find(self, frame: Frame) -> Points | None:
        """Returns the landmarks of the chosen face in the next picture; None if there is none."""
        grey = to_grey(frame)
        faces, confidences = self._search(grey)
        self.counts.append(len(faces))
        chosen = self._choose(faces, confidences, self.face) if len(faces) else None
        if chosen is None:
            return None
        self.face, _ = chosen
        return predict(grey, self.face)


class Tracker:
    """Face tracker that runs the detector on a small picture around the last face, every few frames and when in doubt.

    Between detections the predictor starts from the box of the last face. The small picture is a level of the
    detector's own image pyramid, so box and points are nearly those from the full picture.

    Faces are counted without further detections. A frame between two detections counts like the previous one, unless
    the next regular detection does not find the face again. It is then unknown when the face disappeared, and these
    frames, at most four, count as frames without a face, as do frames that wait for the next search. The small picture
    does not show faces elsewhere; their number is taken from the last full search (first frame, cut or lost face), so a
    face that appears or disappears in between goes unnoticed.
    """

    def __init__(self, search: Callable[[Grey], Detections] = search_scaled, choose: Choice = same_speaker):
        """Prepares for the first picture.

        Args:
          search: detects faces in a whole picture.
          choose: selects the face to follow among those detected, or none of them.
        """
        self._search_picture = search
        self._choose = choose
        self.face: dlib.rectangle | None = None  # of the last detection
        self.points: Points | None = None  # of the last frame; None if the face is lost
        self.centre = np.zeros(2)  # centre of the points minus centre of the box in pixels, at the last detection
        self.score = 0.0
        self.age = PERIOD  # frames since the last detection or failed search; initially due for a search
        self.thumbnail: np.ndarray | None = None
        self.counts: list[int] = []  # faces in each picture so far
        self.searched = 0  # faces found by the last full search
        self.count = 0  # faces in the picture of the last detection

    def find(self, frame: Frame) -> Points | None:
        """Returns the landmarks of the followed face in the next picture; None while it is lost."""
        grey = to_grey(frame)
        self.age += 1
        self.counts.append(0)
        cut = self._is_cut(grey)
        if self.points is None and not cut and self.age < PERIOD:
            return None  # lost: a full search is expensive and runs once per period; frames in between are gaps
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
        """Detects; if the face is gone, the pictures since the last detection count as having no face."""
        face = self.face
        tracked = self.age - 1
        points = self._detect(grey)
        if points is None or face is None or self.face is None or overlap(self.face, face) < SAME_FACE:
            end = len(self.counts) - 1
            self.counts[end - tracked : end] = [0] * tracked
        return points

    def _detect(self, grey: Grey) -> Points | None:
        """Detects around the last face; searches the full picture if it is gone."""
        assert self.face is not None
        assert self.points is not None
        scale = _level(self.face.width())
        centre = self.points.mean(axis=0) * scale
        reach = REGION / 2 * self.face.width() * scale
        left, top = (max(0, int((c - reach) // CELL)) * CELL for c in centre)
        small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        region = np.ascontiguousarray(small[top : int(centre[1] + reach), left : int(centre[0] + reach)])
        found = (_run(region, 0) if min(region.shape) >= SMALLEST_FACE else None) or NONE_DETECTED
        points = self._take(grey, [_rectangle(face, scale, left, top) for face in found[0]], list(found[1]))
        return self._search(grey) if points is None else points

    def _search(self, grey: Grey) -> Points | None:
        faces, confidences = self._search_picture(grey)
        self.searched = len(faces)
        return self._take(grey, faces, confidences)

    def _take(self, grey: Grey, faces: Sequence[dlib.rectangle], confidences: Sequence[float]) -> Points | None:
        """Resumes tracking from one of the faces detected in a picture; the face is lost if it is not among them."""
        self.age = 0
        chosen = self._choose(faces, confidences, self.face) if len(faces) else None
        if chosen is None:
            self.points = None
            return None
        self.face, self.score = chosen
        self.count = max(len(faces), self.searched)
        points = predict(grey, self.face)
        self.centre = points.mean(axis=0) - _centre(self.face)
        return self._keep(points)

    def _keep(self, points: Points) -> Points:
        self.points = points
        self.counts[-1] = self.count
        return points


def _run(grey: Grey, upsamplings: int):
    """Returns faces and their confidences, or None if no face is found."""
    faces, confidences, _ = detector().run(grey, upsamplings, 0.0)
    return (faces, confidences) if faces else None


def _level(width: int) -> float:
    """Returns the scale of the smallest level in the full search's pyramid that still detects a face of `width`."""
    scale = 2.0**UPSAMPLINGS
    while width * scale * PYRAMID >= SMALLEST_FACE:
        scale *= PYRAMID
    return scale


def _rectangle(face: dlib.rectangle, scale: float, left: int, top: int) -> dlib.rectangle:
    """Maps a face in a scaled and cropped picture to the full picture."""
    corners = (face.left() + left, face.top() + top, face.right() + left, face.bottom() + top)
    return dlib.rectangle(*(round(value / scale) for value in corners))


def _centre(face: dlib.rectangle) -> np.ndarray:
    return np.array([(face.left() + face.right()) / 2, (face.top() + face.bottom()) / 2])
