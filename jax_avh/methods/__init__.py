"""Detectors, a module each, under the names of flags and score files."""

from jax_avh.methods import avad, avh_align, avh_sup, factor, mds, rawnet2, shortcuts, speech_forensics
from jax_avh.methods.base import ClipMethod, ExampleMethod, FrameMethod, Method, Reference, TrainableMethod

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        avh_align.METHOD,
        avh_sup.METHOD,
        rawnet2.METHOD,
        mds.METHOD,
        avad.METHOD,
        avad.SLIDING,
        speech_forensics.METHOD,
        factor.METHOD,
        shortcuts.LEADING_SILENCE,
        shortcuts.LEADING_AMPLITUDE,
        shortcuts.CLIP_LENGTH,
    )
}

__all__ = ["METHODS", "ClipMethod", "ExampleMethod", "FrameMethod", "Method", "Reference", "TrainableMethod"]
