"""RawNet2's ear: a frozen bank of band-pass filters on raw sound, rectified and pooled.

Letters: B cuts, S samples, F filters, T samples that all taps reach, U pooled ones, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from avh_shards import SAMPLE_RATE

FILTERS = 20
TAPS = 1025
POOL = 3  # steps of which the largest stays
# Samples of a Fourier transform. On a CPU, in ms a cut of 64,600 samples: one of the whole cut 32, pieces of 4,096 to
# 24,576 samples 15, a plain convolution 70, products with a Toeplitz matrix 52.
PIECE = 8192
# Backend -> cuts at a time: one by one they stay in a CPU's cache (7 instead of 15 ms); elsewhere all at once.
CUTS = {"cpu": 1}


def band_edges() -> Float[np.ndarray, " edges"]:
    """Where the bands meet, in Hz: equally spaced in mel from 0 to half the sample rate."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    return 700 * (10 ** (np.linspace(0, highest, FILTERS + 1) / 2595) - 1)


def sinc_bank() -> Float[np.ndarray, "F taps"]:
    """The filters' taps, float64: each the difference of two ideal low-passes in a symmetric Hamming window.

    References:
      SincNet (Ravanelli and Bengio, 2018); these bands adjoin, and are not learned.
    """
    sample = np.arange(TAPS) - TAPS // 2
    width = 2 * band_edges()[:, None] / SAMPLE_RATE
    return np.diff(width * np.sinc(width * sample), axis=0) * np.hamming(TAPS)


def filtered(sound: Float[Array, " S"]) -> Float[Array, "F T"]:
    """A cut through every filter, by Fourier transforms of overlapping pieces; T = S - 1,024."""
    reached = sound.size - (TAPS - 1)
    hop = PIECE - (TAPS - 1)
    starts = range(0, reached, hop)
    padded = jnp.pad(sound, (0, starts[-1] + PIECE - sound.size))
    spectra = jnp.fft.rfft(jnp.stack([padded[start : start + PIECE] for start in starts]))
    # Conjugates make it a correlation: it looks ahead, so that the first `hop` samples of a piece are whole.
    responses = jnp.asarray(np.fft.rfft(sinc_bank(), PIECE).conj(), spectra.dtype)
    waves = jnp.fft.irfft(spectra[None] * responses[:, None], PIECE)
    return waves[..., :hop].reshape(FILTERS, -1)[:, :reached]


def loudness(sound: Float[Array, "B S"]) -> Float[Array, "B U F"]:
    """The largest |x| of every three samples of each band, U = (S - 1,024) // 3; no gradient runs through it."""

    def of_cut(sound: Float[Array, " S"]) -> Float[Array, "U F"]:
        return max_pool(jnp.abs(filtered(sound)).T[None])[0]

    batch_size = CUTS.get(jax.default_backend(), len(sound))
    return jax.lax.map(of_cut, jax.lax.stop_gradient(sound), batch_size=batch_size)


def max_pool(inputs: Float[Array, "B T C"]) -> Float[Array, "B U C"]:
    """The largest of every three steps, U = T // 3; the rest is dropped. Equal ones share the gradient."""
    batch, steps, channels = inputs.shape
    pooled = steps // POOL
    return jnp.max(inputs[:, : pooled * POOL].reshape(batch, pooled, POOL, channels), axis=2)
