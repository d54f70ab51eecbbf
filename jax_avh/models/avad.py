"""AVAD's decoder: predicts how well each delay will fit a clip's next window, from the windows before it.

The module tree mirrors the official parameter names. The official `compress_fn.conv` of each block is left out, since
the released program never applies it.

Source: AVAD (Feng et al., "Self-supervised video forensics by audio-visual anomaly detection", CVPR 2023); the
released program where it differs from the paper (scores as inputs, not probabilities; the scale in attention).
Letters: B sequences, N steps, W delays, D model width, H heads, K width of a head, M = N + 1 keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jax_avh.models.alignment import FrameNetwork
from jax_avh.models.layers import ARITHMETIC, apply_linear, dropout, linear, row, torch_uniform

DECODER_WIDTH = 256
HEADS = 16
NORM_EPSILON = 1e-6  # added to the standard deviation
AVAD_DROPOUT = 0.1


class Attention(nnx.Module):
    """Causal multi-head attention with an extra learnt key and value that every step sees."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        dtype, self.products = ARITHMETIC[precision]
        self.null_k = nnx.Param(jnp.zeros((1, 1, DECODER_WIDTH), dtype))
        self.null_v = nnx.Param(jnp.zeros((1, 1, DECODER_WIDTH), dtype))
        self.to_qkv = nnx.Linear(
            DECODER_WIDTH, 3 * DECODER_WIDTH, use_bias=False, kernel_init=torch_uniform, param_dtype=dtype, rngs=rngs
        )
        self.to_out = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Attends from each step to itself and the steps before it; with a key, applies dropout to the weights."""
        queries, keys, values = jnp.split(apply_linear(self.to_qkv, hidden, self.products), 3, axis=-1)
        keys, values = prepend(self.null_k[...], keys), prepend(self.null_v[...], values)
        logits = self._einsum("bnhk,bmhk->bhnm", split_heads(queries), split_heads(keys))
        # Step n sees the learnt key and steps 0 to n. The padding of a shorter clip needs no mask of its own, because
        # it follows every real step.
        visible = jnp.tri(*logits.shape[2:], k=1, dtype=bool)[None, None]
        scaled = logits * DECODER_WIDTH**-0.5  # the width of the model, not of a head
        weights = dropout(jax.nn.softmax(jnp.where(visible, scaled, -jnp.inf)), AVAD_DROPOUT, key)
        mixed = self._einsum("bhnm,bmhk->bnhk", weights, split_heads(values))
        return apply_linear(self.to_out, mixed.reshape(hidden.shape), self.products)

    def _einsum(self, subscripts: str, inputs: Array, others: Array) -> Array:
        factors = inputs.astype(self.products.dtype), others.astype(self.products.dtype)
        return jnp.einsum(subscripts, *factors, precision=self.products.of_matrices).astype(self.null_k.dtype)


def prepend(learnt: Float[Array, "1 1 D"], given: Float[Array, "B N D"]) -> Float[Array, "B M D"]:
    """Prepends a learnt vector to each sequence."""
    return jnp.concatenate([jnp.broadcast_to(learnt, (len(given), 1, DECODER_WIDTH)), given], axis=1)


def split_heads(vectors: Float[Array, "B N D"]) -> Float[Array, "B N H K"]:
    """Splits each vector into one part per head."""
    return vectors.reshape(*vectors.shape[:2], HEADS, -1)


class Norm(nnx.Module):
    """Layer norm that divides by the unbiased standard deviation."""

    def __init__(self, dtype: DTypeLike = jnp.float32):
        self.a_2 = nnx.Param(jnp.ones(DECODER_WIDTH, dtype))
        self.b_2 = nnx.Param(jnp.zeros(DECODER_WIDTH, dtype))

    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Normalises each step."""
        deviation = jnp.std(hidden, axis=-1, keepdims=True, ddof=1) + NORM_EPSILON
        centred = hidden - jnp.mean(hidden, axis=-1, keepdims=True)
        return row(self.a_2[...], 3) * (centred / deviation) + row(self.b_2[...], 3)


class FeedForward(nnx.Module):
    """Two linear layers of the model's width with a ReLU between them."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        dtype, self.products = ARITHMETIC[precision]
        self.w_1 = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)
        self.w_2 = linear(DECODER_WIDTH, DECODER_WIDTH, rngs, dtype)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Maps each step on its own; with a key, applies dropout after the ReLU."""
        inner = nnx.relu(apply_linear(self.w_1, hidden, self.products))
        return apply_linear(self.w_2, dropout(inner, AVAD_DROPOUT, key), self.products)


class Block(nnx.Module):
    """Attention and feed-forward layers, each added to its input and normalised by the same norm."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        self.docoder = Attention(rngs, precision)  # the official spelling
        self.norm = Norm(ARITHMETIC[precision][0])
        self.ff = FeedForward(rngs, precision)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Returns the next block's input; with a key, applies dropout in both parts and after each norm."""
        of_attention, of_first, of_ff, of_second = split_key(key, 4)
        hidden = dropout(self.norm(hidden + self.docoder(hidden, of_attention)), AVAD_DROPOUT, of_first)
        return dropout(self.norm(hidden + self.ff(hidden, of_ff)), AVAD_DROPOUT, of_second)


class Decoder(nnx.Module):
    """Causal decoder that predicts each window of a sequence after the first from all windows before it.

    It has 818,719 parameters as released.

    Args:
      rngs: source of the initial parameters.
      windows: windows per sequence, N + 1; positions are learnt, so all sequences have this length.
      delays: W, the number of delays between sound and picture scored per window.
      precision: a key of ARITHMETIC.
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
        """Dtype of parameters, norms and logits."""
        return ARITHMETIC[self.precision][0]

    def __call__(self, scores: Float[Array, "B N W"], key: Key[Array, ""] | None = None) -> Float[Array, "B N W"]:
        """Predicts, for each window given, the logits of the delays in the window after it.

        Args:
          scores: the synchronisation network's scores of all windows but the last, before any softmax. Beyond a
            clip's end they may be any finite numbers; the released program uses zeros.
          key: dropout key for training; None = no dropout.
        """
        of_first, of_second = split_key(key, 2)
        hidden = self.decoder2(self.decoder1(self.embed(scores), of_first), of_second)
        return apply_linear(self.lin2, hidden, ARITHMETIC[self.precision][1])

    def embed(self, scores: Float[Array, "B N W"]) -> Float[Array, "B N D"]:
        """Returns the first block's input: each window's mapped scores plus the embedding of its position."""
        steps = self.pos_embedding.shape[1]
        assert scores.shape[1] == steps, f"{scores.shape[1]} windows, but the decoder has {steps} positions"
        mapped = apply_linear(self.lin1, scores.astype(self.dtype), ARITHMETIC[self.precision][1])
        return nnx.relu(mapped) + self.pos_embedding[...]


def split_key(key: Key[Array, ""] | None, parts: int) -> list[Key[Array, ""] | None]:
    """Splits a dropout key into one per part; without a key, returns None for each."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


class AVAD(Decoder):
    """AVAD's decoder together with the frozen synchronisation network that computes its inputs.

    Args:
      sync: the synchronisation network.
      rngs: source of the decoder's initial parameters.
      windows: windows per sequence.
      tau: largest delay, in frames; 2 tau + 1 delays are scored.
      boundary: treatment of frames outside the clip, as for windows.window_scores.
      precision: a key of ARITHMETIC.
    """

    def __init__(self, sync: FrameNetwork, rngs: nnx.Rngs, windows: int, tau: int, boundary: str, precision: str):
        super().__init__(rngs, windows, 2 * tau + 1, precision)
        self.sync, self.windows, self.tau, self.boundary = sync, windows, tau, boundary

    @property
    def width(self) -> int:
        """Feature width."""
        return self.sync.width

    @property
    def kind(self) -> dict[str, str]:
        """Description of the network that its weight file records."""
        own = {"windows": str(self.windows), "tau": str(self.tau), "boundary": self.boundary}
        sync = {"width": str(self.width)} | self.sync.kind
        return own | {f"sync_{name}": value for name, value in sync.items()}
