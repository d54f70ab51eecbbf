"""Detectors, a module each, under the names of flags and score files."""

from jax_avh.methods import avh_align, avh_sup, clip_length, factor, leading_silence, speech_forensics
from jax_avh.methods.interface import ClipMethod, FrameMethod, Training

METHODS: dict[str, ClipMethod | FrameMethod] = {
    method.name: method
    for method in (
        avh_align.METHOD,
        avh_sup.METHOD,
        speech_forensics.METHOD,
        factor.METHOD,
        leading_silence.DURATION,
        leading_silence.AMPLITUDE,
        clip_length.METHOD,
    )
}

__all__ = ["METHODS", "ClipMethod", "FrameMethod", "Training"]
