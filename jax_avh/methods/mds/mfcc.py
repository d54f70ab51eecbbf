"""Mel-frequency cepstra of one second of sound: MDS's audio input.

Source: the settings that MDS's released program gives to python_speech_features, whose formulae these are.

Letters: B chunks, M mel filters, K bins of the spectrum.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16

from avh_shards import SAMPLE_RATE

WINDOW, HOP = 400, 160  # samples: 25 and 10 ms; the window is rectangular
FRAMES = 1 + -(-(SAMPLE_RATE - WINDOW) // HOP)  # 99, the last one ends in zeros
FFT = 2048  # points; the original's, chosen for 48 kHz
FILTERS = 26
CEPSTRA = 13
LIFTER = 22
PRE_EMPHASIS = 97, 100  # sample n less 97 / 100 of sample n - 1
SILENCE = 2.0**-52  # stands for an energy of zero, whose logarithm there is none of


def mfcc(sound: Int16[Array, "B 16000"]) -> Float[Array, "B 13 99"]:
    """Cepstra 0 to 12 at 100 Hz, float32; the first is the frame's log energy, -36.04 in silence.

    From python_speech_features, in float64, they differ by up to 1e-4 on speech and noise, and by 1e-3 on the hardest
    of sounds: a few pure loud tones, beside which the other filters hold next to nothing.

    Args:
      sound: one second, 16 kHz, mono, as stored: full scale is 32,768, not 1.
    """
    power = power_spectra(sound)
    energy = jnp.sum(power, axis=-1, keepdims=True)
    in_bands = jnp.matmul(power, jnp.asarray(mel_filters()), precision=jax.lax.Precision.HIGHEST)
    cepstra = jnp.matmul(log(in_bands), jnp.asarray(liftered_cosines()), precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([log(energy), cepstra], axis=-1).mT


def power_spectra(sound: Int16[Array, "B 16000"]) -> Float[Array, "B 99 1025"]:
    """|FFT|^2 / 2048 of the frames, after pre-emphasis."""
    times, over = PRE_EMPHASIS
    # A hundred times the pre-emphasised sound is whole numbers below 2^24, which float32 holds exactly.
    sound = sound.astype(jnp.float32)
    samples = over * sound - times * jnp.pad(sound[:, :-1], ((0, 0), (1, 0)))
    samples = jnp.pad(samples, ((0, 0), (0, (FRAMES - 1) * HOP + WINDOW - SAMPLE_RATE)))
    frames = samples[:, np.arange(FRAMES)[:, None] * HOP + np.arange(WINDOW)]
    spectra = jnp.fft.rfft(frames, FFT)
    return (jnp.square(spectra.real) + jnp.square(spectra.imag)) / (FFT * over**2)


def log(energy: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Natural logarithm; of zero, that of the smallest number that counts."""
    return jnp.log(jnp.where(energy > 0, energy, SILENCE))


def mel_filters() -> Float[np.ndarray, "K M"]:
    """Weights of the triangular filters, equally wide on the mel scale from 0 to 8 kHz, each 1 at its top; float32."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * hertz / SAMPLE_RATE)
    low, top, high = (edges[i : i + FILTERS] for i in range(3))
    k = np.arange(FFT // 2 + 1)[:, None]
    rising, falling = (k - low) / (top - low), (high - k) / (high - top)
    return np.maximum(np.where(k < top, rising, falling), 0).astype(np.float32)


def liftered_cosines() -> Float[np.ndarray, "M 12"]:
    """Rows 1 to 12 of the orthonormal cosine transform, raised by the lifter, the last ones most; float32."""
    k, n = np.arange(1, CEPSTRA), np.arange(FILTERS)[:, None]
    lifter = 1 + LIFTER / 2 * np.sin(np.pi * k / LIFTER)
    return (lifter * np.sqrt(2 / FILTERS) * np.cos(np.pi * k * (2 * n + 1) / (2 * FILTERS))).astype(np.float32)
