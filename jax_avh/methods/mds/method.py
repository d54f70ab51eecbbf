"""MDS: trained on clips labelled real and fake to bring mouth and sound of real clips together, and of fakes apart.

Not the published system: that looks at the whole face in colour at 30 frames a second, ours at grey mouth crops at 25
and, unless told otherwise, with the official program's option of 96 pixels instead of 224.

Source: MDS (Chugh et al., ACM MM 2020).
"""

from collections.abc import Mapping

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from avh_shards import FRAME_RATE, SAMPLE_RATE
from jax_avh.config import IMAGE_STEP, Config
from jax_avh.data.examples import Examples
from jax_avh.data.source import FeatureSource
from jax_avh.methods.interface import ExampleMethod
from jax_avh.methods.mds.frames import network_frames
from jax_avh.methods.mds.losses import distance, losses
from jax_avh.methods.mds.mfcc import mfcc
from jax_avh.methods.mds.network import MDS

Inputs = dict[str, Array]


class Chunks(Examples):
    """Every whole second of the clips; a shorter clip is repeated until it is one, officially it has no score."""

    def __init__(self, source: FeatureSource, network: MDS):
        del network  # the chunks are the same for all
        counts = np.maximum(source.lengths // FRAME_RATE, 1)
        super().__init__(source, np.repeat(np.arange(len(counts)), counts))
        self._first = np.repeat(np.cumsum(counts) - counts, counts)  # example that its clip starts with

    def read(self, example: int) -> dict[str, np.ndarray]:
        """25 crops and 16,000 samples."""
        clip, second = int(self.clip[example]), int(example - self._first[example])
        first, last = (int(min(n * FRAME_RATE, self.source.lengths[clip])) for n in (second, second + 1))
        crops = self.source.crops(clip, first, last)
        sound = self.source.waveform(clip, second * SAMPLE_RATE, (second + 1) * SAMPLE_RATE)
        return {"crops": np.resize(crops, (FRAME_RATE, *crops.shape[1:])), "sound": np.resize(sound, SAMPLE_RATE)}


def build(config: Config, source: FeatureSource) -> MDS:
    """The network before training."""
    del source  # it reads no features
    return MDS(nnx.Rngs(config.seed), config.method.image, config.train.precision, config.method.width_multiplier)


def rebuild(notes: Mapping[str, str], precision: str) -> MDS:
    """The network that weights say they are of."""
    image, width_multiplier = int(notes["image"]), float(notes["width_multiplier"])
    if image < IMAGE_STEP or image % IMAGE_STEP:
        raise ValueError(f"images of {image} pixels")
    if not 0 < width_multiplier <= 1:
        raise ValueError(f"layers {width_multiplier} times as wide")
    return MDS(nnx.Rngs(0), image, precision, width_multiplier)


def prepare(inputs: Inputs) -> Inputs:
    """Sound as cepstra; the crops stay bytes."""
    return {"crops": inputs["crops"], "cepstra": mfcc(inputs["sound"])}


def embeddings(network: MDS, inputs: Inputs, training: bool = False) -> tuple[Array, Array]:
    """Of the pictures and of the sounds; in training normalised over the batch, otherwise chunk by chunk."""
    frames = network_frames(inputs["crops"], network.image)
    return network.embeddings(frames, inputs["cepstra"], training, together=training)


def loss(
    network: MDS, inputs: Inputs, label: Int[Array, " B"], weight: Float[Array, " B"], key: Key[Array, ""] | None
) -> Float[Array, ""]:
    """Contrastive loss and the two cross-entropies, in nats."""
    training = key is not None
    pair = embeddings(network, inputs, training)
    return sum(losses(*pair, *network.logits(*pair, training, key), label, weight))


def outputs(network: MDS, inputs: Inputs) -> Float[Array, "B 1"]:
    """Distance of the two embeddings."""
    return distance(*embeddings(network, inputs))[:, None]


def clip_score(distances: Float[np.ndarray, "E 1"], frames: int) -> tuple[float, Float[np.ndarray, " T"]]:
    """The mean over the chunks, as released, and of each frame its chunk's; frames behind the last count to it."""
    second = np.minimum(np.arange(frames) // FRAME_RATE, len(distances) - 1)
    return float(distances.mean(dtype=np.float64)), distances[second, 0]


METHOD = ExampleMethod(
    "mds",
    needs=("waveform", "crops"),
    features=False,
    real_only=False,
    build=build,
    rebuild=rebuild,
    examples=Chunks,
    batch_size=8,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    clip_score=clip_score,
    deviation="it sees grey mouth crops at 25 frames a second, that one whole faces in colour at 30",
)
