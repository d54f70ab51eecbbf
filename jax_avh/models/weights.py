"""Weights in .safetensors files: official names, PyTorch's layout ([out, in]), and what they were trained as."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from extract.schema import InputError, pack_notes, unpack_notes, whole_file
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.linear import LinearNetwork
from jax_avh.models.network import MODALITIES, FrameNetwork

BEST_WEIGHTS = "best.safetensors"  # in the workdir of a training run
HEADS = {network.head: network for network in (AlignmentNetwork, LinearNetwork)}

# Official module name -> attribute path of the network's layer; a network has some of them.
LAYERS = {
    "visual_proj": ("visual_proj",),
    "audio_proj": ("audio_proj",),
    "proj": ("proj",),
    **{f"mlp.{index}": ("mlp", "layers", index) for index in (0, 1, 3, 4, 6, 7, 9)},
    "head": ("head_layer",),
}
# Official parameter name -> the layer's own, by the kind of layer. Matrices are transposed (vectors are their own
# transposes, so `.T` and a reversed shape serve both).
PARAMETERS = {
    nnx.Linear: {"weight": "kernel", "bias": "bias"},
    nnx.LayerNorm: {"weight": "scale", "bias": "bias"},
}


def save_weights(
    network: FrameNetwork, path: str | os.PathLike, notes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a network's parameters, float32, and in the file's metadata its kind and notes on its origin."""
    arrays = {name: np.asarray(v[...], np.float32).T for name, v in _parameters(network).items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    kind = {"head": network.head, "modality": network.modality, "normalised": str(network.normalised).lower()}
    with whole_file(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata=pack_notes({**notes, **kind})))


def load_weights(path: str | os.PathLike, precision: str = "float32") -> FrameNetwork:
    """Makes a network of a file's parameters; its kind and feature width are the file's.

    Raises:
      InputError: the file is missing or damaged, or its parameters do not fit; all that do not are listed at once.
    """
    arrays, notes = _read(Path(path)), read_notes(path)
    network = _empty_network(Path(path), arrays, notes, precision)
    parameters = _parameters(network)
    wanted = {name: parameter.shape[::-1] for name, parameter in parameters.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        details = ", ".join(f"{n} {found.get(n, 'missing')} for {wanted.get(n, 'nothing')}" for n in wrong)
        raise InputError(f"{path}: parameters that do not fit the network: {details}")
    if spoilt := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(f"{path}: {spoilt[0]} holds NaN or infinity")
    for name, parameter in parameters.items():
        parameter.set_value(jnp.asarray(arrays[name].T, network.dtype))
    return network


def read_notes(path: str | os.PathLike) -> dict[str, str]:
    """What a file of weights says of its origin; empty for an official file's weights.

    Raises:
      InputError: the file is missing or damaged.
    """
    with _reading(Path(path)), safetensors.safe_open(path, "numpy") as file:
        return unpack_notes(file.metadata())


def parameter_table(network: FrameNetwork) -> str:
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


def _empty_network(
    path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str], precision: str
) -> FrameNetwork:
    """A network of the kind that a file's parameters are of, its own parameters still to be set."""
    head = "linear" if "head.weight" in arrays else "mlp"
    modality = notes.get("modality", "" if "proj.weight" in arrays else "both")
    if modality not in MODALITIES:
        raise InputError(f"{path}: does not say which modality it is for; convert it from its official .ckpt")
    first = {"linear": "head", "mlp": "visual_proj" if modality == "both" else "proj"}[head]
    matrix = arrays.get(f"{first}.weight", np.empty(0))
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{path}: not alignment weights: it holds no matrix `{first}.weight`")
    width = matrix.shape[1] // (len(MODALITIES[modality]) if head == "linear" else 1)
    normalised = notes.get("normalised", "true") == "true"
    return HEADS[head](width, rngs=nnx.Rngs(0), modality=modality, normalised=normalised, precision=precision)


def _read(path: Path) -> dict[str, np.ndarray]:
    with _reading(path):
        return safetensors.numpy.load_file(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what reading a file of weights may raise into an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        yield
    except (OSError, safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a readable .safetensors file ({error})") from error


def _parameters(network: FrameNetwork) -> dict[str, nnx.Param]:
    """The network's parameters by their official names."""
    parameters = {}
    for module, path in LAYERS.items():
        if not hasattr(network, path[0]):
            continue
        layer = network
        for step in path:
            layer = layer[step] if isinstance(step, int) else getattr(layer, step)
        for official, own in PARAMETERS[type(layer)].items():
            parameters[f"{module}.{official}"] = getattr(layer, own)
    return parameters
