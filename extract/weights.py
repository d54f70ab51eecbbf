"""Official alignment weights (AVH-Align's `.pt`, the supervised method's Lightning `.ckpt`) <-> `.safetensors`."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch

from extract.schema import InputError, pack_notes, unpack_notes, whole_file
from extract.unpickle import load_restricted, plain


class Kind(NamedTuple):
    """Which network weights are of, by the official programs' names."""

    head: str
    modality: str


# Official module name -> shape of its `weight`, whose first size is that of its `bias`. The official programs take the
# features of AV-HuBERT large alone, 1024 wide.
MLP = {"mlp.0": (512, 1024), "mlp.1": (512,), "mlp.3": (256, 512), "mlp.4": (256,)}
MLP |= {"mlp.6": (128, 256), "mlp.7": (128,), "mlp.9": (1, 128)}
NETWORKS = {
    Kind("mlp", "both"): {"visual_proj": (512, 1024), "audio_proj": (512, 1024)} | MLP,
    Kind("mlp", "audio"): {"proj": (1024, 1024)} | MLP,
    Kind("mlp", "video"): {"proj": (1024, 1024)} | MLP,
    Kind("linear", "both"): {"head": (1, 2048)},
    Kind("linear", "audio"): {"head": (1, 1024)},
    Kind("linear", "video"): {"head": (1, 1024)},
}


class Official(NamedTuple):
    """What the official files of an ending hold."""

    method: str
    kinds: tuple[Kind, ...]


OFFICIAL = {
    ".pt": Official("avh_align", (Kind("mlp", "both"),)),
    ".ckpt": Official("avh_sup", tuple(NETWORKS)),
}
OURS = ".safetensors"
MOST_DETAILS = 8  # of what does not fit
# What Lightning looks for in a .ckpt, here of no training at all: it refuses a file that names no version, and breaks
# off a test at a file with an empty `loops`, not at one without.
LIGHTNING = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.5.0"}
LIGHTNING |= {"callbacks": {}, "optimizer_states": [], "lr_schedulers": []}

Weights = dict[str, torch.Tensor]
Told = tuple[str | None, str | None]  # head and modality as a file says; None = it does not


def convert_weights(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Converts weights between an official file and `.safetensors`, by the files' endings.

    Names and layout stay the official ones; numbers are float32. Notes in the `.safetensors` say what they are of. A
    `.pt` that this writes holds `state_dict` alone; a `.ckpt` also tells the network's kind, and nothing of a training.

    Raises:
      InputError: there is no such conversion; the source is missing, damaged or refused, contradicts itself, does not
        say enough, or is of a network that the official programs do not have.
    """
    source, target = Path(source), Path(target)
    if source.suffix in OFFICIAL and target.suffix == OURS:
        _write(target, _from_official(source))
    elif source.suffix == OURS and target.suffix in OFFICIAL:
        _write(target, _to_official(source, target.suffix))
    else:
        raise InputError(f"cannot convert {source} to {target}: one must end in .pt or .ckpt, the other in {OURS}")


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def _from_official(path: Path) -> bytes:
    """An official file's content as `.safetensors`."""
    checkpoint, official = load_restricted(path), OFFICIAL[path.suffix]
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path}: not an AVH-Align file: it holds no `state_dict`")
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise InputError(f"{path}: not an AVH-Align file: its `state_dict` holds more than named tensors")
    kind = _kind(path, weights, _settings(checkpoint), official)
    return safetensors.torch.save(
        _float32(weights), pack_notes({"method": official.method, **kind._asdict(), "normalised": "true"})
    )


def _to_official(path: Path, ending: str) -> bytes:
    """The content of a `.safetensors` as an official file."""
    weights, notes = _read_safetensors(path)
    method, official = notes.get("method", "avh_align"), OFFICIAL[ending]  # an official file's weights may say nothing
    if method != official.method:
        raise InputError(
            f"{path}: holds weights of {method}, but {ending} files do not: .pt is for avh_align, .ckpt for avh_sup"
        )
    if notes.get("normalised", "true") != "true":
        raise InputError(f"{path}: was trained without normalisation, but the official programs always normalise")
    kind = _kind(path, weights, (notes.get("head"), notes.get("modality")), official)
    content = {"state_dict": _float32(weights)}
    if ending == ".ckpt":
        model = {"model_type": kind.head, "input_type": kind.modality}
        content |= {"hyper_parameters": {"config": {"model_hparams": model}}} | LIGHTNING
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            notes = unpack_notes(file.metadata())
        return safetensors.torch.load_file(path), notes
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable {OURS} file ({error})") from error


def _settings(checkpoint: dict) -> Told:
    """What Lightning's hyper-parameters tell of the network; a `.pt` has none."""
    found = plain(checkpoint.get("hyper_parameters"))
    for name in ("config", "model_hparams"):
        found = found.get(name) if isinstance(found, dict) else None
    found = found if isinstance(found, dict) else {}
    head, modality = (found.get(name) for name in ("model_type", "input_type"))
    return None if head is None else str(head), None if modality is None else str(modality)


def _kind(path: Path, weights: Weights, told: Told, official: Official) -> Kind:
    """The one kind of network that has these parameters and is what the file says."""
    allowed = [kind for kind in official.kinds if all(t in (None, own) for t, own in zip(told, kind, strict=True))]
    if not allowed:
        network = ", ".join(filter(None, told))
        raise InputError(f"{path}: says that its network is {network}, which is no official one of {official.method}")
    wrong = {kind: _misfits(weights, kind) for kind in allowed}
    fitting = [kind for kind in allowed if not wrong[kind]]
    if not fitting:
        kind = min(allowed, key=lambda kind: len(wrong[kind]))
        details = ", ".join(wrong[kind][:MOST_DETAILS])
        raise InputError(f"{path}: parameters that do not fit the official {kind.head} of {kind.modality}: {details}")
    if len(fitting) > 1:
        raise InputError(f"{path}: does not say whether it is for audio or video; use a .ckpt with hyper_parameters")
    return fitting[0]


def _misfits(weights: Weights, kind: Kind) -> list[str]:
    """Parameters that are missing, too many, or of another shape than the kind's."""
    layers = NETWORKS[kind]
    wanted = {f"{name}.weight": shape for name, shape in layers.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'nothing')}" for name in wrong]


def _float32(weights: Weights) -> Weights:
    """Each parameter in memory of its own."""
    return {name: value.to(torch.float32, copy=True).contiguous() for name, value in weights.items()}
