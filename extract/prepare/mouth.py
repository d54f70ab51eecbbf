"""Mouth crops: each frame is turned and scaled to a reference face, then 96x96 pixels around the mouth are cut out."""

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

CROP = 96  # pixels, side of a crop
CANVAS = 256  # pixels, side of the picture that holds the reference face
WINDOW = 12  # frames whose landmarks are averaged before a transform is fitted
STABLE = (33, 36, 39, 42, 45)  # nose base and eye corners: they move with the head, not with speech
MOUTH = slice(48, 68)
REFERENCE = np.array(  # of the stable points on the canvas; AV-HuBERT's mean face
    [
        (128.87017961, 137.30253356),
        (92.52245553, 94.36876014),
        (112.77241724, 94.9436087),
        (145.52511509, 94.53499862),
        (166.67710071, 93.56562296),
    ]
)


def crop_mouths(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], landmarks: Float[np.ndarray, "T 68 2"]
) -> UInt8[np.ndarray, "T 96 96"]:
    """Cuts the mouth out of every frame.

    Frame i is warped by the similarity transform that maps the mean stable points of frames i .. i+11 onto the
    reference; the last 11 frames share the last transform. The crop is centred on the frame's own mouth points.

    Args:
      frames: RGB, an array or one after the other.
      landmarks: (x, y) in pixels.

    Returns:
      Grey crops.
    """
    transforms = _transforms(landmarks)
    crops = np.empty((len(landmarks), CROP, CROP), np.uint8)
    for index, (frame, landmark) in enumerate(zip(frames, landmarks, strict=True)):
        transform = transforms[min(index, len(transforms) - 1)]
        centre = (landmark[MOUTH] @ transform[:, :2].T + transform[:, 2]).mean(axis=0)
        crops[index] = _crop(frame, transform, centre)
    return crops


def similarity(source: Float[np.ndarray, "P 2"], target: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "2 3"]:
    """Least-squares rotation, scale and shift A that maps `source` onto `target`: target = A @ (x, y, 1).

    Points that all coincide give a scale of zero.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    # With points as complex numbers a similarity is one complex factor, whose least-squares value is a ratio.
    s = (source - source_mean) @ np.array([1, 1j])
    t = (target - target_mean) @ np.array([1, 1j])
    energy = np.vdot(s, s).real
    factor = np.vdot(s, t) / energy if energy else 0j
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def _transforms(landmarks: Float[np.ndarray, "T 68 2"]) -> list[np.ndarray]:
    """One transform for each start of a full window (at least one)."""
    window = min(WINDOW, len(landmarks))
    starts = range(len(landmarks) - window + 1)
    return [similarity(landmarks[s : s + window, STABLE].mean(axis=0), REFERENCE) for s in starts]


def _crop(frame, transform: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Warps only the crop's own pixels: the canvas is never made. Levels are truncated, as in the official program."""
    left, top = (round(min(max(c, CROP / 2), CANVAS - CROP / 2)) - CROP // 2 for c in centre)
    shifted = transform - np.array([[0, 0, left], [0, 0, top]])
    warped = cv2.warpAffine(frame.astype(np.float32), shifted, (CROP, CROP), flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(warped.astype(np.uint8), cv2.COLOR_RGB2GRAY)
