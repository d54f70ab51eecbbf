"""MDS: trained on labelled clips to pull the embeddings of mouth and sound together in real clips and apart in fakes.

This is not the published system, which sees the whole face in colour at 30 frames a second. Ours sees grey mouth crops
at 25 frames a second and, by default, uses the official program's option of 96 pixels instead of 224. Five frames of
each second are repeated, and all three colour channels hold the same grey.

Source: MDS (Chugh et al., ACM MM 2020). The cepstra follow the formulae of python_speech_features, with the settings
that the released program passes to it.

Letters: B chunks, E width of the embeddings, S height and width of the network's frames, M mel filters, K bins of the
spectrum.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int16, Key, UInt8

from avh_shards.clip import FRAME_RATE, REAL, SAMPLE_RATE
from jax_avh.config import Config, MethodConfig, Rule, at_most, rules
from jax_avh.data.batches import Examples
from jax_avh.data.source import Source
from jax_avh.methods.base import ExampleMethod
from jax_avh.models.mds import MDS, REDUCTION

# Frames
FRAMES = 30  # frames of a chunk, which is one second long
CROP_SIDE = 96  # height and width, in pixels
IMAGE_MEAN = 0.485, 0.456, 0.406  # mean of ImageNet's red, green, blue, in 0..1
IMAGE_DEVIATION = 0.229, 0.224, 0.225
# Cepstra
FFT_WINDOW, HOP = 400, 160  # samples: 25 and 10 ms; the window is rectangular
CEPSTRUM_FRAMES = 1 + -(-(SAMPLE_RATE - FFT_WINDOW) // HOP)  # 99; the last one is padded with zeros
FFT = 2048  # points; the original's, chosen for 48 kHz
MEL_FILTERS = 26
CEPSTRA = 13
LIFTER = 22
PRE_EMPHASIS = 97, 100  # sample n minus 97 / 100 of sample n - 1
LEAST_ENERGY = 2.0**-52  # replaces an energy of zero, which has no logarithm
# Loss
LOSS_MARGIN = 0.99  # least distance between the embeddings of a fake that costs nothing

Inputs = dict[str, Array]
IMAGE_SIZE = Rule(lambda size: size >= REDUCTION and size % REDUCTION == 0, f"must be a multiple of {REDUCTION}")
WIDTH_FACTOR = Rule(lambda factor: 0 < factor <= 1, "must be above 0 and at most 1")


@dataclasses.dataclass
class MDSConfig(MethodConfig):
    """Settings of MDS, which is trained on mouth crops and sound of clips of both labels."""

    name: str = "mds"
    # Height and width in pixels to which crops are resized; the official program takes 96 or 224.
    image: int = rules(96, IMAGE_SIZE, at_most(1_024))
    # Factor on the channels and units of all layers; 1 = the released network.
    width_multiplier: float = rules(1.0, WIDTH_FACTOR)


# --- inputs ----------------------------------------------------------------------------------------------------------


class Chunks(Examples):
    """Every whole second of the clips. Shorter clips, which have no score officially, are repeated to fill a second."""

    def __init__(self, source: Source, _network: MDS):
        counts = np.maximum(source.lengths // FRAME_RATE, 1)
        super().__init__(source, np.repeat(np.arange(len(counts)), counts))
        self._first = np.repeat(np.cumsum(counts) - counts, counts)  # first example of each example's clip

    def read(self, example: int) -> dict[str, np.ndarray]:
        """Reads the 25 crops and 16,000 samples of a chunk."""
        clip, second = int(self.clip[example]), int(example - self._first[example])
        first, last = (int(min(n * FRAME_RATE, self.source.lengths[clip])) for n in (second, second + 1))
        crops = self.source.crops(clip, first, last)
        sound = self.source.waveform(clip, second * SAMPLE_RATE, (second + 1) * SAMPLE_RATE)
        return {"crops": np.resize(crops, (FRAME_RATE, *crops.shape[1:])), "sound": np.resize(sound, SAMPLE_RATE)}


def network_frames(crops: UInt8[Array, "B 25 96 96"], image: int) -> Float[Array, "B 30 S S 3"]:
    """Repeats frames to 30 Hz, resizes them to the nearest pixel and normalises them.

    It is part of the compiled program, so that only bytes are sent to the devices.

    Args:
      crops: one second of a clip, at 25 Hz.
      image: height and width of the frames, in pixels: 224 by default in the released program, 96 as the crops are.

    Returns:
      The frames, float32; all three colour channels are the same grey before normalisation.
    """
    pixels = (2 * np.arange(image) + 1) * CROP_SIDE // (2 * image)  # under the centre of each new pixel, as in Pillow
    grey = crops[:, source_frames()][:, :, pixels][:, :, :, pixels, None].astype(jnp.float32) / 255
    mean, deviation = (jnp.asarray(values).reshape(1, 1, 1, 1, 3) for values in (IMAGE_MEAN, IMAGE_DEVIATION))
    return (grey - mean) / deviation


def source_frames() -> Int[np.ndarray, "30"]:
    """Returns which of 25 frames becomes each of 30: the nearest in time, as in ffmpeg; 3, 8, ... appear twice."""
    return (2 * np.arange(FRAMES) * FRAME_RATE + FRAMES) // (2 * FRAMES)


def mfcc(sound: Int16[Array, "B 16000"]) -> Float[Array, "B 13 99"]:
    """Computes cepstra 0 to 12 at 100 Hz; the first is the frame's log energy, -36.04 in silence.

    They differ from those of python_speech_features, in float64, by up to 1e-4 on speech and noise, and by 1e-3 on the
    hardest sounds: a few loud pure tones, where all other filters hold almost no energy.

    Args:
      sound: one second, 16 kHz, mono, as stored: full scale is 32,768, not 1.

    Returns:
      Cepstra, float32.
    """
    power = power_spectra(sound)
    energy = jnp.sum(power, axis=-1, keepdims=True)
    in_bands = jnp.matmul(power, jnp.asarray(mel_filters()), precision=jax.lax.Precision.HIGHEST)
    cepstra = jnp.matmul(log_energy(in_bands), jnp.asarray(liftered_cosines()), precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([log_energy(energy), cepstra], axis=-1).mT


def power_spectra(sound: Int16[Array, "B 16000"]) -> Float[Array, "B 99 1025"]:
    """Returns |FFT|^2 / 2048 of the 99 frames of one second of sound, after pre-emphasis."""
    times, over = PRE_EMPHASIS
    # A hundred times the pre-emphasised sound is an integer below 2^24, which float32 represents exactly.
    sound = sound.astype(jnp.float32)
    samples = over * sound - times * jnp.pad(sound[:, :-1], ((0, 0), (1, 0)))
    samples = jnp.pad(samples, ((0, 0), (0, (CEPSTRUM_FRAMES - 1) * HOP + FFT_WINDOW - SAMPLE_RATE)))
    frames = samples[:, np.arange(CEPSTRUM_FRAMES)[:, None] * HOP + np.arange(FFT_WINDOW)]
    spectra = jnp.fft.rfft(frames, FFT)
    return (jnp.square(spectra.real) + jnp.square(spectra.imag)) / (FFT * over**2)


def log_energy(energy: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the natural logarithm of energies, with zeros replaced by `LEAST_ENERGY`."""
    return jnp.log(jnp.where(energy > 0, energy, LEAST_ENERGY))


def mel_filters() -> Float[np.ndarray, "K M"]:
    """Returns the weights, float32, of triangular filters of equal mel width from 0 to 8 kHz; each peaks at 1."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, MEL_FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * hertz / SAMPLE_RATE)
    low, top, high = (edges[i : i + MEL_FILTERS] for i in range(3))
    k = np.arange(FFT // 2 + 1)[:, None]
    rising, falling = (k - low) / (top - low), (high - k) / (high - top)
    return np.maximum(np.where(k < top, rising, falling), 0).astype(np.float32)


def liftered_cosines() -> Float[np.ndarray, "M 12"]:
    """Returns rows 1 to 12 of the orthonormal cosine transform, multiplied by the lifter; float32."""
    k, n = np.arange(1, CEPSTRA), np.arange(MEL_FILTERS)[:, None]
    lifter = 1 + LIFTER / 2 * np.sin(np.pi * k / LIFTER)
    return (lifter * np.sqrt(2 / MEL_FILTERS) * np.cos(np.pi * k * (2 * n + 1) / (2 * MEL_FILTERS))).astype(np.float32)


# --- losses and score ------------------------------------------------------------------------------------------------


def distance(of_picture: Float[Array, "B E"], of_sound: Float[Array, "B E"]) -> Float[Array, " B"]:
    """Returns the Euclidean distance: a chunk's score, higher = more fake. Its gradient is 0 where it is 0."""
    square = jnp.sum(jnp.square(of_picture - of_sound), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def losses(
    of_picture: Float[Array, "B E"],
    of_sound: Float[Array, "B E"],
    picture_logits: Float[Array, "B 2"],
    sound_logits: Float[Array, "B 2"],
    label: Int[Array, " B"],
    weight: Float[Array, " B"],
    margin: float = LOSS_MARGIN,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Computes the three losses whose sum training minimises.

    Args:
      of_picture: embeddings of the picture.
      of_sound: embeddings of the sound.
      picture_logits: logits of fake (first) and real by the picture.
      sound_logits: logits of fake (first) and real by the sound.
      label: 0 real, 1 fake.
      weight: 1 = a chunk that counts, 0 = padding; at least one counts.
      margin: distance below which fakes add to the loss.

    Returns:
      The contrastive loss and the cross-entropies of picture and sound, in nats: means over the chunks that count.

    References:
      MDS, section 3, as the released program computes it.
    """
    real = label == REAL
    own = real.astype(label.dtype)  # the outputs are in the opposite order of the labels

    def mean(values: Float[Array, " B"]) -> Float[Array, ""]:
        return jnp.sum(weight * values) / jnp.sum(weight)

    def cross_entropy(logits: Float[Array, "B 2"]) -> Float[Array, ""]:
        return mean(-jnp.take_along_axis(jax.nn.log_softmax(logits), own[:, None], axis=1)[:, 0])

    together = jnp.sum(jnp.square(of_picture - of_sound), axis=-1)
    apart = jnp.square(jax.nn.relu(margin - distance(of_picture, of_sound)))
    return mean(jnp.where(real, together, apart)), cross_entropy(picture_logits), cross_entropy(sound_logits)


# --- method ----------------------------------------------------------------------------------------------------------


def make_model(config: Config[MDSConfig], _source: Source) -> MDS:
    """Builds the untrained network; it reads no features, so the source does not matter."""
    return MDS(nnx.Rngs(config.seed), config.method.image, config.train.precision, config.method.width_multiplier)


def model_of(notes: Mapping[str, str], precision: str) -> MDS:
    """Builds the network that the notes of a weight file describe.

    Raises:
      KeyError, ValueError: the notes are incomplete or invalid.
    """
    image, width_multiplier = int(notes["image"]), float(notes["width_multiplier"])
    if not IMAGE_SIZE.allows(image):
        raise ValueError(f"image of {image} pixels")
    if not WIDTH_FACTOR.allows(width_multiplier):
        raise ValueError(f"width_multiplier of {width_multiplier}")
    return MDS(nnx.Rngs(0), image, precision, width_multiplier)


def prepare(inputs: Inputs) -> Inputs:
    """Converts the sound to cepstra, and leaves the crops as bytes."""
    return {"crops": inputs["crops"], "cepstra": mfcc(inputs["sound"])}


def embeddings(network: MDS, inputs: Inputs, training: bool = False) -> tuple[Array, Array]:
    """Computes the embeddings of picture and sound.

    Args:
      network: the network.
      inputs: `crops` and `cepstra` of the chunks.
      training: whether to normalise over the batch; otherwise each chunk is computed by itself.
    """
    frames = network_frames(inputs["crops"], network.image)
    return network.embeddings(frames, inputs["cepstra"], training, together=training)


def loss(
    network: MDS, inputs: Inputs, label: Int[Array, " B"], weight: Float[Array, " B"], key: Key[Array, ""] | None
) -> Float[Array, ""]:
    """Returns the sum of the contrastive loss and the two cross-entropies, in nats; without a key, as in evaluation."""
    training = key is not None
    pair = embeddings(network, inputs, training)
    contrast, picture, sound = losses(*pair, *network.logits(*pair, training, key), label, weight)
    return contrast + picture + sound


def outputs(network: MDS, inputs: Inputs) -> Float[Array, "B 1"]:
    """Returns the distance between the two embeddings of each chunk."""
    return distance(*embeddings(network, inputs))[:, None]


def clip_score(distances: Float[np.ndarray, "E 1"], frames: int) -> tuple[float, Float[np.ndarray, " T"]]:
    """Returns the mean over the chunks, as the released program does, and frame scores.

    Each frame takes the score of its chunk; frames after the last chunk take the score of the last one.
    """
    second = np.minimum(np.arange(frames) // FRAME_RATE, len(distances) - 1)
    return float(distances.mean(dtype=np.float64)), distances[second, 0]


METHOD = ExampleMethod(
    name="mds",
    deviation="it sees grey mouth crops at 25 frames a second, the published one whole faces in colour at 30",
    reads=("waveform", "crops"),
    make_model=make_model,
    model_of=model_of,
    examples=Chunks,
    batch_size=8,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    clip_score=clip_score,
)
