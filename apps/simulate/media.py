"""Sound and mouth crops of simulated clips, drawn by rule from how far the mouth is open in each frame."""

import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8

from avh_shards.clip import FRAME_RATE, FULL_SCALE, SAMPLE_RATE, SAMPLES_PER_FRAME
from avh_shards.format import RAGGED

STEEPNESS = 1.5  # of the opening against the latent path

LOUDNESS = 0.1  # root mean square of the sound of an open mouth; full scale = 1
QUIET = 0.35  # of that, with the mouth shut: never silent, so that exact zeros are leading silence alone
BREATH = 0.2  # share of noise in the sound's power
PITCH = (90.0, 220.0)  # Hz, lowest and highest mean of a clip
WANDER, WANDER_RATE = 0.1, 0.5  # how far the pitch strays from that mean, relative, and how often, Hz
OVERTONE = 0.7  # amplitude of a harmonic, against that of the one below

CROP = RAGGED["crops"][1][0]  # pixels, side of a crop
SKIN = (120.0, 200.0)  # grey level, darkest and lightest clip
SHADE = 0.3  # how much darker skin is at the crop's corners
HALF_WIDTH = (18.0, 24.0)  # pixels, of the mouth, narrowest and widest clip
SHUT, OPEN = 1.0, 14.0  # pixels, half the mouth's height
LIP, LIP_TONE = 5.0, 0.75  # pixels of thickness; their level against the skin's
CAVITY = 25.0  # grey level of the mouth's inside
GRAIN = 6  # grey levels, most that the sensor's noise adds or takes


def opening(path: Float[np.ndarray, "T K"]) -> Float[np.ndarray, " T"]:
    """How far the mouth is open on a latent path, from 0 to 1: a smooth function of its first coordinate."""
    return 1 / (1 + np.exp(-STEEPNESS * path[:, 0]))


def draw_sound(opened: Float[np.ndarray, " T"], silence: float, rng: np.random.Generator) -> Int16[np.ndarray, " S"]:
    """Sound at 16 kHz, 640 samples a frame, as loud as the mouth is open.

    A pulse train whose pitch wanders about the clip's own, and noise; its first `silence` seconds are exact zeros.
    """
    seconds = np.arange(len(opened) * SAMPLES_PER_FRAME) / SAMPLE_RATE
    # A frame's opening is that of its middle.
    loudness = np.interp(seconds * FRAME_RATE - 0.5, np.arange(len(opened)), QUIET + (1 - QUIET) * opened)
    noise = rng.standard_normal(len(seconds), np.float32)
    source = np.sqrt(1 - BREATH) * _pulses(_pitch(seconds, rng)) + np.sqrt(BREATH) * noise
    sound = (LOUDNESS * FULL_SCALE * loudness * source).clip(-FULL_SCALE, FULL_SCALE - 1)
    sound[: round(silence * SAMPLE_RATE)] = 0
    return sound.astype(np.int16)


def draw_crops(opened: Float[np.ndarray, " T"], rng: np.random.Generator) -> UInt8[np.ndarray, "T 96 96"]:
    """Grey crops at 25 Hz: lips on shaded skin round a dark mouth that is open so far, and a sensor's noise."""
    skin = rng.uniform(*SKIN)
    half_width = rng.uniform(*HALF_WIDTH)
    x = np.arange(CROP, dtype=np.float32) - (CROP - 1) / 2
    shade = skin * (1 - SHADE * (x**2 + x[:, None] ** 2) / (2 * x[0] ** 2))
    half_height = SHUT + (OPEN - SHUT) * opened
    lips = _ellipses(x, half_width + LIP, half_height + LIP)
    inside = _ellipses(x, half_width, half_height)
    picture = shade * (1 - (1 - LIP_TONE) * lips)
    picture += inside * (CAVITY - picture)
    picture += rng.integers(-GRAIN, GRAIN, picture.shape, np.int8, endpoint=True)
    return picture.astype(np.uint8)


def _pitch(seconds: Float[np.ndarray, " S"], rng: np.random.Generator) -> Float[np.ndarray, " S"]:
    """A clip's pitch in Hz at each moment."""
    mean = rng.uniform(*PITCH)
    start = rng.uniform(0, 2 * np.pi)
    return mean * (1 + WANDER * np.sin(2 * np.pi * WANDER_RATE * seconds + start))


def _pulses(pitch: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """A harmonic sound of variance 1: the sum over k of OVERTONE**k sin(k phase), in closed form."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    variance = OVERTONE**2 / (1 - OVERTONE**2) / 2
    return OVERTONE * np.sin(phase) / (1 - 2 * OVERTONE * np.cos(phase) + OVERTONE**2) / np.sqrt(variance)


def _ellipses(
    x: Float32[np.ndarray, " P"], half_width: float, half_height: Float[np.ndarray, " T"]
) -> Float32[np.ndarray, "T P P"]:
    """How much of each pixel lies in an ellipse about the middle, from 0 to 1, for one ellipse a frame."""
    height = half_height.astype(np.float32)[:, None, None]
    distance = (x / np.float32(half_width)) ** 2 + (x[:, None] / height) ** 2
    # Near the upper and lower rim, pixels from it: edges move by parts of a pixel, as a camera's do.
    return ((1 - distance) * (height / 2) + np.float32(0.5)).clip(0, 1)
