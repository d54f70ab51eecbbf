"""RawNet2: trained on clips labelled real and fake to hear the difference in raw sound. It learns shortcuts gladly.

Source: the baseline of ASVspoof 2021 (Tak et al., ICASSP 2021), as AVH-Align compares with it.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from avh_shards import FULL_SCALE, SAMPLE_RATE
from jax_avh.config import LEAST_SAMPLES, Config
from jax_avh.data.examples import Examples
from jax_avh.data.source import FeatureSource
from jax_avh.methods.interface import ExampleMethod
from jax_avh.methods.rawnet2.cuts import SAMPLES, cut
from jax_avh.methods.rawnet2.losses import weighted_cross_entropy
from jax_avh.methods.rawnet2.network import RawNet2
from jax_avh.methods.rawnet2.sinc import loudness

MOST_SAMPLES = 600 * SAMPLE_RATE  # of the cut that weights ask for: 10 minutes, the longest clip


class Cuts(Examples):
    """The start of every clip's sound."""

    def __init__(self, source: FeatureSource, network: RawNet2):
        super().__init__(source, np.arange(len(source.members)))
        self._samples = network.samples

    def read(self, example: int) -> dict[str, np.ndarray]:
        """So many samples."""
        return {"sound": cut(self.source.waveform(example, 0, self._samples), self._samples)}


def build(config: Config, source: FeatureSource) -> RawNet2:
    """The network before training."""
    del source  # it reads no features
    return RawNet2(nnx.Rngs(config.seed), config.train.precision, samples=config.method.samples)


def rebuild(notes: Mapping[str, str], precision: str) -> RawNet2:
    """The network that weights say they are of; released ones say nothing."""
    samples = int(notes.get("samples", SAMPLES))
    if not LEAST_SAMPLES <= samples <= MOST_SAMPLES:
        raise ValueError(f"cuts of {samples} samples")
    return RawNet2(nnx.Rngs(0), precision, samples=samples)


def prepare(inputs: dict[str, Array]) -> Float[Array, "B U F"]:
    """What the frozen filters hear."""
    return loudness(inputs["sound"].astype(jnp.float32) / FULL_SCALE)


def loss(
    network: RawNet2,
    heard: Float[Array, "B U F"],
    label: Int[Array, " B"],
    weight: Float[Array, " B"],
    key: Key[Array, ""] | None,
) -> Float[Array, ""]:
    """Mean weighted cross-entropy, in nats; there is no dropout."""
    return weighted_cross_entropy(network.classify(heard, training=key is not None), label, weight)


def outputs(network: RawNet2, heard: Float[Array, "B U F"]) -> Float[Array, "B 1"]:
    """Fakeness: minus the log-probability of real, the official score."""
    return -network.classify(heard)[:, 1:]


METHOD = ExampleMethod(
    "rawnet2",
    needs=("waveform",),
    features=False,
    real_only=False,
    build=build,
    rebuild=rebuild,
    examples=Cuts,
    batch_size=16,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    clip_score=lambda outputs, frames: (float(outputs[0, 0]), None),
)
