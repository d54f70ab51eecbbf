"""What a run starts from, and what must fit before it does."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from avh_shards import UserError
from avh_shards.format import marks
from jax_avh.config import Config
from jax_avh.data.source import SOURCE_ATTRIBUTES, Source, open_source
from jax_avh.methods.base import Method, TrainableMethod
from jax_avh.models.weights import read_notes, weights_file


def open_sources(method: Method, config: Config) -> tuple[Source, Source]:
    """Opens the clips to train on, and those to validate on.

    Raises:
      UserError: there are none.
    """
    train, val = (open_source(path) for path in (config.data.train, config.data.val))
    for source, content in itertools.product((train, val), method.reads):
        source.check_has(content)
    train, val = (source.real() if method.real_only else source.labelled() for source in (train, val))
    if config.data.train_clips:
        train = train.sample(config.data.train_clips, config.seed)
    return train, val


def overlap_warning(train: Source, val: Source) -> str:
    """Returns a warning if clips of the same path, label and length are in both sources; "" if none are."""
    trained, validated = (
        {(clip.path, clip.label, length) for clip, length in zip(source.clips, source.lengths.tolist(), strict=True)}
        for source in (train, val)
    )
    if not trained & validated:
        return ""
    return (
        f"warning: {len(trained & validated)} of the {len(val.clips)} validation clips are training clips, too; the "
        "validation loss will not show overfitting: give --config.data.val other clips"
    )


def origin(config: Config, source: Source) -> dict[str, str]:
    """Returns the notes of weights trained on these features, from the weights that the configuration names."""
    known = {name: str(source.attributes[name]) for name in SOURCE_ATTRIBUTES if name in source.attributes}
    earlier = [read_notes(weights_file(path)) for path in (config.init, *config.method.weights_read()) if path]
    trained_on = {"trained_on": ",".join(found)} if (found := marks(*earlier)) else {}
    return {"method": config.method.name} | known | trained_on


def initial_model(method: TrainableMethod, config: Config, source: Source) -> Any:
    """Returns the network before training: of a file, or drawn from the seed.

    Raises:
      UserError: the file does not do, or the precision is switched off.
    """
    if config.train.precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("--config.train.precision=float64 needs JAX_ENABLE_X64=1 in the environment")
    network = method.make_model(config, source)
    if not config.init:
        return network
    trained = read_notes(config.init).get("method")
    if trained not in (None, method.name):
        raise UserError(f"{config.init}: weights trained as {trained}; they do not start {method.name}")
    given = method.load_model(Path(config.init), config.train.precision)
    if given.kind != network.kind:
        wanted, found = (", ".join(f"{name} {value}" for name, value in n.kind.items()) for n in (network, given))
        raise UserError(f"{config.init}: weights of another kind than asked for: {found}, not {wanted}")
    return given


def frozen(network: nnx.Module, trained: nnx.filterlib.Filter) -> dict[str, str]:
    """Hashes the network's parameters that are not trained; returns nothing if all are."""
    arrays = jax.tree.leaves(nnx.state(network, nnx.All(nnx.Param, nnx.Not(trained))))
    digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays))
    return {"frozen": digest.hexdigest()} if arrays else {}


def check_fit(network: Any, train: Source, val: Source) -> None:
    """Rejects features that fit neither each other nor the network.

    Raises:
      UserError: saying which.
    """
    for name in SOURCE_ATTRIBUTES:
        found, wanted = val.attributes.get(name), train.attributes.get(name)
        if found != wanted:
            raise UserError(
                f"{val.path}: its {name} is {found}, but that of {train.path} is {wanted}; extract both with the same "
                "encoder and --trimmed"
            )
    for source in (train, val):
        if network.width not in (None, source.width):
            raise UserError(f"{source.path}: features of width {source.width}, but the network takes {network.width}")
