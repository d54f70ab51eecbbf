"""Alignment weights in .safetensors files, under the official names and in PyTorch's layout ([out, in])."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from extract.schema import InputError, whole_file
from jax_avh.models.alignment import AlignmentNetwork

BEST_WEIGHTS = "best.safetensors"  # in the workdir of a training run

# Official module name -> attribute path of the network's layer.
LAYERS = {
    "visual_proj": ("visual_proj",),
    "audio_proj": ("audio_proj",),
    **{f"mlp.{index}": ("mlp", "layers", index) for index in (0, 1, 3, 4, 6, 7, 9)},
}
# Official parameter name -> the layer's own, by the kind of layer. Matrices are transposed (vectors are their own
# transposes, so `.T` and a reversed shape serve both).
PARAMETERS = {
    nnx.Linear: {"weight": "kernel", "bias": "bias"},
    nnx.LayerNorm: {"weight": "scale", "bias": "bias"},
}


def save_weights(network: AlignmentNetwork, path: str | os.PathLike) -> None:
    """Writes a network's parameters, float32."""
    arrays = {name: np.asarray(v[...], np.float32).T for name, v in _parameters(network).items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays))


def load_weights(path: str | os.PathLike, precision: str = "float32") -> AlignmentNetwork:
    """Makes a network of a file's parameters; the feature width is the file's.

    Raises:
      InputError: the file is missing or damaged, or its parameters do not fit; all that do not are listed at once.
    """
    arrays = _read(Path(path))
    projection = arrays.get("visual_proj.weight", np.empty(0))
    if projection.ndim != 2 or 0 in projection.shape:
        raise InputError(f"{path}: not alignment weights: it holds no matrix `visual_proj.weight`")
    network = AlignmentNetwork(projection.shape[1], rngs=nnx.Rngs(0), precision=precision)
    parameters = _parameters(network)
    wanted = {name: parameter.shape[::-1] for name, parameter in parameters.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        details = ", ".join(f"{n} {found.get(n, 'missing')} for {wanted.get(n, 'nothing')}" for n in wrong)
        raise InputError(f"{path}: parameters that do not fit the alignment network: {details}")
    if spoilt := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(f"{path}: {spoilt[0]} holds NaN or infinity")
    for name, parameter in parameters.items():
        parameter.set_value(jnp.asarray(arrays[name].T, network.dtype))
    return network


def parameter_table(network: AlignmentNetwork) -> str:
    """Names, shapes and numbers of a network's parameters, a line each, and their sum."""
    rows = [(name, list(p.shape[::-1]), p.size) for name, p in _parameters(network).items()]
    lines = [f"{name:20s} {shape!s:14s} {size:>10,}" for name, shape, size in rows]
    return "\n".join([*lines, f"{'parameters':20s} {'':14s} {sum(size for *_, size in rows):>10,}"])


def weights_file(weights: str | os.PathLike) -> Path:
    """The file of weights that a path means: itself, or the best of a workdir.

    Raises:
      InputError: a folder without best weights.
    """
    path = Path(weights)
    if not path.is_dir():
        return path
    if not (path / BEST_WEIGHTS).is_file():
        raise InputError(f"{path}: holds no {BEST_WEIGHTS}; has the run finished its first epoch?")
    return path / BEST_WEIGHTS


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, AttributeError) as error:  # or a dtype unknown
        raise InputError(f"{path}: not a readable .safetensors file ({error})") from error


def _parameters(network: AlignmentNetwork) -> dict[str, nnx.Param]:
    """The network's parameters by their official names."""
    parameters = {}
    for module, path in LAYERS.items():
        layer = network
        for step in path:
            layer = layer[step] if isinstance(step, int) else getattr(layer, step)
        for official, own in PARAMETERS[type(layer)].items():
            parameters[f"{module}.{official}"] = getattr(layer, own)
    return parameters
