"""Tests that pyproject.toml declares every imported package, in the extra of the side that imports it."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest

from tests.test_walls import ROOT, files_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("avh", "avh_shards", "extract", "jax_avh", "apps", "launch", "benchmarks", "tests")
SIDES = {  # packages of a side -> extras that it may need
    "avh_shards": (),
    "extract": ("extract", "ray"),
    "jax_avh": ("jax",),
    "launch": (),
    "apps": ("extract", "jax"),
    "benchmarks": ("extract", "jax", "dev"),
    "tests": ("extract", "jax", "ray", "dev"),
}


DISTRIBUTIONS = importlib.metadata.packages_distributions() | {"dlib": ["dlib-bin"]}  # whose metadata does not say so


def plain(name: str) -> str:
    """Normalises the name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(side: str) -> set[str]:
    requirements = [*PROJECT["dependencies"]]
    for extra in SIDES[side]:
        requirements += PROJECT["optional-dependencies"][extra]
    return {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def imported(side: str) -> set[str]:
    """Returns the top-level third-party packages that the files of a side import."""
    found = set()
    for _, file in files_of(side):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return {name.partition(".")[0] for name in found} - {*sys.stdlib_module_names, *OURS}


@pytest.mark.parametrize("side", SIDES)
def test_every_import_is_declared(side):
    undeclared = {
        name for name in imported(side) if not {plain(known) for known in DISTRIBUTIONS[name]} & declared(side)
    }
    assert not undeclared


@pytest.mark.parametrize("side", ["avh_shards", "extract", "jax_avh"])
def test_imports_are_seen(side):
    assert {"numpy", "h5py"} & imported(side)
