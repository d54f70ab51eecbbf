"""AVAD: trained on real clips to foresee how picture and sound will fit; a surprise means fake.

Its synchronisation network is a trained alignment network, whose window scores are scores of 31 delays. The published
one looks at five frames of the face at a time; ours at one frame's features.

Source: AVAD (CVPR 2023).
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from avh_shards import UserError
from jax_avh.config import BOUNDARIES, Config
from jax_avh.data.examples import Examples
from jax_avh.data.source import FeatureSource
from jax_avh.inference.passes import frame_outputs
from jax_avh.methods.avad.losses import kl_divergence, soft_cross_entropy, valid_steps
from jax_avh.methods.avad.network import Decoder
from jax_avh.methods.avad.sliding import assemble, clip_score, cut
from jax_avh.methods.interface import ExampleMethod
from jax_avh.models import (
    HEADS,
    FrameBatch,
    FrameNetwork,
    check_features,
    load_weights,
    read_notes,
    weights_file,
    window_scores,
)

LEAST = 2  # windows, so that one is foreseen; a clip of one frame counts as that frame twice
Inputs = dict[str, Array]


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


class Sequences(Examples):
    """Window scores of the clips, computed once: each clip's first windows, or sequences all over it."""

    def __init__(self, source: FeatureSource, network: AVAD, sliding: bool = False):
        heads = source if sliding else source.heads(network.windows + network.tau)
        self._sequences, self._lengths, clip = [], [], []
        for index, scores in enumerate(_scores_of_clips(heads, network)):
            scores = scores if sliding else scores[: network.windows]
            scores = np.repeat(scores, LEAST, axis=0) if len(scores) < LEAST else scores
            sequences = cut(scores, network.windows)
            self._sequences.append(sequences)
            self._lengths += [min(len(scores), network.windows)] * len(sequences)
            clip += [index] * len(sequences)
        self._sequences = np.concatenate(self._sequences)
        super().__init__(source, np.array(clip))

    def read(self, example: int) -> dict[str, np.ndarray]:
        """A sequence's window scores, and how many of them are the clip's."""
        return {"scores": self._sequences[example], "length": np.int32(self._lengths[example])}


def _scores_of_clips(source: FeatureSource, network: AVAD) -> list[Float[np.ndarray, "T W"]]:
    graph, params = nnx.split(network.sync)

    def outputs(params: nnx.State, frames: FrameBatch) -> Float[Array, "T W"]:
        return window_scores(nnx.merge(graph, params), frames, network.boundary)[0]

    found = frame_outputs(source, outputs, params, network.tau)
    return [scores for rows, border in found for scores in np.split(rows, border[1:-1])]


def build(config: Config, source: FeatureSource) -> AVAD:
    """The network before training.

    Raises:
      UserError: the alignment weights are missing, damaged, or not for these features.
    """
    path = weights_file(config.method.sync_weights)
    notes = read_notes(path)
    if notes.get("method", "avh_align") != "avh_align":
        raise UserError(f"{path}: weights of {notes['method']}; --config.method.sync_weights needs avh_align's")
    sync = load_weights(path, config.train.precision)
    check_features(path, sync.width, notes, source.attributes | {"width": source.width}, source.path)
    model = config.model
    return AVAD(sync, nnx.Rngs(config.seed), config.method.windows, model.tau, model.boundary, config.train.precision)


def rebuild(notes: Mapping[str, str], precision: str) -> AVAD:
    """The network that weights say they are of."""
    width, windows, tau = (int(notes[name]) for name in ("sync_width", "windows", "tau"))
    if width < 1 or windows < LEAST or tau < 0 or notes["boundary"] not in BOUNDARIES:
        raise ValueError(f"width {width}, {windows} windows, tau {tau}, boundary {notes['boundary']}")
    kind = {"modality": notes["sync_modality"], "normalised": notes["sync_normalised"] == "true"}
    sync = HEADS[notes["sync_head"]](width, rngs=nnx.Rngs(0), precision=precision, **kind)
    return AVAD(sync, nnx.Rngs(0), windows, tau, notes["boundary"], precision)


def loss(
    network: AVAD, inputs: Inputs, label: Int[Array, " B"], weight: Float[Array, " B"], key: Key[Array, ""] | None
) -> Float[Array, ""]:
    """Mean cross-entropy of the windows foreseen, first of each sequence's, in nats."""
    del label  # all are real
    values = soft_cross_entropy(inputs["scores"], network(inputs["scores"][:, :-1], key))
    valid = valid_steps(inputs["length"], network.windows).astype(values.dtype)
    of_sequences = jnp.sum(values * valid, axis=1) / jnp.sum(valid, axis=1)
    return jnp.sum(of_sequences * weight) / jnp.sum(weight)


def outputs(network: AVAD, inputs: Inputs) -> Float[Array, "B N"]:
    """How far each window's delays are from what was foreseen."""
    return kl_divergence(inputs["scores"], network(inputs["scores"][:, :-1]))


def first_windows_score(divergences: Float[np.ndarray, "E N"], frames: int) -> tuple[float, None]:
    """The mean over the first windows, as released; frames beyond them have no score."""
    foreseen = max(min(frames - 1, divergences.shape[1]), LEAST - 1)
    return float(divergences[0, :foreseen].mean(dtype=np.float64)), None


def sliding_score(divergences: Float[np.ndarray, "E N"], frames: int) -> tuple[float, Float[np.ndarray, " T"]]:
    """The mean over the whole clip, and every frame's score."""
    frame = assemble(divergences, max(frames, LEAST))
    return clip_score(frame), frame[:frames]


METHOD = ExampleMethod(
    "avad",
    needs=(),
    features=True,
    real_only=True,
    build=build,
    rebuild=rebuild,
    examples=Sequences,
    batch_size=64,
    prepare=lambda inputs: inputs,
    loss=loss,
    outputs=outputs,
    clip_score=first_windows_score,
    trained=nnx.All(nnx.Param, nnx.Not(nnx.PathContains("sync"))),
    deviation="its delays are scored by an alignment network of features, that one's by a network on faces",
)
SLIDING = dataclasses.replace(
    METHOD,
    name="avad_sliding",
    trained_as="avad",
    examples=lambda source, network: Sequences(source, network, sliding=True),
    clip_score=sliding_score,
)
