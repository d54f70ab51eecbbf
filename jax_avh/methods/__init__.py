"""Detection methods by their names in flags and score files.

Each trainable method has its own module; `untrained` holds all others.
"""

from jax_avh.methods import avad, avh_align, avh_sup, mds, rawnet2, untrained
from jax_avh.methods.base import ClipMethod, ExampleMethod, FrameMethod, Method, TrainableMethod

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        avh_align.METHOD,
        avh_sup.METHOD,
        rawnet2.METHOD,
        mds.METHOD,
        avad.METHOD,
        avad.SLIDING,
        untrained.SPEECH_FORENSICS,
        untrained.FACTOR,
        untrained.LEADING_SILENCE,
        untrained.LEADING_AMPLITUDE,
        untrained.CLIP_LENGTH,
    )
}
"""Detection methods by name; `trainable` is whether a method is trained, `reads` what its shards must hold."""

__all__ = ["METHODS", "ClipMethod", "ExampleMethod", "FrameMethod", "Method", "TrainableMethod"]
