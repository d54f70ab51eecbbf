"""Scores of each visual frame with every audio frame of the window around it.

Frames come as a stream: clips laid end to end, each frame with the number of its clip. A visual frame's window is the
2 tau + 1 audio frames around it; those of another clip lie outside.

Letters: T visual frames, L = T + 2 tau audio frames, W = 2 tau + 1 window.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_avh.models.alignment import AlignmentNetwork

PADDING = -1  # clip number of frames that belong to no clip


class FrameBatch(NamedTuple):
    """T consecutive frames of the stream, with tau frames of halo on each side of the audio."""

    visual: Float[Array, "T D"]
    audio: Float[Array, "L D"]
    clip: Int[Array, " L"]  # clip number of each audio frame; visual frame t has that of audio frame t + tau
    weight: Float[Array, " T"]  # 1 = a frame that counts, 0 = padding


def window_scores(
    network: AlignmentNetwork, batch: FrameBatch, boundary: str = "zeros"
) -> tuple[Float[Array, "T W"], Bool[Array, "T W"]]:
    """Scores every pair of the window, each frame projected once.

    A loop over the offsets, whose hidden layers are computed anew in the backward pass, beats one array of all pairs:
    it stays in the cache.

    Args:
      network: the alignment network.
      batch: frames of the stream.
      boundary: audio frames outside the clip are "zeros": zero vectors that compete; or "mask": left out.

    Returns:
      Scores, and where they count.
    """
    frames = batch.visual.shape[0]
    inside = same_clip(batch.clip, frames)
    visual, audio = network.project_visual(batch.visual), network.project_audio(batch.audio)
    nothing = network.project_audio(jnp.zeros_like(batch.audio[:1]))  # a zero vector's share: biases alone

    @jax.checkpoint
    def scores_at(offset: Int[Array, ""]) -> Float[Array, " T"]:
        shifted = jax.lax.dynamic_slice_in_dim(audio, offset, frames)
        within = jax.lax.dynamic_index_in_dim(inside, offset, axis=1)
        return network.score(visual + jnp.where(within, shifted, nothing))

    offsets = jnp.arange(inside.shape[1])
    scores = jax.lax.map(scores_at, offsets).T
    return scores, inside if boundary == "mask" else jnp.ones_like(inside)


def same_clip(clip: Int[Array, " L"], frames: int) -> Bool[Array, "T W"]:
    """Whether audio frame t + w - tau belongs to the clip of visual frame t, for every w of the window."""
    window = clip.shape[0] - frames + 1
    neighbours = jnp.stack([clip[offset : offset + frames] for offset in range(window)], axis=1)
    return neighbours == neighbours[:, window // 2, None]
