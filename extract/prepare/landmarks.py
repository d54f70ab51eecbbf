"""68 facial landmarks a frame by dlib, one speaker followed through the clip, gaps filled.

Points: the 300-W annotation (33 nose base, 36/39/42/45 eye corners, 48-67 mouth).
"""

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import cv2
import dlib
import numpy as np
from jaxtyping import Float, UInt8

from extract.clips import ClipError
from extract.schema import InputError

POINTS = 68
UPSAMPLINGS = 1  # before detection: finds faces of 40 pixels
SAME_FACE = 0.3  # least overlap (intersection over union) with the face of the frame before
MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
SYSTEM_MODEL = Path("/usr/share/dlib") / MODEL_FILE  # Debian's libdlib-data


def detect_landmarks(frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Float[np.ndarray, "T 68 2"]:
    """Finds the speaker's landmarks in every frame.

    The first face is the detector's most confident; later ones are those that overlap the face before, else again the
    most confident. Frames without a face are interpolated linearly between their neighbours; the head and the tail copy
    the nearest.

    Args:
      frames: RGB, an array or one after the other.

    Returns:
      (x, y) in pixels, float64.

    Raises:
      ClipError: no frame shows a face.
    """
    points, face = [], None
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        faces, confidences, _ = _detector().run(grey, UPSAMPLINGS, 0.0)
        if not faces:
            points.append(np.full((POINTS, 2), np.nan))
            continue
        face = _same_speaker(faces, confidences, face)
        points.append(np.array([(point.x, point.y) for point in _predictor()(grey, face).parts()], float))
    return fill_gaps(np.stack(points))


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


def _same_speaker(faces, confidences, previous):
    """The face that continues `previous`; without one, the most confident."""
    if previous is not None:
        best = max(faces, key=lambda face: _overlap(face, previous))
        if _overlap(best, previous) >= SAME_FACE:
            return best
    return faces[int(np.argmax(confidences))]


def _overlap(a, b) -> float:
    """Intersection over union of two rectangles."""
    common = a.intersect(b).area()
    return common / (a.area() + b.area() - common)


@functools.cache
def _detector():
    return dlib.get_frontal_face_detector()


@functools.cache
def _predictor():
    spec = importlib.util.find_spec("face_recognition_models")  # its own import needs a setuptools of old
    places = [Path(folder) / "models" / MODEL_FILE for folder in spec.submodule_search_locations] if spec else []
    for place in [*places, SYSTEM_MODEL]:
        if place.is_file():
            return dlib.shape_predictor(str(place))
    raise InputError(f"{MODEL_FILE}: not found; install the package face-recognition-models (extra `extract`)")
