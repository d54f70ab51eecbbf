"""Methods without training: how similar the features of both modalities are, and shortcuts that predict labels.

Sources: SpeechForensics (Liang et al., NeurIPS 2024), section 3: the mean cosine over the frames, maximised over
offsets of up to 15 frames; audio beyond the clip counts as zeros. FACTOR (Reiss et al., 2023), its audio-visual part: a
clip's truth score is the 3rd percentile over its frames. AVH-Align (Smeu et al., CVPR 2025), section 3: fakes of
several data sets start with some 30 ms of digital silence.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from avh_shards import leading_silence
from avh_shards.clip import FRAME_RATE, SAMPLE_RATE
from avh_shards.silence import START, leading_amplitude
from jax_avh.data.batches import FrameBatch
from jax_avh.data.source import Source
from jax_avh.methods.base import ClipMethod, FrameMethod
from jax_avh.models.layers import normalise
from jax_avh.models.windows import band_products, same_clip

TAU = 15  # frames on each side in which SpeechForensics searches for the best offset
COUNTED = 1250  # frames of a clip that count: its first 50 s


# --- SpeechForensics: similarity at the best offset in time ----------------------------------------------------------


def window_cosines(score: None, batch: FrameBatch) -> Float[Array, "T W"]:
    """Computes the cosines of each visual frame with the audio frames around it; they are 0 beyond the clip."""
    cosines = band_products(normalise(batch.visual), normalise(batch.audio))
    return jnp.where(same_clip(batch.clip, batch.visual.shape[0]), cosines, 0)


def best_offset_scores(
    cosines: Float[np.ndarray, "T W"], border: Int64[np.ndarray, "borders"]
) -> Float[np.ndarray, " T"]:
    """Returns the fakeness of each frame: minus its cosine at the best offset of its clip.

    Frames beyond 50 s take the clip's mean, so the mean over a clip is minus the largest mean cosine over its first
    50 s.

    Args:
      cosines: cosines of the frames of whole clips, at W = 2 * TAU + 1 offsets.
      border: clip n is frames border[n]:border[n+1].
    """
    lengths = np.diff(border)
    frame = np.arange(border[-1]) - np.repeat(border[:-1], lengths)
    counted = frame < COUNTED
    audible = frame[:, None] + np.arange(-TAU, TAU + 1) < COUNTED  # frames before the limit see zeros beyond it
    sums = np.add.reduceat(np.where(counted[:, None] & audible, cosines, 0), border[:-1], dtype=np.float64)
    means = sums / np.minimum(lengths, COUNTED)[:, None]
    best = np.repeat(means.argmax(axis=1), lengths)
    at_best = np.where(audible[np.arange(len(best)), best], np.take_along_axis(cosines, best[:, None], 1)[:, 0], 0)
    return np.where(counted, -at_best, -np.repeat(means.max(axis=1), lengths)).astype(np.float32)


SPEECH_FORENSICS = FrameMethod(
    name="speech_forensics",
    outputs=window_cosines,
    tau=TAU,
    frame_scores=best_offset_scores,
    pooling="mean",
)


# --- FACTOR: similarity frame by frame -------------------------------------------------------------------------------


def unlikeness(score: None, batch: FrameBatch) -> Float[Array, "T 1"]:
    """Returns the fakeness of each frame: minus the cosine of its two features; 0 if one is a zero vector."""
    return -jnp.sum(normalise(batch.visual) * normalise(batch.audio), axis=-1, keepdims=True)


FACTOR = FrameMethod(
    name="factor",
    outputs=unlikeness,
    pooling="percentile",  # the 97th of the negated truth scores is their 3rd
)


# --- shortcuts: an audit of leaks in a data set, or in a pooling that grows with the length --------------------------


def silent_seconds(source: Source, clip: int) -> float:
    """Returns how long a clip is silent at its start, in seconds."""
    silence = leading_silence(source.waveform(clip, 0, SAMPLE_RATE))
    return silence if silence < 1 else leading_silence(source.waveform(clip))


def quietness(source: Source, clip: int) -> float:
    """Returns minus the largest |x| of a clip's first `START` seconds; full scale is 1."""
    return -leading_amplitude(source.waveform(clip, 0, round(START * SAMPLE_RATE)))


def seconds(source: Source, clip: int) -> float:
    """Returns the length of a clip in seconds."""
    return float(source.lengths[clip]) / FRAME_RATE


LEADING_SILENCE = ClipMethod(name="leading_silence", reads=("waveform",), score=silent_seconds)
LEADING_AMPLITUDE = ClipMethod(name="leading_amplitude", reads=("waveform",), score=quietness)
CLIP_LENGTH = ClipMethod(name="clip_length", score=seconds)
