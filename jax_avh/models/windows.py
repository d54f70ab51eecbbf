"""The alignment task: scores of each visual frame with every audio frame of the window around it, and their loss.

Frames come as a stream of clips laid end to end, with a clip number per frame. A visual frame's window is the
2 tau + 1 audio frames around it; frames of other clips are outside the clip.

Letters: T visual frames, L = T + 2 tau audio frames, W = 2 tau + 1 offsets of a window.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_avh.data.batches import FrameBatch
from jax_avh.models.alignment import FrameNetwork

# The backward pass keeps the hidden layers' matrix products; recomputing everything between them is cheaper than
# storing and loading it.
recomputed = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
UNROLL = 2  # offsets per loop iteration: 4 % faster than one
BLOCK = 64  # frames per matrix product from which a band is taken
FORMS = {"cpu": "loop"}  # backend -> the faster form of the window; "block" for all others


def window_scores(
    network: FrameNetwork, batch: FrameBatch, boundary: str = "zeros", form: str | None = None
) -> tuple[Float[Array, "T W"], Bool[Array, "T W"]]:
    """Scores every pair of the window, projecting each frame only once.

    Args:
      network: a network of both modalities.
      batch: frames of the stream.
      boundary: treatment of audio frames outside the clip: "zeros" replaces them by zero vectors, which compete;
        "mask" leaves them out.
      form: "loop" takes one offset at a time, which stays in a CPU's cache; "block" takes all offsets in a few large
        steps, which suit accelerators. None = the faster form for the backend.

    Returns:
      The scores, and a mask of those that compete.
    """
    frames, window = batch.visual.shape[0], batch.audio.shape[0] - batch.visual.shape[0] + 1
    inside = same_clip(batch.clip, frames)
    shares = network.share("visual", batch.visual), network.share("audio", batch.audio)
    zeros = network.share("audio", jnp.zeros_like(batch.audio[:1]))  # share of a zero vector: only biases
    mean_square = jnp.where(inside, mean_squares(*shares), jnp.mean(jnp.square(shares[0] + zeros), axis=1)[:, None])
    visual, audio, zeros = map(network.weigh, (*shares, zeros))

    @recomputed
    def scores_at(offset: Int[Array, ""]) -> Float[Array, " T"]:
        neighbours = jax.lax.dynamic_slice_in_dim(audio, offset, frames)
        pairs = visual + jnp.where(inside[:, offset, None], neighbours, zeros)
        return network.score(pairs, mean_square[:, offset])

    @recomputed
    def scores_at_all() -> Float[Array, "W T"]:
        neighbours = jnp.concatenate([audio[offset : offset + frames] for offset in range(window)])
        pairs = jnp.tile(visual, (window, 1)) + jnp.where(inside.T.reshape(-1, 1), neighbours, zeros)
        return network.score(pairs, mean_square.T.reshape(-1)).reshape(window, frames)

    if (form or FORMS.get(jax.default_backend(), "block")) == "loop":
        _, scores = jax.lax.scan(lambda _, offset: (None, scores_at(offset)), None, jnp.arange(window), unroll=UNROLL)
    else:
        scores = scores_at_all()
    return scores.T, inside if boundary == "mask" else jnp.ones_like(inside)


def windowed_softmax_loss(scores: Float[Array, "*T W"], valid: Bool[Array, "*T W"] | None = None) -> Float[Array, "*T"]:
    """Returns -log softmax over a window of scores at its centre: small when the frame's own audio scores highest.

    Args:
      scores: scores of each visual frame with the W = 2 tau + 1 audio frames around it, the aligned one in the middle.
      valid: mask of the scores that compete (the centre always must); None = all.

    Returns:
      The loss of each visual frame, in nats; log W if all scores are equal.

    References:
      AVH-Align, equations 1-3.
    """
    scores = scores if valid is None else jnp.where(valid, scores, -jnp.inf)
    return jax.nn.logsumexp(scores, axis=-1) - scores[..., scores.shape[-1] // 2]


def mean_squares(visual: Float[Array, "T H"], audio: Float[Array, "L H"]) -> Float[Array, "T W"]:
    """Returns the mean square of visual[t] + audio[t + w] for every w of the window."""
    frames, window = visual.shape[0], audio.shape[0] - visual.shape[0] + 1
    of_visual, of_audio = (jnp.mean(jnp.square(share), axis=1) for share in (visual, audio))
    neighbours = jnp.stack([of_audio[offset : offset + frames] for offset in range(window)], axis=1)
    return of_visual[:, None] + neighbours + band_products(visual, audio) * (2 / visual.shape[1])


def band_products(visual: Float[Array, "T H"], audio: Float[Array, "L H"]) -> Float[Array, "T W"]:
    """Returns inner products of visual[t] and audio[t + w], as bands of matrix products of blocks."""
    frames, window = visual.shape[0], audio.shape[0] - visual.shape[0] + 1
    blocks, reach = -(-frames // BLOCK), BLOCK + window - 1
    padding = blocks * BLOCK - frames
    visual, audio = (jnp.pad(share, ((0, padding), (0, 0))) for share in (visual, audio))
    audio = jnp.stack([audio[start : start + reach] for start in range(0, blocks * BLOCK, BLOCK)])
    products = jnp.matmul(visual.reshape(blocks, BLOCK, -1), audio.mT, precision=jax.lax.Precision.HIGHEST)
    # The band of row t in a block starts at column t; in rows that are one element longer, it starts at column 0.
    skewed = jnp.pad(products.reshape(blocks, -1), ((0, 0), (0, BLOCK))).reshape(blocks * BLOCK, reach + 1)
    return skewed[:frames, :window]


def same_clip(clip: Int[Array, " L"], frames: int) -> Bool[Array, "T W"]:
    """Marks where audio frame t + w - tau belongs to the clip of visual frame t, for every w of the window."""
    window = clip.shape[0] - frames + 1
    neighbours = jnp.stack([clip[offset : offset + frames] for offset in range(window)], axis=1)
    return neighbours == neighbours[:, window // 2, None]
