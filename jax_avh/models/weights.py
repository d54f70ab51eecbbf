"""Weights in .safetensors files: official names, PyTorch's layout ([out, in]), and notes on their training."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from avh_shards import UserError
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write, reachable
from avh_shards.text import one_line
from avh_shards.weights import MOST_DETAILS, misfits, open_safetensors, pack_notes, unpack_notes
from jax_avh.models.alignment import MODALITY_FEATURES, NETWORKS, FrameNetwork

BEST_WEIGHTS = "best.safetensors"  # in the workdir of a training run

# Part of an array's path -> its official name, where they differ; the layers of a Sequential are named by their index.
RENAMED = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var", "head_layer": "head"}
SEQUENCE = "layers"

Shapes = Mapping[str, tuple[int, ...]]
# (file, shapes of its arrays, its notes, precision) -> a network of that kind, with arrays yet to be loaded
Make = Callable[[FilePath, Shapes, Mapping[str, str], str], nnx.Module]


class Named(NamedTuple):
    """An array of a network; a kernel [*sizes, in, out] is [out, in, *sizes] in PyTorch's layout."""

    variable: nnx.Variable
    kernel: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the official array."""
        sizes = self.variable.shape
        return (sizes[-1], sizes[-2], *sizes[:-2]) if self.kernel else sizes

    def official(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from this project's layout to the official one."""
        return np.moveaxis(array, (-1, -2), (0, 1)) if self.kernel else array

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from the official layout to this project's."""
        return np.moveaxis(array, (0, 1), (-1, -2)) if self.kernel else array


def save_weights(network: Any, path: AnyPath, notes: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes a network's arrays in float32, with its kind and notes in the file's metadata.

    Args:
      network: the network, with a `kind`.
      path: the .safetensors file to write.
      notes: notes on the origin of the weights; the network's kind takes precedence.
    """
    arrays = {name: v.official(np.asarray(v.variable[...], np.float32)) for name, v in named_arrays(network).items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata=pack_notes({**notes, **network.kind})))


def load_weights(path: AnyPath, precision: str = "float32", make: Make | None = None) -> Any:
    """Loads a network from a file of weights.

    Args:
      path: the file.
      precision: a key of layers.ARITHMETIC.
      make: builds the network; None = a FrameNetwork of the file's kind and feature width.

    Returns:
      The network with the file's arrays.

    Raises:
      UserError: the file is missing or damaged, its arrays do not fit the network (the message lists them), or an
        array is not of finite floating-point numbers.
    """
    path = as_path(path)
    with open_safetensors(path, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        notes = unpack_notes(file.metadata())
        # Only shapes: a file's notes are checked against its arrays before any memory is allocated.
        network = nnx.eval_shape(lambda: (make or frame_network)(path, shapes, notes, precision))
        named = named_arrays(network)
        wanted = {name: array.shape for name, array in named.items()}
        if wrong := misfits(shapes, wanted):
            details = one_line(", ".join(wrong[:MOST_DETAILS])[:1000])
            raise UserError(f"{path}: has parameters that do not fit the network: {details}")
        for name, (variable, _) in named.items():
            array = file.get_tensor(name)
            if array.dtype.kind != "f":
                raise UserError(f"{path}: {name} holds {array.dtype}, not floating-point numbers")
            with np.errstate(over="ignore"):  # a large float64 becomes infinity
                array = array.astype(variable.dtype)
            if not np.isfinite(array).all():
                raise UserError(f"{path}: {name} holds NaN or infinity")
            variable.set_value(jnp.asarray(named[name].ours(array)))
    return network


def named_arrays(network: nnx.Module) -> dict[str, Named]:
    """Returns a network's arrays by their official names, which its module tree mirrors."""
    found = {}
    for path, node in nnx.iter_graph(network):
        if isinstance(node, nnx.Variable):
            parts = (RENAMED.get(str(part), str(part)) for part in path if part != SEQUENCE)
            found[".".join(parts)] = Named(node, path[-1] == "kernel")
    return found


def read_notes(path: AnyPath) -> dict[str, str]:
    """Reads the notes on origin from a file of weights; empty for weights of an official file.

    Raises:
      UserError: the file is missing or damaged.
    """
    with open_safetensors(as_path(path), "numpy") as file:
        return unpack_notes(file.metadata())


def check_features(
    path: FilePath, width: int, notes: Mapping[str, str], attributes: Mapping[str, object], what: object
) -> None:
    """Checks that features match those that weights were trained on.

    Args:
      path: the file of weights.
      width: feature width that the network takes.
      notes: notes of the file of weights.
      attributes: attributes of the features: width, weights_sha256.
      what: source of the features, for the message.

    Raises:
      UserError: the features have a different width or come from a different encoder.
    """
    if width != attributes["width"]:
        raise UserError(f"{path}: takes features of width {width}, but {what} has width {attributes['width']}")
    made_of, found = (str(known.get("weights_sha256", "unknown")) for known in (notes, attributes))
    if "unknown" not in (made_of, found) and made_of != found:
        raise UserError(
            f"{path}: was trained on features of another encoder: weights_sha256 {made_of}, but {what} has {found}; "
            "extract with the same encoder"
        )


def parameter_table(network: nnx.Module) -> str:
    """Returns a table of a network's parameters: name, shape and size, one per line, and the total size."""
    named = {name: v for name, v in named_arrays(network).items() if isinstance(v.variable, nnx.Param)}
    rows = [(name, list(v.shape), v.variable.size) for name, v in named.items()]
    wide, long = max(20, *(len(name) for name in named)), max(14, *(len(str(shape)) for _, shape, _ in rows))
    lines = [f"{name:{wide}s} {shape!s:{long}s} {size:>10,}" for name, shape, size in rows]
    return "\n".join([*lines, f"{'parameters':{wide}s} {'':{long}s} {sum(size for *_, size in rows):>10,}"])


def weights_file(weights: AnyPath) -> FilePath:
    """Returns the file of weights at a path: the path itself or, for a workdir, its best weights.

    Raises:
      UserError: the path is a folder without best weights.
    """
    path = reachable(weights)
    if not path.is_dir():
        return path
    if not (path / BEST_WEIGHTS).is_file():
        raise UserError(f"{path}: holds no {BEST_WEIGHTS}; check that the run has finished its first epoch")
    return path / BEST_WEIGHTS


def frame_network(path: FilePath, shapes: Shapes, notes: Mapping[str, str], precision: str) -> FrameNetwork:
    """Builds a network of the kind that a file's shapes and notes describe, with arrays yet to be loaded.

    Args:
      path: the file, for messages.
      shapes: shapes of the file's arrays, by their official names.
      notes: notes of the file.
      precision: a key of layers.ARITHMETIC.

    Raises:
      UserError: the file does not identify the kind of its network.
    """
    head = "linear" if "head.weight" in shapes else "mlp"
    modality = notes.get("modality", "" if "proj.weight" in shapes else "both")
    if modality not in MODALITY_FEATURES:
        raise UserError(f"{path}: does not record its modality; convert it from its official .ckpt")
    first = {"linear": "head", "mlp": "visual_proj" if modality == "both" else "proj"}[head]
    matrix = shapes.get(f"{first}.weight", ())
    if len(matrix) != 2 or 0 in matrix:
        raise UserError(f"{path}: not alignment weights; it holds no matrix `{first}.weight`")
    width = matrix[1] // (len(MODALITY_FEATURES[modality]) if head == "linear" else 1)
    normalised = notes.get("normalised", "true") == "true"
    return NETWORKS[head](width, rngs=nnx.Rngs(0), modality=modality, normalised=normalised, precision=precision)
