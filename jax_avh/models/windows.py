"""The alignment task: scores of each visual frame with every audio frame of the window around it, and their loss.

Frames come as a stream of clips laid end to end, with a clip number per frame. A visual frame's window is the
2 tau + 1 audio frames around it; frames of other clips are outside the clip.

Letters: T visual frames, L = T + 2 tau audio frames, W = 2 tau + 1 offsets of a window, H width of a share;
*C chunks, if any.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_avh.data.batches import FrameBatch
from jax_avh.models.alignment import FrameNetwork
from jax_avh.parallel import target_platform

BLOCK = 64  # frames per matrix product from which a band is taken


class Form(NamedTuple):
    """How the window is computed: some offsets per step, each with all frames."""

    offsets: int  # most offsets of a step
    pairs: int = 2**31  # most pairs of frames of a step with more than one offset
    recomputed: tuple[str, ...] = ()  # precisions in which the backward pass computes the products again
    unroll: int = 1  # steps per iteration of the loop


# Everything between the products is computed again, because that is cheaper than storing and loading it. So are the
# products themselves in bfloat16 on accelerators, where memory limits the speed, but float32 products take many times
# longer. A GPU wants large steps, but with all offsets in one it is slower and compiles for minutes. On a TPU, the
# step's arrays (512 numbers per pair) must stay in the fast memory of the core. On CPUs, one offset at a time stays in
# the caches.
FORMS = {"cpu": Form(1, unroll=2), "tpu": Form(501, 4096, ("bfloat16",))}
LARGE_STEPS = Form(8, recomputed=("bfloat16",))  # on all other platforms


def window_scores(
    network: FrameNetwork, batch: FrameBatch, boundary: str = "zeros", form: Form | None = None
) -> tuple[Float[Array, "*C T W"], Bool[Array, "*C T W"]]:
    """Scores every pair of the window, projecting each frame only once.

    Args:
      network: a network of both modalities.
      batch: frames of the stream, or chunks of it.
      boundary: treatment of audio frames outside the clip: "zeros" replaces them by zero vectors, which compete;
        "mask" leaves them out.
      form: how to compute the window; None = the fastest way on the platform.

    Returns:
      The scores, and a mask of those that compete.
    """
    *chunks, frames, width = batch.visual.shape
    inside = same_clip(batch.clip, frames)
    window = inside.shape[-1]
    shares = network.share("visual", batch.visual), network.share("audio", batch.audio)
    zero = jnp.zeros((*[1] * len(chunks), 1, width), batch.audio.dtype)
    zeros = network.share("audio", zero)  # share of a zero vector: only biases
    outside = jnp.mean(jnp.square(shares[0] + zeros), axis=-1)
    mean_square = jnp.where(inside, mean_squares(*shares), outside[..., None])
    visual, audio, zeros = map(network.weigh, (*shares, zeros))

    form = form or FORMS.get(target_platform(), LARGE_STEPS)
    steps = -(-window // min(form.offsets, max(1, form.pairs // math.prod([*chunks, frames]))))
    offsets = -(-window // steps)
    more = offsets * steps - window  # offsets beyond the window, which the last step also computes
    audio = jnp.pad(audio, [*[(0, 0)] * len(chunks), (0, more), (0, 0)])
    by_offset = [jnp.pad(jnp.moveaxis(x, -1, 0), [(0, more), *[(0, 0)] * (x.ndim - 1)]) for x in (inside, mean_square)]

    again = network.precision in form.recomputed
    policies = jax.checkpoint_policies

    @functools.partial(jax.checkpoint, policy=policies.nothing_saveable if again else policies.dots_saveable)
    def scores_from(first: Int[Array, ""]) -> Float[Array, "O *C T"]:
        neighbours = jnp.stack(
            [jax.lax.dynamic_slice_in_dim(audio, first + offset, frames, axis=-2) for offset in range(offsets)]
        )
        here, square = (jax.lax.dynamic_slice_in_dim(array, first, offsets) for array in by_offset)
        pairs = visual[None] + jnp.where(here[..., None], neighbours, zeros[None])
        return network.score(pairs.reshape(-1, pairs.shape[-1]), square.reshape(-1)).reshape(square.shape)

    starts = jnp.arange(steps, dtype=jnp.int32) * offsets
    _, scores = jax.lax.scan(lambda _, first: (None, scores_from(first)), None, starts, unroll=form.unroll)
    scores = scores.reshape(offsets * steps, *chunks, frames)[:window]
    return jnp.moveaxis(scores, 0, -1), inside if boundary == "mask" else jnp.ones_like(inside)


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


def mean_squares(visual: Float[Array, "*C T H"], audio: Float[Array, "*C L H"]) -> Float[Array, "*C T W"]:
    """Returns the mean square of visual[t] + audio[t + w] for every w of the window."""
    frames, window = visual.shape[-2], audio.shape[-2] - visual.shape[-2] + 1
    of_visual, of_audio = (jnp.mean(jnp.square(share), axis=-1) for share in (visual, audio))
    neighbours = jnp.stack([of_audio[..., offset : offset + frames] for offset in range(window)], axis=-1)
    return of_visual[..., None] + neighbours + band_products(visual, audio) * (2 / visual.shape[-1])


@functools.partial(jnp.vectorize, signature="(t,h),(l,h)->(t,w)")
def band_products(visual: Float[Array, "T H"], audio: Float[Array, "L H"]) -> Float[Array, "T W"]:
    """Returns inner products of visual[t] and audio[t + w], as bands of matrix products of blocks."""
    frames, window = visual.shape[0], audio.shape[0] - visual.shape[0] + 1
    blocks, reach = -(-frames // BLOCK), BLOCK + window - 1
    following = -(-reach // BLOCK)  # blocks of audio that a block of visual frames reaches
    visual, audio = (
        jnp.pad(share, ((0, count * BLOCK - len(share)), (0, 0)))
        for share, count in ((visual, blocks), (audio, blocks + following - 1))
    )
    # Joined from whole blocks: the gradient of a slice per block would be an array of all frames per block.
    audio = audio.reshape(-1, BLOCK, audio.shape[1])
    audio = jnp.concatenate([audio[start : start + blocks] for start in range(following)], axis=1)[:, :reach]
    products = jnp.matmul(visual.reshape(blocks, BLOCK, -1), audio.mT, precision=jax.lax.Precision.HIGHEST)
    # The band of row t in a block starts at column t; in rows that are one element longer, it starts at column 0.
    skewed = jnp.pad(products.reshape(blocks, -1), ((0, 0), (0, BLOCK))).reshape(blocks * BLOCK, reach + 1)
    return skewed[:frames, :window]


def same_clip(clip: Int[Array, "*C L"], frames: int) -> Bool[Array, "*C T W"]:
    """Marks where audio frame t + w - tau belongs to the clip of visual frame t, for every w of the window."""
    window = clip.shape[-1] - frames + 1
    neighbours = jnp.stack([clip[..., offset : offset + frames] for offset in range(window)], axis=-1)
    return neighbours == neighbours[..., window // 2, None]
