"""RawNet2: trained on clips labelled real and fake to separate them by raw sound. It is prone to shortcuts.

Source: the baseline of ASVspoof 2021 (Tak et al., ICASSP 2021), which AVH-Align is compared with.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int16, Key

from avh_shards.clip import FULL_SCALE, REAL, SAMPLE_RATE
from jax_avh.config import Config, MethodConfig, at_least, at_most, rules
from jax_avh.data.batches import Examples
from jax_avh.data.source import Source
from jax_avh.methods.base import ExampleMethod
from jax_avh.models.rawnet2 import SAMPLES, RawNet2, loudness

CLASS_WEIGHTS = 0.1, 0.9  # weights of fake and real in the loss, in the order of the network's outputs
LEAST_SAMPLES = 3211  # shortest cut that leaves a step after all poolings
MOST_SAMPLES = 600 * SAMPLE_RATE  # longest cut: 10 minutes, the longest clip


@dataclasses.dataclass
class RawNet2Config(MethodConfig):
    """Settings of RawNet2, which is trained on the sound of clips of both labels."""

    name: str = "rawnet2"
    # Samples at 16 kHz that the network takes from the start of each clip.
    samples: int = rules(SAMPLES, at_least(LEAST_SAMPLES), at_most(MOST_SAMPLES))


class Cuts(Examples):
    """Cuts from the start of every clip's sound."""

    def __init__(self, source: Source, network: RawNet2):
        super().__init__(source, np.arange(len(source.members)))
        self._samples = network.samples

    def read(self, example: int) -> dict[str, np.ndarray]:
        """Reads the samples of a cut, int16."""
        return {"sound": cut(self.source.waveform(example, 0, self._samples), self._samples)}


def cut(waveform: Int16[np.ndarray, " S"], samples: int = SAMPLES) -> Int16[np.ndarray, " samples"]:
    """Returns the first samples of a clip; a shorter one is repeated to fill them, one without sound yields silence."""
    return np.resize(waveform[:samples], samples)


def make_model(config: Config[RawNet2Config], _source: Source) -> RawNet2:
    """Builds the untrained network; it reads no features, so the source does not matter."""
    return RawNet2(nnx.Rngs(config.seed), config.train.precision, samples=config.method.samples)


def model_of(notes: Mapping[str, str], precision: str) -> RawNet2:
    """Builds the network that the notes of a weight file describe; released files have no notes.

    Raises:
      ValueError: the notes are invalid.
    """
    samples = int(notes.get("samples", SAMPLES))
    if not LEAST_SAMPLES <= samples <= MOST_SAMPLES:
        raise ValueError(f"cuts of {samples} samples")
    return RawNet2(nnx.Rngs(0), precision, samples=samples)


def prepare(inputs: dict[str, Array]) -> Float[Array, "B U F"]:
    """Converts the sound to loudness by the frozen filters."""
    return loudness(inputs["sound"].astype(jnp.float32) / FULL_SCALE)


def loss(
    network: RawNet2,
    heard: Float[Array, "B U F"],
    label: Int[Array, " B"],
    weight: Float[Array, " B"],
    key: Key[Array, ""] | None,
) -> Float[Array, ""]:
    """Returns the mean weighted cross-entropy, in nats; the network has no dropout, so `key` only marks training."""
    return weighted_cross_entropy(network.classify(heard, training=key is not None), label, weight)


def weighted_cross_entropy(
    log_probs: Float[Array, "B 2"], label: Int[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """Returns the weighted mean of -log p of each cut's own class, in nats; a real cut weighs nine times a fake one.

    Args:
      log_probs: log-probabilities of fake and real.
      label: 0 real, 1 fake.
      weight: 1 = a cut that counts, 0 = padding; at least one counts.
    """
    own = (label == REAL).astype(label.dtype)  # the outputs are in the opposite order of the labels
    weight = weight * jnp.asarray(CLASS_WEIGHTS, weight.dtype)[own]
    losses = -jnp.take_along_axis(log_probs, own[:, None], axis=1)[:, 0]
    return jnp.sum(weight * losses) / jnp.sum(weight)


def outputs(network: RawNet2, heard: Float[Array, "B U F"]) -> Float[Array, "B 1"]:
    """Returns the fakeness: minus the log-probability of real, the official score."""
    return -network.classify(heard)[:, 1:]


METHOD = ExampleMethod(
    name="rawnet2",
    reads=("waveform",),
    make_model=make_model,
    model_of=model_of,
    examples=Cuts,
    batch_size=16,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    clip_score=lambda outputs, frames: (float(outputs[0, 0]), None),
)
