"""The folder of a run: its settings, written once and compared ever after, and its result."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from avh_shards import UserError
from avh_shards.format import differences, results_folder
from avh_shards.kinds import SAFETENSORS
from avh_shards.lock import locked
from avh_shards.paths import AnyPath, atomic_write, check_outputs
from avh_shards.text import one_line
from jax_avh.config import RESULT, SETTINGS, Config, complete_record
from jax_avh.models.weights import BEST_WEIGHTS, weights_file
from jax_avh.training.progress import RunProgress

METRICS_FILE, EVENTS, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"
RESUMABLE = {  # settings that a restarted run may change: how long it lasts, where its features are and are kept
    "train": ("epochs", "checkpoint_steps"),
    "data": ("train", "val", "placement"),
}


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
