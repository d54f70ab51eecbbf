"""Training runs in separate processes, on any number of CPU devices and processes."""

import socket
from collections.abc import Sequence
from pathlib import Path

from avh_shards.paths import AnyPath, FilePath
from jax_avh import training
from jax_avh.config import Config
from jax_avh.methods import METHODS
from jax_avh.training.logging import read_metrics
from jax_avh.training.progress import RunProgress
from tests.forks import Forked, forks


def train(config: Config, workdir: AnyPath, profile: bool = False) -> RunProgress:
    """Trains the method that a configuration names, in this process."""
    return training.train(METHODS[config.method.name], config, workdir, profile)


def start_training(
    workdir: Path,
    processes: int = 1,
    devices: int = 1,
    x64: bool = False,
    workdirs: Sequence[Path | str] = (),
    **settings: object,
) -> list[Forked]:
    """Starts the training command in a number of processes with `devices` each; `settings` are configuration fields.

    `workdirs` are those of the processes if they differ from `workdir`, which names the logs.
    Uses the linear head, which compiles in a second: such runs are only compared with each other.
    """
    settings = {"method.head": "linear"} | settings
    if x64:
        settings["train.precision"] = "float64"
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    own = [f"--workdir={folder}" for folder in workdirs or [workdir] * processes]
    return start_processes("train", flags, own, workdir, devices, x64)


def start_processes(
    command: str, flags: Sequence[str], own: Sequence[str], log: Path, devices: int = 1, x64: bool = False
) -> list[Forked]:
    """Starts a command in as many processes as there are flags of their `own`; `log` is the stem of their logs."""
    environment = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_ENABLE_X64": str(int(x64))}
    cluster = ["--distributed", f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={len(own)}"]
    started = []
    for process, flag in enumerate(own):
        place = [*cluster, f"--process_id={process}"] if len(own) > 1 else []
        file = Path(f"{log}.{process}.log")
        arguments = [*flags, flag, *place]
        started.append(forks().start(command, *arguments, stdout=file, stderr=file, environment=environment))
    return started


def finish(started: list[Forked], workdir: Path) -> None:
    """Waits for all processes and asserts that they succeed."""
    for number, process in enumerate(started):
        assert process.wait(timeout=1800) == 0, Path(f"{workdir}.{number}.log").read_text()


def curve(workdir: FilePath) -> list[dict]:
    """Returns the metrics that do not depend on the machine's speed."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines]


def losses(workdir: FilePath) -> list[tuple[float, float]]:
    """Returns the training and validation loss of every epoch."""
    return [(line["train_loss"], line["val_loss"]) for line in curve(workdir)]


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
