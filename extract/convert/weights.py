"""Official weights (`.pt`, `.ckpt` and `.pth` files) <-> `.safetensors`."""

import io
import os
from pathlib import Path

import safetensors.torch
import torch

from avh_shards import UserError
from avh_shards.kinds import SAFETENSORS, ZIP
from avh_shards.paths import as_path, atomic_write, check_outputs
from avh_shards.text import one_line
from avh_shards.weights import open_safetensors, pack_notes, unpack_notes
from extract.convert.released import COUNTER, OFFICIAL, Network, counters, misfits
from extract.convert.unpickle import load_restricted, plain

OURS = ".safetensors"
BARE = ".pth"  # ending of the files that hold a state dict itself, as PyTorch's modules give it
PARALLEL = "module."  # begins every name in a state dict of torch.nn.DataParallel
PURPOSES = ".pt is for avh_align, .ckpt for avh_sup, .pth for rawnet2 and mds"
MOST_DETAILS = 8  # of what does not fit
# What Lightning looks for in a .ckpt, here of no training at all: it refuses a file that names no version, and breaks
# off a test at a file with an empty `loops`, not at one without.
LIGHTNING = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.5.0"}
LIGHTNING |= {"callbacks": {}, "optimizer_states": [], "lr_schedulers": []}

Weights = dict[str, torch.Tensor]
Told = dict[str, str]  # what a file says of its network: some of its notes


def convert_weights(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Converts weights between an official file and `.safetensors`, by the files' endings.

    Names and layout stay the official ones; numbers are float32. Notes in the `.safetensors` say what they are of. A
    `.pt` that this writes holds `state_dict` alone; a `.ckpt` also tells the network's kind, and nothing of a training;
    a `.pth` is the state dict itself. What batch norms count besides their statistics is left out of a `.safetensors`,
    and zero in a `.pth`.

    Raises:
      UserError: there is no such conversion; the source is missing, damaged or refused, contradicts itself, does not
        say enough, or is of a network that the official programs do not have.
    """
    source, target = as_path(source), as_path(target)
    check_outputs({target: SAFETENSORS if target.suffix == OURS else ZIP}, [source])
    if source.suffix in OFFICIAL and target.suffix == OURS:
        _write(target, _from_official(source))
    elif source.suffix == OURS and target.suffix in OFFICIAL:
        _write(target, _to_official(source, target.suffix))
    else:
        raise UserError(f"cannot convert {source} to {target}: one must end in .pt, .ckpt or .pth, the other in {OURS}")


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _from_official(path: Path) -> bytes:
    """An official file's content as `.safetensors`."""
    checkpoint = load_restricted(path)
    weights = _state_dict(path, checkpoint)
    if path.suffix == BARE:
        weights = _own_names(weights)
    network = _network(path, weights, _settings(path, checkpoint), path.suffix)
    return safetensors.torch.save(_float32(path, weights), pack_notes(network.notes))


def _to_official(path: Path, ending: str) -> bytes:
    """The content of a `.safetensors` as an official file."""
    weights, notes = _read_safetensors(path)
    told = {"method": "avh_align"} | notes  # an official file's weights may say nothing
    if told["method"] not in OFFICIAL[ending].methods:
        raise UserError(f"{path}: holds weights of {told['method']}, but {ending} files do not: {PURPOSES}")
    if notes.get("normalised", "true") != "true":
        raise UserError(f"{path}: was trained without normalisation, but the official programs always normalise")
    network, content = _network(path, weights, told, ending), _float32(path, weights)
    if ending == BARE:
        content |= {name: torch.zeros((), dtype=torch.int64) for name in counters(network)}
    else:
        content = {"state_dict": content}
    if ending == ".ckpt":
        model = {"model_type": network.notes["head"], "input_type": network.notes["modality"]}
        content |= {"hyper_parameters": {"config": {"model_hparams": model}}} | LIGHTNING
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    with open_safetensors(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, unpack_notes(file.metadata())  # noqa: SIM118


def _state_dict(path: Path, checkpoint: object) -> Weights:
    """The named tensors that an official file holds."""
    title = OFFICIAL[path.suffix].title
    encoder = isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), dict)
    hint = ", but a `model`, as AV-HuBERT's files do: give such a file to --avhubert as it is" if encoder else ""
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if path.suffix == BARE and _named_tensors(checkpoint):
        weights = checkpoint
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path}: not {title} file: it holds no `state_dict`{hint}")
    if not _named_tensors(weights):
        raise UserError(f"{path}: not {title} file: its `state_dict` holds more than named tensors")
    return weights


def _named_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items()
    )


def _own_names(weights: Weights) -> Weights:
    """Names as the network itself has them, without what batch norms count."""
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in weights) else ""
    named = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if not name.endswith(f".{COUNTER}")}


def _settings(path: Path, checkpoint: dict) -> Told:
    """What Lightning's hyper-parameters tell of the network; other files have none."""
    try:
        found = plain(checkpoint.get("hyper_parameters"))
    except ValueError as error:
        title = OFFICIAL[path.suffix].title
        raise UserError(f"{path}: not {title} file: its `hyper_parameters` are {error}") from None
    for name in ("config", "model_hparams"):
        found = found.get(name) if isinstance(found, dict) else None
    found = found if isinstance(found, dict) else {}
    told = {"head": found.get("model_type"), "modality": found.get("input_type")}
    return {name: one_line(str(value)[:100]) for name, value in told.items() if value is not None}


def _network(path: Path, weights: Weights, told: Told, ending: str) -> Network:
    """The one network of an ending's that has these parameters and is what the file says."""
    official = OFFICIAL[ending]
    allowed = [network for network in official.networks if _agrees(network, told)]
    if not allowed:
        kinds = {name for network in official.networks for name in network.notes}
        said = ", ".join(f"{name} {value}" for name, value in told.items() if name in kinds)
        names = " and ".join(official.methods)
        raise UserError(f"{path}: says that its network is {said}, which is no official one of {names}")
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [(misfits(found, network), network) for network in allowed]
    fitting = [network for details, network in wrong if not details]
    if not fitting:
        details, nearest = min(wrong, key=lambda pair: len(pair[0]))
        hint = "" if len({network.method for network in allowed}) == 1 else f"; {PURPOSES}"
        details = one_line(", ".join(details[:MOST_DETAILS])[:1000])
        raise UserError(f"{path}: parameters that do not fit the official {nearest.name}: {details}{hint}")
    if len(fitting) > 1:
        raise UserError(f"{path}: does not say whether it is for audio or video; use a .ckpt with hyper_parameters")
    return fitting[0]


def _agrees(network: Network, told: Told) -> bool:
    """Whether a network may be what a file says; the size of its images the shapes tell better."""
    return all(told.get(name, own) == own for name, own in network.notes.items() if name != "image")


def _float32(path: Path, weights: Weights) -> Weights:
    """Each parameter in memory of its own."""
    if wrong := [name for name, value in weights.items() if not value.is_floating_point()]:
        raise UserError(f"{path}: {wrong[0]} holds {weights[wrong[0]].dtype}, not floating-point numbers")
    return {name: value.to(torch.float32, copy=True).contiguous() for name, value in weights.items()}
