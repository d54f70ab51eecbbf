"""Mouth crops of one second as MDS's visual input: as many frames as it wants, of its size and colours.

MDS looks at 30 frames a second of whole faces in colour; ours are 25 grey ones of the mouth. Of the same second, five
are seen twice, and all three colours are the same grey.

Letters: B chunks, S height and width of the network's input.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from avh_shards import FRAME_RATE

FRAMES = 30  # of a chunk: one second
CROP = 96  # height and width, in pixels
MEAN = 0.485, 0.456, 0.406  # of ImageNet's red, green, blue, in 0..1
DEVIATION = 0.229, 0.224, 0.225


def network_frames(crops: UInt8[Array, "B 25 96 96"], image: int) -> Float[Array, "B 30 S S 3"]:
    """Frames repeated, resized to the nearest pixel, and normalised; float32. Compiled, so that only bytes travel.

    Args:
      crops: one second of a clip, at 25 Hz.
      image: height and width of the frames, in pixels: 224 as released, 96 as the crops are.
    """
    pixels = nearest_pixels(image)
    grey = crops[:, source_frames()][:, :, pixels][:, :, :, pixels, None].astype(jnp.float32) / 255
    mean, deviation = (jnp.asarray(values).reshape(1, 1, 1, 1, 3) for values in (MEAN, DEVIATION))
    return (grey - mean) / deviation


def source_frames() -> Int[np.ndarray, "30"]:
    """Which of a second's 25 frames is shown as each of 30: the nearest in time, as in ffmpeg; 3, 8, ... come twice."""
    return (2 * np.arange(FRAMES) * FRAME_RATE + FRAMES) // (2 * FRAMES)


def nearest_pixels(image: int) -> Int[np.ndarray, " S"]:
    """Which of a crop's pixels lies under the centre of each of so many, as in Pillow."""
    return (2 * np.arange(image) + 1) * CROP // (2 * image)
