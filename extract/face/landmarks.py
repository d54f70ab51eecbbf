"""68 facial landmarks a frame by dlib, one speaker followed through the clip, gaps filled.

Points: the 300-W annotation (33 nose base, 36/39/42/45 eye corners, 48-67 mouth). A finder is a function that is called
with a clip's frames in order and gives the points of each, or None where there is no face. The finders here also count
the faces of each frame.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import dlib
import numpy as np
from jaxtyping import Float, Int, UInt8

from avh_shards import UserError
from avh_shards.clip_list import MAX_FRAMES
from avh_shards.errors import ClipError
from avh_shards.text import one_line
from extract.convert.npz import open_archive, read_array
from extract.media.decode import to_grey

POINTS = 68
UPSAMPLINGS = 1  # before detection: finds faces of 40 pixels
SAME_FACE = 0.3  # least overlap (intersection over union) with the face of the frame before
MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
SYSTEM_MODEL = Path("/usr/share/dlib") / MODEL_FILE  # Debian's libdlib-data

Frame = UInt8[np.ndarray, "H W 3"]
Points = Float[np.ndarray, "68 2"]  # (x, y) in pixels
Finder = Callable[[Frame], Points | None]


class CountingFinder:
    """A finder that looks at each picture once, and counts faces: slow videos show one several times at 25 fps.

    A repeated picture has the points it had, and its faces count in every frame that shows it.
    """

    def __init__(self, look: Callable[[Frame], Points | None], counts: list[int]):
        """Wraps a finder of pictures.

        Args:
          look: gives the points of a picture.
          counts: number of faces in each picture so far; `look` keeps it and may correct earlier entries.
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
    """A finder that runs the detector on every full frame, as the official program does.

    The first face is the detector's most confident; later ones are those that overlap the face before, else again the
    most confident. All faces of every picture are counted.
    """
    face: dlib.rectangle | None = None
    counts: list[int] = []

    def find(frame: Frame) -> Points | None:
        nonlocal face
        grey = to_grey(frame)
        faces, confidences, _ = detector().run(grey, UPSAMPLINGS, 0.0)
        counts.append(len(faces))
        if not faces:
            return None
        face, _ = same_speaker(faces, confidences, face)
        return predict(grey, face)

    return CountingFinder(find, counts)


class GivenPoints:
    """A finder that reads points instead: a npz file with `landmarks` [T, 68, 2], NaN where there is no face."""

    def __init__(self, path: str | os.PathLike):
        """Reads the file.

        Raises:
          ClipError: the file is missing, damaged or of another shape.
        """
        self.path = path
        self.used = 0
        self.points = _read_points(Path(path))

    def __call__(self, frame: Frame) -> Points | None:  # noqa: D102 (a finder)
        self.used += 1
        points = self.points[min(self.used, len(self.points)) - 1]
        return None if np.isnan(points).any() else points

    def faces(self) -> Int[np.ndarray, " T"]:
        """Returns 1 for each frame of the file that has points, else 0; other faces of the frame are unknown."""
        without = np.isnan(self.points).any(axis=(1, 2))
        return np.where(without, 0, 1)


def detect_landmarks(frames: Iterable[Frame], find: Finder | None = None) -> Float[np.ndarray, "T 68 2"]:
    """Finds the speaker's landmarks in every frame, gaps filled.

    Args:
      frames: RGB, an array or one after the other.
      find: a finder; by default `every_frame`.

    Returns:
      (x, y) in pixels, float64.

    Raises:
      ClipError: no frame shows a face.
    """
    find = find or every_frame()
    return fill_gaps(np.stack([unknown() if (points := find(frame)) is None else points for frame in frames]))


def fill_gaps(points: Float[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T 68 2"]:
    """Replaces frames of NaN: linearly between neighbours, constant before the first and after the last.

    Raises:
      ClipError: every frame is NaN.
    """
    known = np.flatnonzero(~np.isnan(points[:, 0, 0]))
    if not len(known):
        raise ClipError("landmarks", "no face found")
    columns = points.reshape(len(points), -1).T
    filled = [np.interp(np.arange(len(points)), known, column[known]) for column in columns]
    return np.stack(filled, axis=1).reshape(points.shape)


def unknown() -> Points:
    """The points of a frame without a face: NaN."""
    return np.full((POINTS, 2), np.nan)


def predict(grey: UInt8[np.ndarray, "H W"], face: dlib.rectangle) -> Points:
    """The points of a face."""
    return np.array([(point.x, point.y) for point in _predictor()(grey, face).parts()], float)


def same_speaker(faces, confidences, previous) -> tuple[dlib.rectangle, float]:
    """The face that continues `previous`, without one the most confident; and its confidence."""
    best = int(np.argmax(confidences))
    if previous is not None:
        overlaps = [overlap(face, previous) for face in faces]
        if max(overlaps) >= SAME_FACE:
            best = int(np.argmax(overlaps))
    return faces[best], float(confidences[best])


def overlap(a: dlib.rectangle, b: dlib.rectangle) -> float:
    """Intersection over union of two rectangles."""
    common = a.intersect(b).area()
    return common / (a.area() + b.area() - common)


def _read_points(path: Path) -> Float[np.ndarray, "T 68 2"]:
    try:
        with open_archive(path) as archive:
            points = read_array(archive, "landmarks", MAX_FRAMES * POINTS * 2).astype(np.float64)
    except FileNotFoundError:
        raise ClipError("landmarks", f"no such file: {path}") from None
    except Exception as error:  # a damaged zip or npy raises whatever its parsers do
        reason = one_line(str(error)[:200])
        raise ClipError("landmarks", f"{path}: not a npz file with `landmarks` ({reason})") from error
    if points.ndim != 3 or points.shape[1:] != (POINTS, 2) or np.isinf(points).any() or not len(points):
        raise ClipError("landmarks", f"{path}: `landmarks` is {list(points.shape)}, not finite [T, {POINTS}, 2]")
    return points


@functools.cache
def detector():
    """Dlib's frontal face detector."""
    return dlib.get_frontal_face_detector()


@functools.cache
def _predictor():
    spec = importlib.util.find_spec("face_recognition_models")  # its own import needs an old setuptools
    folders = spec.submodule_search_locations if spec else None
    for file in [*(Path(folder) / "models" / MODEL_FILE for folder in folders or ()), SYSTEM_MODEL]:
        if file.is_file():
            return dlib.shape_predictor(str(file))
    raise UserError(f"{MODEL_FILE}: not found; install the package face-recognition-models (extra `extract`)")
