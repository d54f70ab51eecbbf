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

from jax_avh.models.layers import DTYPES, apply_linear, linear, row
from jax_avh.models.torch_layers import dropout, torch_uniform

WIDTH = 256
HEADS = 16
EPSILON = 1e-6  # of the norm, added to the standard deviation
DROPOUT = 0.1


class Attention(nnx.Module):
    """Causal attention of many heads, with one learnt key and value more, which every step sees."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        dtype, self.precision = DTYPES[precision][0], precision
        self.null_k, self.null_v = (nnx.Param(jnp.zeros((1, 1, WIDTH), dtype)) for _ in range(2))
        self.to_qkv = nnx.Linear(
            WIDTH, 3 * WIDTH, use_bias=False, kernel_init=torch_uniform, param_dtype=dtype, rngs=rngs
        )
        self.to_out = linear(WIDTH, WIDTH, rngs, dtype)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """What each step takes from itself and those before it; with a key, dropout of the weights."""
        queries, keys, values = jnp.split(_linear(self.to_qkv, hidden, self.precision), 3, axis=-1)
        keys, values = _behind(self.null_k, keys), _behind(self.null_v, values)
        logits = _product("bnhk,bmhk->bhnm", _heads(queries), _heads(keys), self.precision)
        # Step n sees the learnt key and steps 0 to n. A shorter clip's padding needs no mask of its own: it lies behind
        # every step that counts.
        visible = jnp.tri(*logits.shape[2:], k=1, dtype=bool)[None, None]
        scaled = logits * WIDTH**-0.5  # by the width of the model, not of a head
        weights = dropout(jax.nn.softmax(jnp.where(visible, scaled, -jnp.inf)), DROPOUT, key)
        mixed = _product("bhnm,bmhk->bnhk", weights, _heads(values), self.precision)
        return _linear(self.to_out, mixed.reshape(hidden.shape), self.precision)


class Norm(nnx.Module):
    """Layer norm by the unbiased standard deviation."""

    def __init__(self, dtype: DTypeLike = jnp.float32):
        self.a_2, self.b_2 = nnx.Param(jnp.ones(WIDTH, dtype)), nnx.Param(jnp.zeros(WIDTH, dtype))

    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Normalises each step."""
        deviation = jnp.std(hidden, axis=-1, keepdims=True, ddof=1) + EPSILON
        centred = hidden - jnp.mean(hidden, axis=-1, keepdims=True)
        return row(self.a_2[...], 3) * (centred / deviation) + row(self.b_2[...], 3)


class FeedForward(nnx.Module):
    """Two linear layers, no wider between them, and a ReLU."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        self.precision = precision
        self.w_1, self.w_2 = (linear(WIDTH, WIDTH, rngs, DTYPES[precision][0]) for _ in range(2))

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """Maps each step alone; with a key, dropout of what the ReLU lets through."""
        inner = nnx.relu(_linear(self.w_1, hidden, self.precision))
        return _linear(self.w_2, dropout(inner, DROPOUT, key), self.precision)


class Block(nnx.Module):
    """Attention, then the feed-forward layers, each added to its input and normalised: both times by the same norm."""

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32"):
        self.docoder = Attention(rngs, precision)  # the official spelling
        self.norm = Norm(DTYPES[precision][0])
        self.ff = FeedForward(rngs, precision)

    def __call__(self, hidden: Float[Array, "B N D"], key: Key[Array, ""] | None = None) -> Float[Array, "B N D"]:
        """The next block's input; with a key, dropout in both parts and after each norm."""
        of_attention, of_first, of_ff, of_second = _split(key, 4)
        hidden = dropout(self.norm(hidden + self.docoder(hidden, of_attention)), DROPOUT, of_first)
        return dropout(self.norm(hidden + self.ff(hidden, of_ff)), DROPOUT, of_second)


class Decoder(nnx.Module):
    """Predicts windows 1, 2, ... of a sequence, each from all before it. 818,719 parameters as released.

    Args:
      rngs: draws the parameters.
      windows: of a sequence, N + 1; the positions are learnt, so all sequences have this length.
      delays: of sound against picture that are scored for each window, W.
      precision: of DTYPES.
    """

    def __init__(self, rngs: nnx.Rngs, windows: int = 50, delays: int = 31, precision: str = "float32"):
        dtype, self.precision = DTYPES[precision][0], precision
        he_normal, glorot_uniform = variance_scaling(2, "fan_in", "normal"), variance_scaling(1, "fan_avg", "uniform")
        self.lin1 = nnx.Linear(delays, WIDTH, kernel_init=he_normal, param_dtype=dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(normal(1)(rngs.params(), (1, windows - 1, WIDTH), dtype))
        self.decoder1, self.decoder2 = (Block(rngs, precision) for _ in range(2))
        self.lin2 = linear(WIDTH, delays, rngs, dtype)
        self.lin2.kernel.set_value(glorot_uniform(rngs.params(), (WIDTH, delays), dtype))

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms and logits."""
        return DTYPES[self.precision][0]

    def __call__(self, scores: Float[Array, "B N W"], key: Key[Array, ""] | None = None) -> Float[Array, "B N W"]:
        """Logits of the delays in the window after each one given.

        Args:
          scores: of all windows but the last, as the synchronisation network gives them, no softmax taken. Behind a
            clip's end they may be any finite numbers; zeros, as released.
          key: of the dropout, in training; None = no dropout.
        """
        of_first, of_second = _split(key, 2)
        hidden = self.decoder2(self.decoder1(self.embed(scores), of_first), of_second)
        return _linear(self.lin2, hidden, self.precision)

    def embed(self, scores: Float[Array, "B N W"]) -> Float[Array, "B N D"]:
        """The first block's input: each window's scores, mapped, and its place in the sequence."""
        steps = self.pos_embedding.shape[1]
        assert scores.shape[1] == steps, f"{scores.shape[1]} windows for a decoder that has learnt {steps} positions"
        scores = scores.astype(self.pos_embedding.dtype)
        return nnx.relu(_linear(self.lin1, scores, self.precision)) + self.pos_embedding[...]


def _product(subscripts: str, inputs: Array, others: Array, precision: str) -> Array:
    """An einsum in the precision asked for; accelerators would round float32 to less."""
    dtype, narrow = DTYPES[precision]
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum(subscripts, inputs.astype(narrow), others.astype(narrow), precision=exact).astype(dtype)


def _linear(layer: nnx.Linear, inputs: Float[Array, "B N I"], precision: str) -> Float[Array, "B N O"]:
    """What a linear layer gives, its product in the precision asked for."""
    return apply_linear(layer, inputs, DTYPES[precision][1])


def _behind(learnt: nnx.Param, given: Float[Array, "B N D"]) -> Float[Array, "B M D"]:
    """Vectors behind one that is learnt."""
    return jnp.concatenate([jnp.broadcast_to(learnt[...], (len(given), 1, WIDTH)), given], axis=1)


def _heads(vectors: Float[Array, "B N D"]) -> Float[Array, "B N H K"]:
    """Each vector as its heads' parts, one after the other."""
    return vectors.reshape(*vectors.shape[:2], HEADS, -1)


def _split(key: Key[Array, ""] | None, parts: int) -> list[Key[Array, ""] | None]:
    """A key for each part that drops; none without a key."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))
