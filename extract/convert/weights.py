"""Conversion of official weights (`.pt`, `.ckpt` and `.pth` files) to `.safetensors` and back."""

import functools
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from avh_shards import UserError
from avh_shards.paths import SAFETENSORS, ZIP, as_path, atomic_write, check_outputs
from avh_shards.text import one_line
from avh_shards.weights import MOST_DETAILS, misfits, open_safetensors, pack_notes, unpack_notes
from extract.convert.unpickle import are_named_tensors, load_restricted, plain

OURS = ".safetensors"
BARE = ".pth"  # suffix of files that contain a bare state dict, as PyTorch's modules return it
PARALLEL = "module."  # prefix of every name in a state dict of torch.nn.DataParallel
PURPOSES = ".pt is for avh_align, .ckpt for avh_sup, .pth for rawnet2 and mds"
COUNTER = "num_batches_tracked"  # buffer of a PyTorch batch norm that does not affect inference
TITLES = {".pt": "an AVH-Align", ".ckpt": "an AVH-Align", ".pth": "a RawNet2 or MDS"}  # networks in official files
# Fields that Lightning expects in a .ckpt, with values for zero steps of training. Lightning rejects a file without a
# version; testing fails on a file with an empty `loops`, but not on one without the field.
LIGHTNING = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.5.0"}
LIGHTNING |= {"callbacks": {}, "optimizer_states": [], "lr_schedulers": []}

Weights = dict[str, torch.Tensor]
Recorded = dict[str, str]  # notes that a file records about its network; a subset of Network.notes


class Network(NamedTuple):
    """A network of an official program, with its official parameter names."""

    name: str  # for messages
    notes: dict[str, str]  # notes in its `.safetensors`
    shapes: dict[str, tuple[int, ...]]  # of parameters and running statistics

    @property
    def method(self) -> str:
        """Name of the detector."""
        return self.notes["method"]

    @property
    def counters(self) -> list[str]:
        """Names of the batch norms' counters in the official network."""
        means = (name for name in self.shapes if name.endswith(".running_mean"))
        return [name.removesuffix("running_mean") + COUNTER for name in means]


@functools.cache
def official_networks() -> dict[str, tuple[Network, ...]]:
    """Returns the networks in official files, by file suffix.

    The table is stored as data in networks.json; a test checks that it equals the networks in JAX.
    """
    networks: dict[str, tuple[Network, ...]] = {}
    for entry in json.loads((Path(__file__).parent / "networks.json").read_text()):
        shapes = {name: tuple(shape) for name, shape in entry["shapes"].items()}
        network = Network(entry["name"], entry["notes"], shapes)
        networks[entry["ending"]] = (*networks.get(entry["ending"], ()), network)
    return networks


def convert_weights(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Converts weights between an official file and `.safetensors`, depending on the file suffixes.

    Official names and layout are kept; numbers are float32. Notes in the `.safetensors` record the network. A `.pt`
    written here contains only `state_dict`; a `.ckpt` also records the kind of network, but no training state; a `.pth`
    is a bare state dict. The counters of batch norms are left out of a `.safetensors` and are zero in a `.pth`.

    Args:
      source: existing file to read: `.pt`, `.ckpt`, `.pth` or `.safetensors`.
      target: file to write; one of the two must be a `.safetensors`, the other an official file.

    Raises:
      UserError: the suffixes do not fit; the source is missing, damaged, unsafe, contradictory or ambiguous; or the
        official programs have no such network.
    """
    read = Path(str(as_path(source)))
    written = as_path(target)
    check_outputs({written: SAFETENSORS if written.suffix == OURS else ZIP}, [read])
    if read.suffix in TITLES and written.suffix == OURS:
        content = _from_official(read)
    elif read.suffix == OURS and written.suffix in TITLES:
        content = _to_official(read, written.suffix)
    else:
        raise UserError(f"cannot convert {read} to {written}: one must end in .pt, .ckpt or .pth, the other in {OURS}")
    with atomic_write(written) as temporary:
        temporary.write_bytes(content)


def _from_official(path: Path) -> bytes:
    """Returns the content of an official file as `.safetensors`."""
    checkpoint = load_restricted(path)
    weights = _state_dict(path, checkpoint)
    if path.suffix == BARE:
        weights = _own_names(weights)
    network = _network(path, weights, _settings(path, checkpoint), path.suffix)
    return safetensors.torch.save(_float32(path, weights), pack_notes(network.notes))


def _to_official(path: Path, ending: str) -> bytes:
    """Returns the content of a `.safetensors` as an official file with this suffix."""
    with open_safetensors(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = unpack_notes(file.metadata())
    recorded = {"method": "avh_align"} | notes  # weights from official files may have no notes
    if recorded["method"] not in _methods(ending):
        raise UserError(f"{path}: holds weights of {recorded['method']}, but {ending} files do not: {PURPOSES}")
    if notes.get("normalised", "true") != "true":
        raise UserError(f"{path}: was trained without normalisation, but the official programs always normalise")
    network = _network(path, weights, recorded, ending)
    content = _float32(path, weights)
    if ending == BARE:
        content |= {name: torch.zeros((), dtype=torch.int64) for name in network.counters}
    else:
        content = {"state_dict": content}
    if ending == ".ckpt":
        model = {"model_type": network.notes["head"], "input_type": network.notes["modality"]}
        content |= {"hyper_parameters": {"config": {"model_hparams": model}}} | LIGHTNING
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _state_dict(path: Path, checkpoint: object) -> Weights:
    """Returns the named tensors in an official file."""
    title = TITLES[path.suffix]
    holder = checkpoint if isinstance(checkpoint, dict) else {}
    encoder = isinstance(holder.get("model"), dict)
    hint = ", but a `model`, as AV-HuBERT files do; pass the file to --avhubert unchanged" if encoder else ""
    weights = holder.get("state_dict")
    if path.suffix == BARE and are_named_tensors(checkpoint):
        weights = checkpoint
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path}: not {title} file: it has no `state_dict`{hint}")
    if not are_named_tensors(weights):
        raise UserError(f"{path}: not {title} file: its `state_dict` holds more than named tensors")
    return weights


def _own_names(weights: Weights) -> Weights:
    """Renames weights as in the network itself, and drops the counters of batch norms."""
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in weights) else ""
    named = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if not name.endswith(f".{COUNTER}")}


def _settings(path: Path, checkpoint: object) -> Recorded:
    """Returns the notes found in Lightning's hyper-parameters; other files have none."""
    try:
        found = plain(checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None)
    except ValueError as error:
        title = TITLES[path.suffix]
        raise UserError(f"{path}: not {title} file: its `hyper_parameters` are {error}") from None
    for name in ("config", "model_hparams"):
        found = found.get(name) if isinstance(found, dict) else None
    found = found if isinstance(found, dict) else {}
    recorded = {"head": found.get("model_type"), "modality": found.get("input_type")}
    return {name: one_line(str(value)[:100]) for name, value in recorded.items() if value is not None}


def _network(path: Path, weights: Weights, recorded: Recorded, ending: str) -> Network:
    """Returns the only network of a suffix that has these parameters and agrees with the file's notes."""
    networks = official_networks()[ending]
    allowed = [network for network in networks if _agrees(network, recorded)]
    if not allowed:
        kinds = {name for network in networks for name in network.notes}
        said = ", ".join(f"{name} {value}" for name, value in recorded.items() if name in kinds)
        names = " and ".join(_methods(ending))
        raise UserError(f"{path}: records its network as {said}, which is not an official network of {names}")
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [(misfits(found, network.shapes), network) for network in allowed]
    fitting = [network for details, network in wrong if not details]
    if not fitting:
        details, nearest = min(wrong, key=lambda pair: len(pair[0]))
        hint = "" if len({network.method for network in allowed}) == 1 else f"; {PURPOSES}"
        details = one_line(", ".join(details[:MOST_DETAILS])[:1000])
        raise UserError(f"{path}: parameters do not fit the official {nearest.name}: {details}{hint}")
    if len(fitting) > 1:
        raise UserError(f"{path}: could be for audio or video; use a .ckpt with hyper_parameters")
    return fitting[0]


def _methods(ending: str) -> list[str]:
    """Returns the detectors of a suffix, without duplicates."""
    return list(dict.fromkeys(network.method for network in official_networks()[ending]))


def _agrees(network: Network, recorded: Recorded) -> bool:
    """Returns whether a network agrees with a file's notes, except the image size, which the shapes decide."""
    return all(recorded.get(name, own) == own for name, own in network.notes.items() if name != "image")


def _float32(path: Path, weights: Weights) -> Weights:
    """Returns the parameters as float32 in separate memory; raises if one is not floating-point."""
    if wrong := [name for name, value in weights.items() if not value.is_floating_point()]:
        raise UserError(f"{path}: {wrong[0]} holds {weights[wrong[0]].dtype}, not floating-point numbers")
    return {name: value.to(torch.float32, copy=True).contiguous() for name, value in weights.items()}
