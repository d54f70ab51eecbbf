"""Loading of official AV-HuBERT files, pre-trained or fine-tuned."""

import os
from pathlib import Path

import torch

from avh_shards import UserError
from avh_shards.text import one_line
from avh_shards.weights import MOST_DETAILS, misfits
from extract.avhubert.model import AVHubert, AVHubertConfig
from extract.convert.unpickle import are_named_tensors, load_restricted, plain

FINE_TUNED_PREFIX = "encoder.w2v_model."
UNUSED = ("mask_emb", "label_embs_concat", "final_proj.")  # parameters that only the pre-training task uses
CONFIG_NAMES = {
    "layers": "encoder_layers",
    "width": "encoder_embed_dim",
    "ffn_width": "encoder_ffn_embed_dim",
    "heads": "encoder_attention_heads",
}


def load_avhubert(path: str | os.PathLike) -> AVHubert:
    """Loads an official file without fairseq or sentencepiece, and without running pickled code.

    Args:
      path: a pre-trained (`large_vox_iter5.pt`) or fine-tuned (`self_large_vox_433h.pt`) file, float16 or float32.

    Returns:
      The encoder in float32, in evaluation mode, on the CPU.

    Raises:
      UserError: the file is missing or damaged, names a class that is not allowed, or is not an AV-HuBERT file. One
        message lists the parameters that do not fit, up to MOST_DETAILS of them.
    """
    checkpoint = load_restricted(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        detector = isinstance(checkpoint, dict) and "state_dict" in checkpoint
        hint = ", but a `state_dict`, as detector weights do; convert those with launch.convert" if detector else ""
        raise UserError(f"{path}: not an AV-HuBERT file: it has no `model`{hint}")
    with torch.device("meta"):  # only names and shapes; memory is allocated once the weights are known to fit
        network = AVHubert(_config(checkpoint, path))
    weights = _encoder_weights(checkpoint["model"], path)
    _check_fit(network, weights, path)
    dtypes = {name: value.dtype for name, value in network.state_dict().items()}
    owned = {name: value.to(dtypes[name], copy=True).contiguous() for name, value in weights.items()}
    network.load_state_dict(owned, assign=True)
    return network


def random_avhubert(config: AVHubertConfig, seed: int = 0) -> AVHubert:
    """Builds an encoder with seeded random weights, to try out the programs; its features are meaningless.

    Args:
      config: sizes of the encoder.
      seed: seed of the weights; torch's global random state is left unchanged.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AVHubert(config)


def _config(checkpoint: dict, path: str | os.PathLike) -> AVHubertConfig:
    """Reads the encoder's sizes from any of the layouts that old and new files use."""
    try:
        kept = [plain(checkpoint.get(name)) for name in ("cfg", "args")]
        settings = next((settings for settings in kept if isinstance(settings, dict) and settings), {})
        settings = _section(settings, "model")
        if "w2v_args" in settings:  # fine-tuned: the encoder's own settings are nested inside
            settings = _section(_section(settings, "w2v_args"), "model")
        return AVHubertConfig(**{field: int(settings[name]) for field, name in CONFIG_NAMES.items()})
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:  # int() of any value
        reason = one_line(str(error)[:200])
        raise UserError(f"{path}: not an AV-HuBERT file: incomplete or invalid configuration ({reason})") from None


def _section(settings: dict, name: str) -> dict:
    """Returns `settings[name]` if the settings have sections, else the settings themselves."""
    return settings[name] if isinstance(settings.get(name), dict) else settings


def _encoder_weights(model: dict, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Selects the encoder's parameters in a file."""
    if not are_named_tensors(model):
        raise UserError(f"{path}: not an AV-HuBERT file: its `model` holds more than named tensors")
    prefix = FINE_TUNED_PREFIX if any(name.startswith(FINE_TUNED_PREFIX) for name in model) else ""
    own = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if not name.startswith(UNUSED)}


def _check_fit(network: AVHubert, weights: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := misfits(found, wanted):
        details = ", ".join(wrong[:MOST_DETAILS])
        raise UserError(f"{path}: {len(wrong)} parameters do not fit AV-HuBERT: {one_line(details[:1000])}")
    if sum(value.nbytes for value in weights.values()) > Path(path).stat().st_size:
        raise UserError(f"{path}: not an AV-HuBERT file: its parameters share memory")
