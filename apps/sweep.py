"""Sweeps over a grid of training runs, each in its own process: restartable, with a table of results."""

import collections
import dataclasses
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from avh_shards import UserError
from avh_shards.format import results_folder
from avh_shards.machine import tpu_chips, visible_gpus
from avh_shards.paths import FilePath, locked
from avh_shards.text import format_table, one_line
from jax_avh.config import RESULT, SETTINGS, Config, check_config, complete_record
from jax_avh.configs import make_config, read_settings

PREFIX = "--config."
LOG = "train.log"  # a run's output, in its workdir
RESULT_FIELDS = ("epochs", "best_epoch", "best_val_loss")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.1  # seconds between checks of the runs
SHARED_MEMORY = 0.9  # share of a GPU's memory for all runs on it; one run by itself keeps to JAX's 0.75


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of the grid."""

    workdir: FilePath
    settings: dict[str, str]  # every field that was given
    varied: dict[str, str]  # fields with several values in the grid
    config: Config  # the resulting configuration
    config_file: str | None = None  # config.json of another run, whose settings are the defaults

    @property
    def command(self) -> list[str]:
        """Returns the command that starts or resumes the run."""
        flags = [f"{PREFIX}{name}={value}" for name, value in self.settings.items()]
        flags += [f"--config_file={self.config_file}"] if self.config_file else []
        return [sys.executable, "-m", "launch.train", *flags, f"--workdir={self.workdir}"]

    def result(self) -> dict[str, Any] | None:
        """Returns the run's result; None if it has not ended with exactly these settings, or its files are damaged."""
        try:
            record = json.loads((self.workdir / SETTINGS).read_text())
            result = json.loads((self.workdir / RESULT).read_text())
            found = complete_record(record, self.config)
            numbers = all(isinstance(result[name], int | float | None) for name in RESULT_FIELDS)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        return result if numbers and dataclasses.asdict(self.config).items() <= found.items() else None


def make_trials(flags: Sequence[str], workdir: str, config_file: str | None = None) -> list[Trial]:
    """Returns the trials of a grid.

    Args:
      flags: `--config.FIELD=VALUE,VALUE,...`; every combination is a trial.
      workdir: folder of the runs' workdirs, each named after its varied settings.
      config_file: config.json of another run, whose settings are the defaults.

    Raises:
      UserError: a flag is not of this form, a field is given twice, or a setting is invalid.
    """
    grid: dict[str, list[str]] = {}
    for flag in flags:
        name, equals, values = flag.removeprefix(PREFIX).partition("=")
        if not flag.startswith(PREFIX) or not equals or name in grid:
            raise UserError(f"{flag}: is invalid or repeated; give {PREFIX}FIELD=VALUE,VALUE,... once for each field")
        grid[name] = list(dict.fromkeys(values.split(",")))
    folder = results_folder(workdir)
    defaults = read_settings(config_file) if config_file else {}
    trials = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        config = make_config(defaults | settings)
        check_config(config)
        varied = {name: value for name, value in settings.items() if len(grid[name]) > 1}
        label = ",".join(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in varied.items())
        trials.append(Trial(folder / (label or "run"), settings, varied, config, config_file))
    return trials


def sweep(trials: Sequence[Trial], parallel: int) -> list[Trial]:
    """Runs the unfinished trials, `parallel` at a time, and returns those that failed.

    Simultaneous runs have a GPU or TPU chip each; if there are fewer GPUs, they share the memory.

    Runs ignore the terminal's signals, so the sweep handles Ctrl-C; a signal that kills the process group still reaches
    them all. On the first SIGINT, SIGTERM or SIGHUP, the sweep asks its runs to save their state and end, and waits
    for them; on a second SIGINT, it kills them.

    Args:
      trials: the trials, with workdirs in the same folder.
      parallel: number of runs at a time.

    Returns:
      The trials without a result.

    Raises:
      UserError: the folder is at a URL, another sweep is running there, or there are fewer TPU chips than simultaneous
        runs.
      KeyboardInterrupt: a signal was received, and all runs have ended.
    """
    if "://" in str(trials[0].workdir):
        raise UserError(
            f"{trials[0].workdir.parent}: a sweep keeps the output of its runs in a local folder; name one, or give "
            "--print_jobs and run them yourself"
        )
    signals: list[int] = []
    running: dict[subprocess.Popen, tuple[Trial, dict[str, str]]] = {}
    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in heeded}
    try:
        with locked(trials[0].workdir.parent):
            waiting = collections.deque(trial for trial in trials if trial.result() is None)
            free = _devices(min(parallel, len(waiting)))
            announced = False
            while running or (waiting and not signals):
                while waiting and free and not signals:
                    trial = waiting.popleft()
                    device = free.pop(0)
                    running[_start(trial, device)] = trial, device
                if signals and not announced:
                    announced = True
                    for process in running:
                        process.terminate()
                if signals.count(signal.SIGINT) > 1:
                    for process in running:
                        process.kill()
                time.sleep(POLL)
                for process in [process for process in running if process.poll() is not None]:
                    trial, device = running.pop(process)
                    free.append(device)
                    ending = "stopped" if signals else f"exit status {process.returncode}, without a result"
                    print(f"{trial.workdir.name}: {'done' if trial.result() else ending}", flush=True)
    finally:
        for process in running:  # empty unless the sweep itself failed, which must not leave orphans
            process.terminate()
        for process in running:
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise KeyboardInterrupt
    return [trial for trial in trials if trial.result() is None]


def _devices(runs: int) -> list[dict[str, str]]:
    """Returns the environment variables that give each of several simultaneous runs its own device, or part of one."""
    if runs < 2 or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [{}] * runs
    if gpus := visible_gpus():
        sharing = -(-runs // len(gpus))
        chosen = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys()  # JAX rejects both
        memory = {"XLA_CLIENT_MEM_FRACTION": f"{SHARED_MEMORY / sharing:.3f}"} if sharing > 1 and not chosen else {}
        return [{"CUDA_VISIBLE_DEVICES": gpus[run % len(gpus)], **memory} for run in range(runs)]
    if not (chips := tpu_chips()):
        return [{}] * runs
    if len(chips) < runs:
        raise UserError(
            f"--parallel: {runs} runs need a TPU chip each, but this machine has {len(chips)}; "
            f"give --parallel={len(chips)} or less"
        )
    single = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
    return [{"TPU_VISIBLE_CHIPS": chip, **single} for chip in chips[:runs]]


def _start(trial: Trial, variables: dict[str, str]) -> subprocess.Popen:
    trial.workdir.mkdir(parents=True, exist_ok=True)
    # The run inherits the mask. A signal that arrives meanwhile is pending for the sweep, so none is lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        with (trial.workdir / LOG).open("ab") as log:
            return subprocess.Popen(trial.command, env=os.environ | variables, stdout=log, stderr=log)  # noqa: S603
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def format_results(trials: Sequence[Trial]) -> str:
    """Formats a line per trial by rising validation loss, then the trials without a result and the reasons."""
    results = [(trial, trial.result()) for trial in trials]
    ended = [(trial, result) for trial, result in results if result]
    names = list(trials[0].varied)
    rows = [[*names, *RESULT_FIELDS]]
    for trial, result in sorted(ended, key=lambda item: item[1]["best_val_loss"] or float("inf")):
        rows.append([*trial.varied.values(), *(_number(result[name]) for name in RESULT_FIELDS)])
    notes = dict.fromkeys(str(result["caveat"]) for _, result in ended if "caveat" in result)
    failed = [f"{trial.workdir}: {_why(trial)}" for trial, result in results if not result]
    return "\n".join([format_table(rows, right=True), *map(one_line, [*notes, *failed])])


def format_trials(trials: Sequence[Trial]) -> str:
    """Formats the trials' commands, one per line, for a job array or a shell."""
    return "\n".join(shlex.join(trial.command) for trial in trials)


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _why(trial: Trial) -> str:
    log = trial.workdir / LOG
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "not started"
