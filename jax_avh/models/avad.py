"""AVAD's decoder: predicts how well each delay will fit a clip's next window, from how well each fitted so far.

Its parameters have the official names, part by part of the modules' tree. The official `compress_fn.conv` of each
block is left out: the released program never applies it.

Source: AVAD (Feng et al., "Self-supervised video forensics by audio-visual anomaly detection", CVPR 2023), and where
the released program differs from it (scores in, not probabilities; attention's scale), the program.
Letters: B sequences, N steps, W delays, D model width, H heads, K width of a head, M = N + 1 keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jax_avh.models import FrameNetwork
from jax_avh.models.layers import DTYPES, apply_linear, dropout, linear, row, torch_uniform

DECODER_WIDTH = 256
HEADS = 16
NORM_EPSILON = 1e-6  # of the norm, added to the standard deviation
AVAD_DROPOUT = 0.1


class Attention(nnx.Module):
    """Causal attention of many heads, with an additional learnt key and value, which every step sees."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        dtype, self.product_dtype = DTYPES[precision]
        self.null_k = nnx.Param(jnp.zeros((1, 1, DECODER_WIDTH), dtype))
        self.null_v = nnx.Param(jnp.zeros((1, 1, DECODER_WIDTH), dtype))
        self.to_qkv = nnx.Linear(
            DECODER_WIDTH, 3 * DECODER_WIDTH, use_bias=False, kernel_init=torch_uniform, param_dtype=dtype, rngs=rngs
        )
        self.to_out = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Returns what each step takes from itself and those before it; with a key, drops some of the weights."""
        queries, keys, values = jnp.split(apply_linear(self.to_qkv, hidden, self.product_dtype), 3, axis=-1)
        keys, values = prepend(self.null_k[...], keys), prepend(self.null_v[...], values)
        logits = self._einsum("bnhk,bmhk->bhnm", split_heads(queries), split_heads(keys))
        # Step n sees the learnt key and steps 0 to n. A shorter clip's padding needs no mask of its own: it comes after
        # every step that counts.
        visible = jnp.tri(*logits.shape[2:], k=1, dtype=bool)[None, None]
        scaled = logits * DECODER_WIDTH**-0.5  # by the width of the model, not of a head
        weights = dropout(jax.nn.softmax(jnp.where(visible, scaled, -jnp.inf)), AVAD_DROPOUT, key)
        mixed = self._einsum("bhnm,bmhk->bnhk", weights, split_heads(values))
        return apply_linear(self.to_out, mixed.reshape(hidden.shape), self.product_dtype)

    def _einsum(self, subscripts: str, inputs: Array, others: Array) -> Array:
        """Takes the sum of products in their own dtype; accelerators would round float32 to less."""
        narrow = inputs.astype(self.product_dtype), others.astype(self.product_dtype)
        return jnp.einsum(subscripts, *narrow, precision=jax.lax.Precision.HIGHEST).astype(self.null_k.dtype)


def prepend(learnt: Float[Array, "1 1 D"], given: Float[Array, "B N D"]) -> Float[Array, "B M D"]:
    """Puts a learnt vector before the vectors of each sequence."""
    return jnp.concatenate([jnp.broadcast_to(learnt, (len(given), 1, DECODER_WIDTH)), given], axis=1)


def split_heads(vectors: Float[Array, "B N D"]) -> Float[Array, "B N H K"]:
    """Splits each vector into its heads' parts."""
    return vectors.reshape(*vectors.shape[:2], HEADS, -1)


class Norm(nnx.Module):
    """Layer norm by the unbiased standard deviation."""

    def __init__(self, dtype: DTypeLike = jnp.float32):
        self.a_2 = nnx.Param(jnp.ones(DECODER_WIDTH, dtype))
        self.b_2 = nnx.Param(jnp.zeros(DECODER_WIDTH, dtype))

    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Normalises each step."""
        deviation = jnp.std(hidden, axis=-1, keepdims=True, ddof=1) + NORM_EPSILON
        centred = hidden - jnp.mean(hidden, axis=-1, keepdims=True)
        return row(self.a_2[...], 3) * (centred / deviation) + row(self.b_2[...], 3)


class FeedForward(nnx.Module):
    """Two linear layers, no wider between them, and a ReLU."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        dtype, self.product_dtype = DTYPES[precision]
        self.w_1 = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)
        self.w_2 = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Maps each step by itself; with a key, drops some of what the ReLU lets through."""
        inner = nnx.relu(apply_linear(self.w_1, hidden, self.product_dtype))
        return apply_linear(self.w_2, dropout(inner, AVAD_DROPOUT, key), self.product_dtype)


class Block(nnx.Module):
    """Attention, then the feed-forward layers, each added to its input and normalised: both times by the same norm."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        self.docoder = Attention(rngs, precision)  # the official spelling
        self.norm = Norm(DTYPES[precision][0])
        self.ff = FeedForward(rngs, precision)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Returns the next block's input; with a key, dropout in both parts and after each norm."""
        of_attention, of_first, of_ff, of_second = split_key(key, 4)
        hidden = dropout(self.norm(hidden + self.docoder(hidden, of_attention)), AVAD_DROPOUT, of_first)
        return dropout(self.norm(hidden + self.ff(hidden, of_ff)), AVAD_DROPOUT, of_second)


class Decoder(nnx.Module):
    """Predicts windows 1, 2, ... of a sequence, each from all before it. 818,719 parameters as released.

    Args:
      rngs: draws the parameters.
      windows: of a sequence, N + 1; the positions are learnt, so all sequences have this length.
      delays: of sound against picture that are scored for each window, W.
      precision: of DTYPES.
    """

    def __init__(self, rngs: nnx.Rngs, windows: int = 50, delays: int = 31, precision: str = "float32"):
        self.precision = precision
        he_normal, glorot_uniform = variance_scaling(2, "fan_in", "normal"), variance_scaling(1, "fan_avg", "uniform")
        self.lin1 = nnx.Linear(delays, DECODER_WIDTH, kernel_init=he_normal, param_dtype=self.dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(normal(1)(rngs.params(), (1, windows - 1, DECODER_WIDTH), self.dtype))
        self.decoder1 = Block(rngs, precision)
        self.decoder2 = Block(rngs, precision)
        self.lin2 = linear(DECODER_WIDTH, delays, rngs, self.dtype)
        self.lin2.kernel.set_value(glorot_uniform(rngs.params(), (DECODER_WIDTH, delays), self.dtype))

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms and logits."""
        return DTYPES[self.precision][0]

    def __call__(self, scores: Float[Array, "B N W"], key: Key[Array, ""] | None = None) -> Float[Array, "B N W"]:
        """Returns the logits of the delays in the window after each one given.

        Args:
          scores: of all windows but the last, as the synchronisation network gives them, no softmax taken. Beyond a
            clip's end they may be any finite numbers; zeros, as released.
          key: of the dropout, in training; None = no dropout.
        """
        of_first, of_second = split_key(key, 2)
        hidden = self.decoder2(self.decoder1(self.embed(scores), of_first), of_second)
        return apply_linear(self.lin2, hidden, DTYPES[self.precision][1])

    def embed(self, scores: Float[Array, "B N W"]) -> Float[Array, "B N D"]:
        """Returns the first block's input: each window's scores, mapped, and its place in the sequence."""
        steps = self.pos_embedding.shape[1]
        assert scores.shape[1] == steps, f"{scores.shape[1]} windows for a decoder that has learnt {steps} positions"
        mapped = apply_linear(self.lin1, scores.astype(self.dtype), DTYPES[self.precision][1])
        return nnx.relu(mapped) + self.pos_embedding[...]


def split_key(key: Key[Array, ""] | None, parts: int) -> list[Key[Array, ""] | None]:
    """Returns a key for each part that drops; without a key, none for any."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


class AVAD(Decoder):
    """The decoder, and the frozen network that gives it its scores."""

    def __init__(self, sync: FrameNetwork, rngs: nnx.Rngs, windows: int, tau: int, boundary: str, precision: str):
        super().__init__(rngs, windows, 2 * tau + 1, precision)
        self.sync, self.windows, self.tau, self.boundary = sync, windows, tau, boundary

    @property
    def width(self) -> int:
        """Of the features."""
        return self.sync.width

    @property
    def kind(self) -> dict[str, str]:
        """What its weights say of it."""
        own = {"windows": str(self.windows), "tau": str(self.tau), "boundary": self.boundary}
        sync = {"width": str(self.width)} | self.sync.kind
        return own | {f"sync_{name}": value for name, value in sync.items()}
