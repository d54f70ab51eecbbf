"""Tests of `avh`, which lists the commands and runs the named one."""

import importlib
import subprocess
import sys
import tomllib

import pytest

from tests.launch.test_help import FLAGS
from tests.test_walls import JAX_SIDE, ROOT, TORCH_SIDE, loaded_by


def avh(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "launch", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_avh_lists_every_command_with_a_line(arguments):
    status, page, errors = avh(*arguments)
    assert (status, errors) == (0, "")
    usage, blank, *rows = page.splitlines()
    assert usage.startswith("avh COMMAND ")
    assert blank == ""
    assert [row.split()[0] for row in rows] == sorted(FLAGS)
    assert all(len(row.split()) > 2 for row in rows)


def test_listing_the_commands_loads_neither_side():
    (loaded,) = loaded_by(["launch.__main__"])
    assert not loaded & {*JAX_SIDE, *TORCH_SIDE, "jax_avh", "extract", "apps"}


def test_a_misspelt_command_is_one_sentence_with_the_nearest():
    assert avh("trian", "--workdir=w") == (
        2,
        "",
        "error: trian: unknown command; did you mean train?; run avh to list them\n",
    )


@pytest.mark.parametrize("arguments", [["submit", "--help"], ["submit", "--scores=none.h5", "--nothing"]])
def test_avh_x_is_python_m_launch_x(arguments, launch):
    status, *output = avh(*arguments)
    assert launch(*arguments) == (status, "".join(output))


def test_the_console_script_is_this_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["avh"].partition(":")
    assert module == "launch.__main__"
    assert callable(getattr(importlib.import_module(module), function))
