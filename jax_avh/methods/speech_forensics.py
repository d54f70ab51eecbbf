"""SpeechForensics: how alike the features of both modalities are at the best offset in time. Needs no training.

Source: SpeechForensics (Liang et al., NeurIPS 2024), section 3: the mean cosine over the frames, the largest over
offsets of up to 15 frames; audio beyond the clip counts as zeros.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from jax_avh.data.batches import FrameBatch
from jax_avh.methods.base import FrameMethod, Reference
from jax_avh.models.layers import normalise
from jax_avh.models.windows import band_products, same_clip

TAU = 15  # frames, on each side
COUNTED = 1250  # frames of a clip: its first 50 s


def outputs(score: None, batch: FrameBatch) -> Float[Array, "T W"]:
    """Cosines of each visual frame with the audio frames around it; 0 beyond the clip."""
    cosines = band_products(normalise(batch.visual), normalise(batch.audio))
    return jnp.where(same_clip(batch.clip, batch.visual.shape[0]), cosines, 0)


def frame_scores(cosines: Float[np.ndarray, "T W"], border: Int64[np.ndarray, "borders"]) -> Float[np.ndarray, " T"]:
    """Fakeness of each frame: minus its cosine at its clip's best offset; beyond 50 s, that clip's own mean.

    So the mean over a clip is minus the largest mean cosine over its first 50 s.
    """
    lengths = np.diff(border)
    frame = np.arange(border[-1]) - np.repeat(border[:-1], lengths)
    counted = frame < COUNTED
    audible = frame[:, None] + np.arange(-TAU, TAU + 1) < COUNTED  # what is cut off is silent for the frames before
    sums = np.add.reduceat(np.where(counted[:, None] & audible, cosines, 0), border[:-1], dtype=np.float64)
    means = sums / np.minimum(lengths, COUNTED)[:, None]
    best = np.repeat(means.argmax(axis=1), lengths)
    at_best = np.where(audible[np.arange(len(best)), best], np.take_along_axis(cosines, best[:, None], 1)[:, 0], 0)
    return np.where(counted, -at_best, -np.repeat(means.max(axis=1), lengths)).astype(np.float32)


METHOD = FrameMethod(
    name="speech_forensics",
    reference=Reference("SpeechForensics, Liang et al., NeurIPS 2024"),
    outputs=outputs,
    tau=TAU,
    frame_scores=frame_scores,
    pooling="mean",
)
