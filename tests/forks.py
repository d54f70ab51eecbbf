"""Commands in forks of one interpreter that has loaded every library: they cost no seconds of imports."""

import json
import subprocess
import sys

SERVER = """
import json, os, pkgutil, runpy, sys, tempfile
import apps.demo, apps.detect, apps.paper.run, apps.simulate.shards, apps.sweep
import extract.run.ray, extract.check.parity, extract.check.shards, extract.check.clip_list, extract.convert.weights
import jax_avh.evaluation.submission, jax_avh.audit.report, jax_avh.training
for line in sys.stdin:
    command, *arguments = json.loads(line)
    with tempfile.TemporaryFile() as file:
        if not (child := os.fork()):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.argv = [command, *arguments]
            status = 1
            try:
                runpy.run_module(f"launch.{command}", run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        print(json.dumps([status, file.read().decode()]), flush=True)
"""


class Forks:
    """Runs commands: (exit status, what it printed)."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, command: str, *arguments: str) -> tuple[int, str]:
        self._server.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._server.stdin.flush()
        status, output = json.loads(self._server.stdout.readline())
        return status, output

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=60)
