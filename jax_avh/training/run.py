"""Start and workdir of a run: its sources and initial network, its recorded settings, its lock and its result."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from avh_shards import UserError
from avh_shards.clip import FAKE, REAL
from avh_shards.format import differences, marks, results_folder
from avh_shards.paths import SAFETENSORS, AnyPath, FilePath, as_path, atomic_write, check_outputs, locked, reachable
from avh_shards.text import one_line
from jax_avh.config import RESULT, SETTINGS, Config, complete_record
from jax_avh.data.source import SOURCE_ATTRIBUTES, Source, open_source
from jax_avh.methods.base import Method, TrainableMethod
from jax_avh.models.layers import check_precision
from jax_avh.models.weights import BEST_WEIGHTS, read_notes, weights_file
from jax_avh.parallel import check_shared, together
from jax_avh.training.progress import RunProgress

METRICS_FILE, EVENTS, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"
RESUMABLE = {  # settings that a resumed run may change: its length, and where its features are and are kept
    "train": ("epochs", "checkpoint_steps", "checkpoint_minutes"),
    "data": ("train", "val", "cache", "placement"),
}


# --- start -----------------------------------------------------------------------------------------------------------


def open_sources(method: Method, config: Config) -> tuple[Source, Source]:
    """Opens the clips to train on, and those to validate on.

    Raises:
      UserError: shards are missing or damaged, or lack the contents or labels that the method needs.
    """
    train, val = (open_source(path, config.data.cache) for path in (config.data.train, config.data.val))
    for source, content in itertools.product((train, val), method.reads):
        source.check_has(content)
    labels = (REAL,) if method.real_only else (REAL, FAKE)
    train, val = (source.labelled(*labels) for source in (train, val))
    if config.data.train_clips:
        train = train.sample(config.data.train_clips, config.seed)
    return train, val


def overlap_warning(train: Source, val: Source) -> str:
    """Returns a warning if the sources share clips of the same path, label and length; otherwise ""."""
    trained, validated = (
        {(clip.path, clip.label, length) for clip, length in zip(source.clips, source.lengths.tolist(), strict=True)}
        for source in (train, val)
    )
    if not trained & validated:
        return ""
    return (
        f"warning: {len(trained & validated)} of the {len(val.clips)} validation clips are training clips, too, so the "
        "validation loss will not show overfitting; give --config.data.val other clips"
    )


def origin(config: Config, source: Source) -> dict[str, str]:
    """Returns the notes to store with the trained weights: method, features, and random or simulated origins.

    Args:
      config: the run's settings, whose initial and frozen weights pass on their origins.
      source: the training clips.
    """
    known = {name: str(source.attributes[name]) for name in SOURCE_ATTRIBUTES if name in source.attributes}
    earlier = [read_notes(weights_file(path)) for path in (config.init, *config.method.weights_read()) if path]
    trained_on = {"trained_on": ",".join(found)} if (found := marks(*earlier)) else {}
    return {"method": config.method.name} | known | trained_on


def initial_model(method: TrainableMethod, config: Config, source: Source) -> Any:
    """Returns the network before training: loaded from `config.init`, or drawn from the seed.

    Raises:
      UserError: the file does not fit the method or the settings, or JAX or the devices do not have the precision.
    """
    check_precision(config.train.precision)
    network = method.make_model(config, source)
    if not config.init:
        return network
    trained = read_notes(config.init).get("method")
    if trained not in (None, method.name):
        raise UserError(f"{config.init}: weights trained as {trained}; give weights of {method.name}")
    given = method.load_model(as_path(config.init), config.train.precision)
    if given.kind != network.kind:
        wanted, found = (", ".join(f"{name} {value}" for name, value in n.kind.items()) for n in (network, given))
        raise UserError(f"{config.init}: weights of a network with {found}, but the settings ask for {wanted}")
    return given


def frozen(network: nnx.Module, trained: nnx.filterlib.Filter) -> dict[str, str]:
    """Returns the hash of the network's frozen parameters as {"frozen": SHA-256}; empty if it has none."""
    arrays = jax.tree.leaves(nnx.state(network, nnx.All(nnx.Param, nnx.Not(trained))))
    digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays))
    return {"frozen": digest.hexdigest()} if arrays else {}


def check_fit(network: Any, train: Source, val: Source) -> None:
    """Checks that the features fit each other and the network.

    Raises:
      UserError: they do not; it names the folder and the difference.
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


# --- workdir ---------------------------------------------------------------------------------------------------------


def open_workdir(workdir: AnyPath, config: Config) -> FilePath:
    """Returns the folder of a run, new or existing, after checking that the run can only replace its own files.

    Raises:
      UserError: the folder is a file, cannot be reached, holds shards or files that no run wrote, cannot be written to,
        or holds the weights that the run reads.
    """
    folder = results_folder(reachable(workdir))
    read = [config.init] if config.init else []
    read += [weights_file(path) for path in config.method.weights_read()]
    check_outputs({folder / SETTINGS: rb"\{", folder / BEST_WEIGHTS: SAFETENSORS}, read)
    names = (RESULT, METRICS_FILE, EVENTS, CHECKPOINTS, BEST_WEIGHTS)
    if not (folder / SETTINGS).exists() and (found := next((n for n in names if (folder / n).exists()), None)):
        raise UserError(f"{folder}: holds {found}, but not the {SETTINGS} of its run; choose another --workdir")
    return folder


@contextlib.contextmanager
def claimed(workdir: AnyPath, config: Config) -> Iterator[FilePath]:
    """Yields the folder of a run, locked against other runs; the lead process checks it, and holds the lock.

    A URL is not locked.

    The others touch it only afterwards: a network file system might remember for a while that it did not exist.

    Raises:
      UserError: the workdir is unsuitable (see `open_workdir`), another run is writing there, or a process does not see
        what the lead process writes there; every process of this run raises it.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> FilePath:
            if jax.process_index() > 0:
                return as_path(workdir)
            folder = open_workdir(workdir, config)
            stack.enter_context(locked(folder))
            return folder

        folder = together(claim, f"--workdir={workdir}")
        if jax.process_count() > 1:
            check_shared(folder, f"--workdir={workdir}")
        yield folder


def adopt(workdir: FilePath, config: Config, data: dict[str, str], lead: bool) -> None:
    """Writes the settings and the data's fingerprints into a workdir, once every process has compared them.

    Args:
      workdir: the run's folder.
      config: the run's settings.
      data: fingerprints by name: `train`, `val`, and `frozen` if the network has frozen parameters.
      lead: whether this process writes.

    Raises:
      UserError: the workdir holds a run of other settings or features, or an invalid file.
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
            listed = "; ".join(_in_words(*known, where, config) for known in differing.items())
            raise UserError(
                f"{workdir}: holds a run with other settings or features: {listed}; choose another --workdir"
            )
    multihost_utils.sync_global_devices("settings compared")
    if lead:
        (workdir / RESULT).unlink(missing_ok=True)
        _write(path, record)


def write_result(workdir: FilePath, progress: RunProgress, caveat: str = "") -> None:
    """Writes the result of a finished run, with the caveat that accompanies its numbers."""
    result = {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
    }
    _write(workdir / RESULT, result | ({"caveat": caveat} if caveat else {}))


def _write(path: FilePath, record: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _in_words(name: str, pair: tuple[object, object], where: dict[str, str], config: Config) -> str:
    """Describes how a setting, or the features of a folder, differ from those of the run in a workdir."""
    if name in where:
        split = name.rpartition(".")[2]
        return f"--config.data.{split}={getattr(config.data, split)} holds other features than {where[name]} did"
    if name == "fingerprint.frozen":
        return "--config.method.sync_weights holds other weights"
    return f"--config.{name} was {pair[0]!r}, now {pair[1]!r}"


def _what_matters(record: dict) -> dict:
    """Returns a run's record without the settings that a resumed run may change."""
    kept = {
        section: {name: value for name, value in record[section].items() if name not in names}
        for section, names in RESUMABLE.items()
    }
    return record | kept
