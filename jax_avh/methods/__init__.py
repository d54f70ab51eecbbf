"""Detectors, a module or a package each, under the names of flags and score files."""

from jax_avh.methods import avh_align, avh_sup, clip_length, factor, leading_silence, speech_forensics
from jax_avh.methods.avad.method import METHOD as AVAD
from jax_avh.methods.avad.method import SLIDING as AVAD_SLIDING
from jax_avh.methods.base import ClipMethod, ExampleMethod, FrameMethod, Method, Reference, TrainableMethod
from jax_avh.methods.mds.method import METHOD as MDS
from jax_avh.methods.rawnet2.method import METHOD as RAWNET2

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        avh_align.METHOD,
        avh_sup.METHOD,
        RAWNET2,
        MDS,
        AVAD,
        AVAD_SLIDING,
        speech_forensics.METHOD,
        factor.METHOD,
        leading_silence.DURATION,
        leading_silence.AMPLITUDE,
        clip_length.METHOD,
    )
}

__all__ = ["METHODS", "ClipMethod", "ExampleMethod", "FrameMethod", "Method", "Reference", "TrainableMethod"]
