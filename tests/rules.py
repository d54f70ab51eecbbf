"""Synthetic weights and features, generated instead of stored; the outputs in testdata were computed from them."""

import collections
import csv
import functools
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
from flax import nnx

from avh_shards import read_clip_list
from extract.avhubert import AVHubert, AVHubertConfig
from extract.convert.npz import import_features
from jax_avh.models.weights import named_arrays

HIDDEN = (512, 256, 128)


def encoder_settings(config: AVHubertConfig) -> dict[str, object]:
    """Returns the settings that an official file records of an encoder."""
    return {
        "_name": "av_hubert",
        "encoder_layers": config.layers,
        "encoder_embed_dim": config.width,
        "encoder_ffn_embed_dim": config.ffn_width,
        "encoder_attention_heads": config.heads,
    }


TINY_SETTINGS = encoder_settings(AVHubertConfig.tiny())


@functools.lru_cache(2000)  # the parameters of several networks
def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    x.flags.writeable = False
    return x


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Generates the values of a parameter from its official name."""
    x = _normal(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * np.tanh(x)
    if name.endswith("running_mean"):
        return 0.2 * x
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if name.endswith("weight_g"):
        return 1 + 0.2 * np.tanh(x)
    if "bias" in name.rpartition(".")[2]:
        return 0.1 * x
    if name.endswith(".weight") and len(shape) == 1:
        prelu = "relu" in name or name.endswith("frontend3D.2.weight")
        return 0.25 + 0.1 * np.tanh(x) if prelu else 1 + 0.2 * np.tanh(x)
    return x / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else x.copy()


def fill_network(network: nnx.Module) -> nnx.Module:
    """Fills a network of this project with arrays generated from their official names."""
    for name, array in named_arrays(network).items():
        array.variable.set_value(jnp.asarray(array.ours(fill(name, array.shape)), array.variable.dtype))
    return network


def encoder_weights(network: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Returns generated weights of an encoder, rounded to a dtype."""
    return {
        name: torch.tensor(fill(name, tuple(value.shape))).to(dtype if value.is_floating_point() else value.dtype)
        for name, value in network.state_dict().items()
    }


def encoder_checkpoint(
    fine_tuned: bool,
    settings: object,
    dtype: torch.dtype = torch.float16,
    config: AVHubertConfig = AVHubertConfig.tiny(),  # noqa: B008
) -> dict:
    """Returns a checkpoint in the official form with generated weights of an encoder, which `settings` describe."""
    weights = encoder_weights(AVHubert(config), dtype)
    weights |= {"mask_emb": torch.zeros(104), "label_embs_concat": torch.zeros(20, 32)}
    if not fine_tuned:
        weights |= {"final_proj.weight": torch.zeros(32, 64), "final_proj.bias": torch.zeros(32)}
        return {"args": None, "cfg": {"model": settings, "task": {}}, "model": collections.OrderedDict(weights)}
    weights = {f"encoder.w2v_model.{name}": value for name, value in weights.items()}
    weights["decoder.layer_norm.weight"] = torch.ones(64)
    return {"args": None, "cfg": {"model": {"w2v_path": "x", "w2v_args": settings}}, "model": weights}


def alignment_weights(width: int = 1024) -> dict[str, np.ndarray]:
    """Returns generated weights of the alignment network in the official layout."""
    shapes = {f"{modality}_proj": (512, width) for modality in ("visual", "audio")}
    inputs = 1024
    for index, hidden in zip((0, 3, 6), HIDDEN, strict=True):
        shapes |= {f"mlp.{index}": (hidden, inputs), f"mlp.{index + 1}": (hidden,)}
        inputs = hidden
    shapes["mlp.9"] = (1, inputs)
    named = {}
    for layer, shape in shapes.items():
        named |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return {name: fill(name, shape).astype(np.float32) for name, shape in named.items()}


def write_alignment_weights(path: Path, width: int = 1024) -> Path:
    """Writes generated weights of the alignment network to a file and returns its path."""
    safetensors.numpy.save_file(alignment_weights(width), path)
    return path


CLIPS = {
    "train": [(f"train/c{i:02d}.mp4", 40 + 7 * i, 0) for i in range(10)],
    "val": [(f"val/c{i:02d}.mp4", 45 + 9 * i, 0) for i in range(4)],
    "test": [(f"test/c{i:02d}.mp4", 30 + 8 * i, i % 2) for i in range(12)],
}


def feature_clip(name: str, frames: int, fake: int, width: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Generates visual and audio features of a clip from one latent path; a third of a fake's audio has another."""
    latent, noise = 24, 0.5
    fixed = np.random.RandomState(7)
    mixing = [fixed.standard_normal((latent, width)) / latent**0.5 for _ in range(2)]
    shift = [fixed.standard_normal(width) * 0.5 for _ in range(2)]
    rng = np.random.RandomState(zlib.crc32(name.encode()))

    def path(length: int) -> np.ndarray:
        steps = rng.standard_normal((length, latent))
        values = np.zeros((length, latent))
        values[0] = steps[0]
        for t in range(1, length):
            values[t] = 0.8 * values[t - 1] + 0.6 * steps[t]
        return values

    seen = path(frames)
    heard = seen.copy()
    if fake:
        start, stop = frames // 4, frames // 4 + frames // 3
        heard[start:stop] = path(stop - start)
    observed = [
        z @ mixing[k] + shift[k] + noise * rng.standard_normal((frames, width)) for k, z in enumerate((seen, heard))
    ]
    visual, audio = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in observed)
    return visual.astype(np.float32), audio.astype(np.float32)


def write_feature_clips(root: Path) -> dict[str, Path]:
    """Writes the clips as npz files and imports them into float32 shards; returns the folders by name."""
    shards = {"npz": root / "npz"}
    for split, clips in CLIPS.items():
        (root / "npz" / split).mkdir(parents=True)
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "num_frames"), *((p, y, t) for p, t, y in clips)])
        for path, frames, fake in clips:
            visual, audio = feature_clip(path, frames, fake)
            np.savez((root / "npz" / path).with_suffix(".npz"), visual=visual, audio=audio)
        shards[split] = root / "shards" / split
        import_features(read_clip_list(root / f"{split}.csv"), root / "npz", shards[split], "float32")
    return shards
