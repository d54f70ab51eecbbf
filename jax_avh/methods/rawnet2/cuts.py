"""The part of a clip's sound that RawNet2 hears."""

import numpy as np
from jaxtyping import Int16

SAMPLES = 64_600  # officially, at 16 kHz: 4 s


def cut(waveform: Int16[np.ndarray, " S"], samples: int = SAMPLES) -> Int16[np.ndarray, " samples"]:
    """The first samples; a shorter clip is repeated, whole, until there are so many. No sound at all is silence."""
    return np.resize(waveform[:samples], samples)
