"""Commands in forks of one interpreter that has loaded every library, which saves seconds of imports."""

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import absl.flags

ROOT = Path(__file__).parents[1]
LIBRARIES = """
    apps.demo apps.detect apps.paper apps.simulate apps.sweep
    extract.run.ray extract.check.shards extract.check.clip_list extract.convert.weights
    jax_avh.evaluation.submission jax_avh.report.audit jax_avh.training
"""


class Forked:
    """A running command with the part of the `subprocess.Popen` interface that tests use."""

    def __init__(self, ask: Callable[[dict], int | None], pid: int):
        self.pid, self.returncode, self._ask = pid, None, ask

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Waits for the command to end.

        Raises:
          subprocess.TimeoutExpired: it did not end in `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The loaded interpreter in a separate process."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __call__(
        self, command: str, *arguments: object, environment: dict[str, str] | None = None, before: str = ""
    ) -> tuple[int, str]:
        """Runs a command to its end, after the code `before`, and returns (exit status, output, errors last)."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("output", "errors")]
            run = self.start(
                command, *arguments, stdout=files[0], stderr=files[1], environment=environment, before=before
            )
            status = run.wait()
            return status, "".join(file.read_text() for file in files)

    def start(
        self,
        command: str,
        *arguments: object,
        stdout: Path = Path(os.devnull),
        stderr: Path = Path(os.devnull),
        environment: dict[str, str] | None = None,
        start_new_session: bool = False,
        before: str = "",
    ) -> Forked:
        """Starts a command in the current working directory and environment; appends its output to files."""
        request = {
            "command": [command, *map(str, arguments)],
            "files": [str(stdout), str(stderr)],
            "environment": os.environ | (environment or {}),
            "folder": str(Path.cwd()),
            "session": start_new_session,
            "before": before,
        }
        return Forked(self.ask, self.ask(request))

    def ask(self, request: dict) -> int | None:
        """Sends a request and returns the answer."""
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=60)


@functools.cache
def forks() -> Forks:
    """Returns the interpreter of this process, which ends with it."""
    server = Forks()
    atexit.register(server.close)
    return server


def serve() -> None:
    """Answers requests: starts commands and reports whether they have ended."""
    for name in LIBRARIES.split():
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict) -> int | None:
    """Returns the exit status of a fork or None while it runs, or starts a command and returns its process number."""
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    pid = os.fork()
    if not pid:
        become(**request)
    return pid


def fork_of(command: list[str], env: dict[str, str], stdout: IO, stderr: IO) -> Forked:
    """Starts `python -m launch.X` as subprocess.Popen does, but in a fork of this process."""
    assert command[:2] == [sys.executable, "-m"]
    name, *arguments = command[2:]
    request = {"command": [name.removeprefix("launch."), *arguments], "files": [stdout.name, stderr.name]}
    return Forked(answer, answer(request | {"environment": dict(env), "folder": str(Path.cwd())}))


def become(
    command: list[str],
    files: list[str],
    environment: dict[str, str],
    folder: str,
    session: bool = False,
    before: str = "",
) -> None:
    """Runs a command in a fork; never returns."""
    if session:
        os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import jax  # was loaded with the environment of the server

    jax.config.update("jax_platforms", environment.get("JAX_PLATFORMS"))
    jax.config.update("jax_num_cpu_devices", int(environment.get("JAX_NUM_CPU_DEVICES", 1)))
    jax.config.update("jax_enable_x64", environment.get("JAX_ENABLE_X64") == "1")
    jax.config.update("jax_disable_most_optimizations", environment.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1")
    for flag in list(absl.flags.FLAGS.flags_by_module_dict().get(sys.argv[0], ())):  # those of a sweep, in a fork of it
        delattr(absl.flags.FLAGS, flag.name)
    if command[0] == "sweep":
        import apps.sweep

        apps.sweep.subprocess = SimpleNamespace(Popen=fork_of)
    sys.argv = command
    status = 1
    try:
        exec(before, {})
        runpy.run_module(f"launch.{command[0]}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
