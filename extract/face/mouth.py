"""Mouth crops: each frame is rotated and scaled to a reference face, then cropped to 96x96 pixels around the mouth."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from extract.face.landmarks import NO_POINTS, Finder, Points, fill_gaps
from extract.media.decode import Frame

CROP = 96  # pixels, side of a crop
CANVAS = 256  # pixels, side of the picture of the reference face
SMOOTHED_FRAMES = 12  # frames whose landmarks are averaged before fitting a transform
FRAME_MARGIN = 2  # pixels of the frame around the area of a crop
HELD_BYTES = 2**29  # most bytes of frames that wait for landmarks
STABLE = (33, 36, 39, 42, 45)  # nose base and eye corners: they move with the head, not with speech
MOUTH = slice(48, 68)
REFERENCE = np.array(  # stable points of AV-HuBERT's mean face on the canvas
    [
        (128.87017961, 137.30253356),
        (92.52245553, 94.36876014),
        (112.77241724, 94.9436087),
        (145.52511509, 94.53499862),
        (166.67710071, 93.56562296),
    ]
)


@dataclasses.dataclass(frozen=True)
class Mouths:
    """Mouth crops of every frame of a clip, and the landmarks in them."""

    crops: UInt8[np.ndarray, "T 96 96"]  # grey
    points: Float[np.ndarray, "T 68 2"] | None = None  # landmarks in pixels of the crop, float32; None if unknown


def find_mouths(decode: Callable[[], Iterable[Frame]], find: Finder) -> Mouths:
    """Finds and crops the mouth in one pass over the frames.

    Holds only frames whose crops still wait for landmarks: the next 11, and those in a gap. If a gap would hold more
    than HELD_BYTES, the frames are decoded again once all landmarks are known.

    Args:
      decode: returns the frames from the start, each time it is called.
      find: returns the landmarks of a frame, or None.

    Returns:
      The same crops as `crop_mouths` with `landmarks.fill_gaps`.

    Raises:
      ClipError: no face was found.
    """
    stream = MouthStream()
    for frame in decode():
        stream.add(frame, find(frame))
    landmarks = fill_gaps(np.stack(stream.points))
    return crop_mouths(decode(), landmarks) if stream.overflowed else stream.finish(landmarks)


def crop_mouths(frames: Iterable[Frame], landmarks: Float[np.ndarray, "T 68 2"]) -> Mouths:
    """Crops the mouth in every frame, as AV-HuBERT's preparation does.

    Frame i is warped by the similarity transform that maps the mean stable points of frames i .. i+11 onto the
    reference; the last 11 frames share the last transform. The crop is centred on the frame's own mouth points.

    Args:
      frames: RGB frames, as an array or iterable.
      landmarks: (x, y) in pixels of the frames, without NaN.

    Returns:
      Grey crops, uint8 [T, 96, 96], and the landmarks in them, float32 [T, 68, 2].
    """
    last = max(len(landmarks) - SMOOTHED_FRAMES, 0)  # start of the last window
    crops = [
        _crop(frame, _transform(landmarks[min(index, last) :][:SMOOTHED_FRAMES]), landmarks[index])
        for index, frame in enumerate(frames)
    ]
    assert len(crops) == len(landmarks)
    return _mouths(crops)


class MouthStream:
    """Stream of frames and landmarks that crops each frame as soon as all landmarks for its crop are known."""

    def __init__(self):
        self.points: list[Points] = []  # of every frame so far; NaN if not found
        self.settled = 0  # frames whose points no later frame can change
        self.held: collections.deque[Frame] = collections.deque()  # frames not cropped yet
        self.crops: list[tuple] = []
        self.overflowed = False

    def add(self, frame: Frame, points: Points | None) -> None:
        """Appends a frame and its landmarks, None if unknown."""
        self.points.append(NO_POINTS if points is None else points)
        if self.overflowed:
            return
        self.held.append(frame)
        if points is not None:
            before = max(self.settled - 1, 0)
            self.points[before:] = fill_gaps(np.stack(self.points[before:]))
            self.settled = len(self.points)
            while len(self.crops) + SMOOTHED_FRAMES <= self.settled:
                self._crop_next(np.stack(self.points[len(self.crops) :][:SMOOTHED_FRAMES]))
        elif len(self.held) * frame.nbytes > HELD_BYTES:
            self.overflowed = True
            self.held.clear()

    def finish(self, landmarks: Float[np.ndarray, "T 68 2"]) -> Mouths:
        """Crops the frames that wait; those after the last of the landmarks are left out."""
        last = max(len(landmarks) - SMOOTHED_FRAMES, 0)
        self.points = list(landmarks)
        while len(self.crops) < len(landmarks):
            self._crop_next(landmarks[min(len(self.crops), last) :][:SMOOTHED_FRAMES])
        return _mouths(self.crops)

    def _crop_next(self, window: Float[np.ndarray, "W 68 2"]) -> None:
        points = self.points[len(self.crops)]
        self.crops.append(_crop(self.held.popleft(), _transform(window), points))


def _mouths(crops: Sequence[tuple]) -> Mouths:
    pictures, points = zip(*crops, strict=True)
    return Mouths(np.stack(pictures), np.stack(points).astype(np.float32))


def similarity(source: Float[np.ndarray, "P 2"], target: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "2 3"]:
    """Fits the rotation, scale and shift A that map `source` onto `target` by least squares: target = A @ (x, y, 1).

    The scale is zero if all source points coincide.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    # On complex numbers, a similarity is a product with one factor, whose least-squares value is a ratio.
    s = (source - source_mean) @ np.array([1, 1j])
    t = (target - target_mean) @ np.array([1, 1j])
    energy = np.vdot(s, s).real
    factor = np.vdot(s, t) / energy if energy else 0j
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def _transform(window: Float[np.ndarray, "W 68 2"]) -> Float[np.ndarray, "2 3"]:
    return similarity(window[:, STABLE].mean(axis=0), REFERENCE)


def _crop(frame: Frame, transform: Float[np.ndarray, "2 3"], landmarks: Points) -> tuple[np.ndarray, np.ndarray]:
    """Returns a crop and its landmarks; grey levels are truncated to integers, as in the official program.

    Warps only the pixels of the crop, from the part of the frame that they come from.
    """
    points = landmarks @ transform[:, :2].T + transform[:, 2]
    corner = [round(min(max(c, CROP / 2), CANVAS - CROP / 2)) - CROP // 2 for c in points[MOUTH].mean(axis=0)]
    linear, shift = transform[:, :2], transform[:, 2] - corner
    left, top, part = _part(frame, linear, shift)
    shift = shift + linear @ [left, top]
    warped = cv2.warpAffine(part, np.column_stack([linear, shift]), (CROP, CROP), flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(warped.astype(np.uint8), cv2.COLOR_RGB2GRAY), points - corner


def _part(frame: Frame, linear: np.ndarray, shift: np.ndarray) -> tuple[int, int, Float[np.ndarray, "h w 3"]]:
    """Returns the part of a frame that a crop covers, at least one pixel: left, top and the pixels."""
    height, width = frame.shape[:2]
    if np.linalg.det(linear) < 1e-12:  # all stable points coincide
        return 0, 0, frame.astype(np.float32)
    corners = np.array([(x, y) for x in (0, CROP) for y in (0, CROP)]) - shift
    seen = corners @ np.linalg.inv(linear).T
    left, top = np.clip(seen.min(axis=0) - FRAME_MARGIN, 0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.clip(seen.max(axis=0) + FRAME_MARGIN, (left + 1, top + 1), (width, height)).astype(int).tolist()
    return left, top, frame[top:bottom, left:right].astype(np.float32)
