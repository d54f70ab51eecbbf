"""A run: what it starts from; its folder, with its settings, written once and compared ever after, and its result."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from avh_shards import UserError
from avh_shards.clip import FAKE, REAL
from avh_shards.format import differences, marks, results_folder
from avh_shards.paths import SAFETENSORS, AnyPath, atomic_write, check_outputs, locked
from avh_shards.text import one_line
from jax_avh.config import RESULT, SETTINGS, Config, complete_record
from jax_avh.data.source import SOURCE_ATTRIBUTES, Source, open_source
from jax_avh.methods.base import Method, TrainableMethod
from jax_avh.models.weights import BEST_WEIGHTS, read_notes, weights_file
from jax_avh.training.progress import RunProgress

METRICS_FILE, EVENTS, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"
RESUMABLE = {  # settings that a restarted run may change: how long it lasts, where its features are and are kept
    "train": ("epochs", "checkpoint_steps"),
    "data": ("train", "val", "placement"),
}


# --- what it starts from ---------------------------------------------------------------------------------------------


def open_sources(method: Method, config: Config) -> tuple[Source, Source]:
    """Opens the clips to train on, and those to validate on.

    Raises:
      UserError: there are none.
    """
    train, val = (open_source(path) for path in (config.data.train, config.data.val))
    for source, content in itertools.product((train, val), method.reads):
        source.check_has(content)
    labels = (REAL,) if method.real_only else (REAL, FAKE)
    train, val = (source.labelled(*labels) for source in (train, val))
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


# --- its folder ------------------------------------------------------------------------------------------------------


def open_workdir(workdir: AnyPath, config: Config) -> Path:
    """Returns the folder of a run, which may be new, once it is clear that the run replaces nothing but its own files.

    Raises:
      UserError: the folder is a URL or a file, holds shards or files of no run, cannot be written to, or holds the
        weights that the run reads.
    """
    if "://" in str(workdir):
        raise UserError(f"--workdir={workdir}: a URL; give a folder that all processes see")
    folder = cast(Path, results_folder(workdir))  # it is not a URL
    read = [config.init] if config.init else []
    read += [weights_file(path) for path in config.method.weights_read()]
    check_outputs({folder / SETTINGS: rb"\{", folder / BEST_WEIGHTS: SAFETENSORS}, read)
    names = (RESULT, METRICS_FILE, EVENTS, CHECKPOINTS, BEST_WEIGHTS)
    if not (folder / SETTINGS).exists() and (found := next((n for n in names if (folder / n).exists()), None)):
        raise UserError(f"{folder}: holds {found}, but not the {SETTINGS} of its run; choose another --workdir")
    return folder


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir while the block lasts; the lead process holds the lock for all of its run.

    Raises:
      UserError: another run is writing there; every process of this one is told so.
    """
    refusal = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(locked(workdir))
            except UserError as error:
                refusal = error
        if multihost_utils.broadcast_one_to_all(np.array(refusal is not None)):
            raise refusal or UserError(f"{workdir}: another run is writing there, as the lead process found")
        yield


def adopt(workdir: Path, config: Config, data: dict[str, str], lead: bool) -> None:
    """Writes the settings and the data's fingerprints into a workdir, once every process has found that they fit it.

    Raises:
      UserError: the workdir holds another run, or something else.
    """
    path, record = workdir / SETTINGS, dataclasses.asdict(config) | {"fingerprint": data}
    if path.exists():
        try:
            found = json.loads(path.read_text())
            complete = complete_record(found, config)
            differing = differences(_what_matters(complete), _what_matters(json.loads(json.dumps(record))))
            where = {f"fingerprint.{name}": found["data"][name] for name in ("train", "val")}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a run's settings ({one_line(error)}); choose another --workdir") from error
        if differing:
            told = "; ".join(_in_words(*known, where, config) for known in differing.items())
            raise UserError(f"{workdir}: holds a run with other settings or features: {told}; choose another --workdir")
    multihost_utils.sync_global_devices("settings compared")
    if lead:
        (workdir / RESULT).unlink(missing_ok=True)
        _write(path, record)


def write_result(workdir: Path, progress: RunProgress, caveat: str = "") -> None:
    """Writes what a finished run came to, and what must accompany its numbers."""
    result = {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
    }
    _write(workdir / RESULT, result | ({"caveat": caveat} if caveat else {}))


def _write(path: Path, record: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _in_words(name: str, pair: tuple[object, object], where: dict[str, str], config: Config) -> str:
    """How one setting, or the features of one folder, differ from those of the run that a workdir holds."""
    if name in where:
        split = name.rpartition(".")[2]
        return f"--config.data.{split}={getattr(config.data, split)} holds other features than {where[name]} did"
    if name == "fingerprint.frozen":
        return "--config.method.sync_weights holds other weights"
    return f"--config.{name} was {pair[0]!r}, now {pair[1]!r}"


def _what_matters(record: dict) -> dict:
    """A run's record less what a restart may change."""
    kept = {
        section: {name: value for name, value in record[section].items() if name not in names}
        for section, names in RESUMABLE.items()
    }
    return record | kept
