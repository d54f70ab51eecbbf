"""Tests that some test uses every flag that the documentation names."""

import ast
import re
from pathlib import Path

import pytest

from tests.launch.test_help import FLAGS

ROOT = Path(__file__).parents[2]
FLAG = re.compile(r"--(?:\[no\])?([a-z]\w*(?:\.[a-z]\w*)*)")  # --NAME, --config.FIELD; capitals are placeholders
ROW = re.compile(rf"^  {FLAG.pattern}", re.MULTILINE)  # of --help
OF_OTHERS = {"array", "command", "worker"}  # of SLURM and gcloud
STARTERS = ("start_extract", "start_training")  # take flags as keywords


def used_flags(sources: dict[str, str]) -> set[str]:
    """Returns the names of the flags that tests use; names of settings also without `config.`.

    A use of a flag is a string that contains it (except docstrings), a dictionary key in a module that turns names into
    flags, or a keyword of a function that starts a command. Settings are also used by the field of a `...Config(...)`,
    an assignment to that field of a configuration, or the dotted name.
    """
    used = set()
    for source in sources.values():
        tree = ast.parse(source)
        nodes = [node for node in ast.walk(tree) if not isinstance(node, ast.Expr)]
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        makes_flags = re.search(r'f"--(?:config\.)?\{', source) or any(name in source for name in STARTERS)
        for node in nodes:
            match node:
                case ast.Constant(value=str(text)) if id(node) not in docstrings:
                    used |= {name.removeprefix("config.") for name in FLAG.findall(text)}
                    used |= {name.removeprefix("no") for name in FLAG.findall(text)}  # --noshuffle
                    if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+", text):
                        used.add(text)
                case ast.Dict(keys=keys) if makes_flags:
                    used |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
                case ast.Subscript(ctx=ast.Store(), slice=ast.Constant(value=str(name))) if makes_flags:
                    used.add(name)
                case ast.Call(func=ast.Name(id=name), keywords=keywords) if name in STARTERS or name.endswith("Config"):
                    used |= {
                        f".{keyword.arg}" if name.endswith("Config") else keyword.arg or "" for keyword in keywords
                    }
                case ast.Attribute(ctx=ast.Store(), attr=name, value=ast.Attribute()):
                    used.add(f".{name}")
    return used


def is_used(flag: str, used: set[str]) -> bool:
    """Returns whether a flag is used: by its name, as a setting's field, or as the first part of a longer name."""
    name = flag.removeprefix("config.")
    return name in used or f".{flag.rpartition('.')[2]}" in used or any(other.startswith(f"{flag}.") for other in used)


@pytest.fixture(scope="module")
def used():
    files = [file for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__)]
    return used_flags({str(file): file.read_text() for file in files})


def test_every_flag_of_the_documentation_is_used_by_a_test(used):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in FLAG.findall(page.read_text()) if name not in OF_OTHERS}
    assert len(named) > 50
    assert not sorted(name for name in named if not is_used(name, used))


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_of_a_command_is_used_by_a_test(fork, used, command):
    status, page = fork(command, "--help")
    assert status == 0
    named = ROW.findall(page)
    assert named
    assert not sorted(name for name in named if not is_used(name, used))


@pytest.mark.parametrize(
    ("source", "flag", "found"),
    [
        ('run("x", "--output=y")', "output", True),
        ('run("x", f"--output={y}")', "output", True),
        ('def f():\n    """--output."""', "output", False),
        ('{"output": 1}', "output", False),
        ('flags = {"output": 1}; [f"--{name}={value}" for name, value in flags.items()]', "output", True),
        ('flags = {}; flags["output"] = 1; [f"--{name}={value}" for name, value in flags.items()]', "output", True),
        ("start_extract(m, a, o, dtype=1)", "dtype", True),
        ("extract(m, dtype=1)", "dtype", False),
        ('run("--noshuffle")', "shuffle", True),
        ('run("--config.data.shuffle=False")', "config.data.shuffle", True),
        ("DataConfig(shuffle=False)", "config.data.shuffle", True),
        ("config.data.shuffle = False", "config.data.shuffle", True),
        ('settings = {"data.shuffle": False}', "config.data.shuffle", True),
        ('run("--avh_sup.seed=1")', "avh_sup", True),
    ],
)
def test_uses_are_found(source, flag, found):
    assert is_used(flag, used_flags({"x": source})) == found
