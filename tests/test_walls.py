"""Tests of the allowed imports between packages, in fresh interpreters."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rules
from tests.conftest import TESTDATA
from tests.media import read_frames, tone, write_media

ROOT = Path(__file__).parents[1]
JAX_SIDE = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
TORCH_SIDE = ("torch", "cv2", "dlib", "av", "soxr")
NOT_OF_VERDICTS = ("grain", "orbax", "matplotlib", "sklearn", "tensorboard")  # would take as long as a short video


def files_of(*packages: str) -> list[tuple[str, Path]]:
    """Returns the modules of packages with their files."""
    files = [file for package in packages for file in sorted(ROOT.joinpath(*package.split(".")).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [(name.removesuffix(".__init__"), file) for name, file in zip(names, files, strict=True)]


def modules_of(package: str) -> list[str]:
    return [name for name, _ in files_of(package)]


LOAD = """
import importlib, json, sys
for group in json.loads(sys.argv[1]):
    for name in group:
        importlib.import_module(name)
        if "absl.flags" in sys.modules:  # the next command may define the same flags
            flags = sys.modules["absl.flags"].FLAGS
            for flag in list(flags):
                delattr(flags, flag)
    print(json.dumps(list(sys.modules)))
"""


def loaded_by(*groups: list[str]) -> list[set[str]]:
    """Returns the packages and modules that are loaded after importing each group of modules, one after the other."""
    command = [sys.executable, "-c", LOAD, json.dumps(groups)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in result.stdout.splitlines()]


def commands(*names: str) -> list[str]:
    return [f"launch.{name}" for name in names]


def test_extract_and_its_commands_never_load_jax_nor_our_jax_side():
    groups = modules_of("extract"), commands("extract", "import_npz", "convert"), commands("detect")
    loaded, by_commands, by_verdicts = loaded_by(*groups)
    assert not loaded & {*JAX_SIDE, "jax_avh", "launch", "apps"}
    assert "torch" in loaded
    assert not by_commands & set(JAX_SIDE)
    assert not by_verdicts & {*NOT_OF_VERDICTS}
    assert "jax" in by_verdicts


def test_jax_avh_and_its_commands_never_load_torch_nor_extract():
    loaded, by_commands = loaded_by(modules_of("jax_avh"), commands("train", "score", "evaluate", "audit", "sweep"))
    assert not loaded & {*TORCH_SIDE, "extract", "launch", "apps"}
    assert not by_commands & set(TORCH_SIDE)


def test_data_and_its_audits_load_no_networks():
    (*_, loaded) = loaded_by(["jax_avh.data", "jax_avh.data.loaders", "jax_avh.data.passes"], commands("audit"))
    assert not loaded & {"flax", "optax"}


def test_only_one_place_builds_meshes_and_shardings():
    built = {"Mesh(", "NamedSharding(", "make_mesh(("}
    for name, file in files_of("jax_avh"):
        assert name == "jax_avh.parallel" or not any(word in file.read_text() for word in built), name


def test_what_both_sides_share_loads_neither_torch_nor_jax():
    loaded, by_commands = loaded_by(modules_of("avh_shards"), commands("submit", "simulate"))
    assert not loaded & {*JAX_SIDE, *TORCH_SIDE, "sklearn", "absl", "extract", "jax_avh"}
    assert not by_commands & {*TORCH_SIDE, *JAX_SIDE}


def test_a_sweep_leaves_the_devices_to_its_runs(launch):
    """Checks that a sweep, which loads jax with the methods whose settings it checks, starts no device."""
    ask = "import atexit, jax; atexit.register(lambda: print(jax._src.xla_bridge.backends_are_initialized()))"
    flags = ("--config.data.train=a", "--config.data.val=b", "--workdir=workdir", "--print_jobs")
    status, output = launch("sweep", *flags, before=ask)
    assert (status, output.splitlines()[-1]) == (0, "False")


# A file may import only from its own room and lower ones, also within functions.
ROOMS = [  # lowest first; rooms of one line may not import each other
    ["avh_shards"],
    ["extract.progress"],
    ["extract.media", "extract.datasets", "extract.store"],
    ["extract.convert"],
    ["extract.face"],
    ["extract.prepare"],
    ["extract.avhubert"],
    ["extract.run"],
    ["extract.check"],
    ["jax_avh.config", "jax_avh.parallel", "jax_avh.scores"],
    ["jax_avh.reference"],
    ["jax_avh.data"],
    ["jax_avh.models"],
    ["jax_avh.methods"],
    ["jax_avh.configs"],
    ["jax_avh.training", "jax_avh.inference"],
    ["jax_avh.evaluation"],
    ["jax_avh.audit"],
    ["jax_avh.report"],
    ["apps"],
    ["avh"],
    ["launch"],
]


def imports(file: Path) -> set[str]:
    """Returns the modules of this project that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & OURS.keys()


OURS = dict(files_of("avh_shards", "extract", "jax_avh", "apps", "avh", "launch"))
GRAPH = {name: imports(file) - {name} for name, file in OURS.items()}


def room(module: str) -> tuple[int, str] | None:
    """Returns the floor and the name of a module's room; None for the `__init__` of a package of rooms."""
    found = [
        (floor, name) for floor, names in enumerate(ROOMS) for name in names if f"{module}.".startswith(f"{name}.")
    ]
    return found[0] if found else None


@pytest.mark.parametrize("module", [name for name in GRAPH if room(name)])
def test_imports_go_down(module):
    floor, own = room(module)
    for other in sorted(GRAPH[module]):
        there = room(other)
        assert there is None or there[1] == own or there[0] < floor, f"{module} imports {other}"


def test_imports_have_no_cycle():
    order = graphlib.TopologicalSorter({name: found - parents(name) for name, found in GRAPH.items()})
    order.prepare()  # raises CycleError, which names it


def parents(module: str) -> set[str]:
    """Returns the packages that contain a module: their `__init__` imports it, and Python runs them before it."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Block())
import json, runpy
from absl import flags
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module("launch." + sys.argv[0], run_name="__main__", alter_sys=False)
    except SystemExit as end:
        if end.code:
            raise
    for flag in list(flags.FLAGS.flags_by_module_dict()[sys.argv[0]]):  # the next command may define the same
        delattr(flags.FLAGS, flag.name)
"""


def run_without(blocked: tuple[str, ...], *commands: list[str]) -> None:
    """Runs commands, one after the other, as if some packages were not installed."""
    code = BLOCK.format(blocked=set(blocked))
    subprocess.run([sys.executable, "-c", code, json.dumps(commands)], check=True, capture_output=True)


def test_training_and_scoring_run_without_torch(tmp_path, rule_shards):
    data = [f"--config.data.{split}={rule_shards['val']}" for split in ("train", "val")]
    settings = ["--config.train.epochs=1", "--config.method.head=linear"]
    features, scores = f"--features={rule_shards['test']}", tmp_path / "s.h5"
    run_without(
        TORCH_SIDE,
        ["train", *data, *settings, f"--workdir={tmp_path}/run"],
        ["score", f"--weights={tmp_path}/run", features, f"--output={scores}"],
        ["evaluate", f"--scores={scores}", f"--output={tmp_path}/out"],
    )
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_importing_runs_without_jax(tmp_path, rule_shards):
    (tmp_path / "c.csv").write_text("path\ntrain/c00.mp4\n")
    flags = {"clips": tmp_path / "c.csv", "features": rule_shards["npz"], "output": tmp_path / "out"}
    run_without(JAX_SIDE, ["import_npz", *(f"--{name}={value}" for name, value in flags.items())])
    assert (tmp_path / "out" / "extraction.json").is_file()


def test_extraction_runs_without_jax(tmp_path, tiny_checkpoint):
    (tmp_path / "c.csv").write_text("path\ns4.mp4\n")
    flags = {"clips": tmp_path / "c.csv", "media": TESTDATA, "avhubert": tiny_checkpoint, "input": "roi"}
    arguments = [f"--{name}={value}" for name, value in (flags | {"output": tmp_path / "out", "processes": 1}).items()]
    run_without(JAX_SIDE, ["extract", *arguments])
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["stored"] == 1


@pytest.mark.slow
def test_a_verdict_runs_without_the_libraries_of_training_and_reports(tmp_path, tiny_checkpoint, real_clips):
    film = write_media(tmp_path / "x.mp4", list(read_frames(real_clips["testMovie"])[:5]), sound=tone(0.2))
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=64)
    flags = {"avhubert": tiny_checkpoint, "weights": weights, "json": tmp_path / "v.json"}
    run_without(NOT_OF_VERDICTS, ["detect", str(film), *(f"--{name}={value}" for name, value in flags.items())])
    assert json.loads((tmp_path / "v.json").read_text())[0]["scores"]
