"""The walls between the rooms: what each side may import, seen in fresh interpreters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TESTDATA

ROOT = Path(__file__).parents[1]
JAX_SIDE = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
TORCH_SIDE = ("torch", "cv2", "dlib", "av", "soxr")


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages and our own modules that importing these loads."""
    code = "import importlib, json, sys; [importlib.import_module(m) for m in json.loads(sys.argv[1])]; "
    code += "print(json.dumps([m for m in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules)], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout))


def test_extract_never_loads_jax_nor_our_jax_side():
    loaded = loaded_by(modules_of("extract"))
    assert not loaded & {*JAX_SIDE, "jax_avh", "launch", "apps"}
    assert "torch" in loaded


def test_jax_avh_never_loads_torch_and_of_extract_only_the_schema():
    loaded = loaded_by(modules_of("jax_avh"))
    assert not loaded & {*TORCH_SIDE, "launch", "apps"}
    ours = {name for name in loaded if name.startswith("extract")}
    assert ours == {"extract", *(name for name in modules_of("extract") if name.startswith("extract.schema"))}


def test_the_schema_needs_numpy_and_h5py_alone():
    loaded = loaded_by(["extract.schema"])
    assert not loaded & {*JAX_SIDE, *TORCH_SIDE, "sklearn", "absl"}


@pytest.mark.parametrize(
    ("command", "never"),
    [
        ("extract", JAX_SIDE),
        ("import_npz", JAX_SIDE),
        ("convert", JAX_SIDE),
        ("train", TORCH_SIDE),
        ("score", TORCH_SIDE),
        ("evaluate", TORCH_SIDE),
        ("submit", (*TORCH_SIDE, *JAX_SIDE)),
        ("audit", TORCH_SIDE),
        ("sweep", (*TORCH_SIDE, *JAX_SIDE)),
    ],
)
def test_commands_load_their_own_side_alone(command, never):
    assert not loaded_by([f"launch.{command}"]) & set(never)


PIPELINE = [f"extract.{name}" for name in ("encoder", "workers", "job", "pipeline", "cluster", "official", "weights")]
OURS_ABOVE_SCHEMA = [
    f"extract.{name}" for name in ("prepare", "avhubert", "datasets", "shards", "shard_set")
] + PIPELINE

FLOORS = {  # package -> what of ours it may not import: no arrow runs back up
    "extract/schema": ["jax_avh", "launch", "apps", *OURS_ABOVE_SCHEMA],
    "extract/clips.py": [*OURS_ABOVE_SCHEMA],
    "extract/datasets": ["extract.prepare", "extract.avhubert", "extract.shards", *PIPELINE],
    "extract/prepare": ["extract.avhubert", "extract.shards", *PIPELINE],
    "extract/avhubert": PIPELINE,
    "extract/shards.py": ["extract.prepare", "extract.avhubert", *PIPELINE],
    "extract/shard_set.py": ["extract.prepare", "extract.avhubert", *PIPELINE],
    "jax_avh/models": ["jax_avh.methods", "jax_avh.data", "jax_avh.training", "jax_avh.evaluation", "jax_avh.report"],
    "jax_avh/data": ["jax_avh.methods", "jax_avh.training", "jax_avh.evaluation", "jax_avh.report"],
    "jax_avh/methods": ["jax_avh.training", "jax_avh.evaluation", "jax_avh.report"],
    "jax_avh/evaluation": ["jax_avh.report"],
    "jax_avh/training": ["jax_avh.evaluation", "jax_avh.report"],
}


@pytest.mark.parametrize("place", FLOORS)
def test_no_arrow_runs_back_up(place):
    path = ROOT / place
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for line in file.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert not line.split()[1].startswith(tuple(FLOORS[place])), f"{file}: {line}"


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Block())
import runpy
sys.argv = sys.argv[1:]
runpy.run_module("launch." + sys.argv[0], run_name="__main__", alter_sys=False)
"""


def run_without(blocked: tuple[str, ...], command: str, *arguments: object) -> None:
    """Runs a command as if some packages were not installed."""
    code = BLOCK.format(blocked=set(blocked))
    subprocess.run([sys.executable, "-c", code, command, *map(str, arguments)], check=True, capture_output=True)


def test_training_and_scoring_run_without_torch(tmp_path, rule_shards):
    data = [f"--config.data.{split}={rule_shards['val']}" for split in ("train", "val")]
    run_without(TORCH_SIDE, "train", *data, "--config.train.epochs=1", f"--workdir={tmp_path}/run")
    features, scores = f"--features={rule_shards['test']}", tmp_path / "s.h5"
    run_without(TORCH_SIDE, "score", f"--weights={tmp_path}/run", features, f"--output={scores}")
    run_without(TORCH_SIDE, "evaluate", f"--scores={scores}", f"--output={tmp_path}/out")
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_importing_runs_without_jax(tmp_path, rule_shards):
    (tmp_path / "c.csv").write_text("path\ntrain/c00.mp4\n")
    flags = {"clips": tmp_path / "c.csv", "features": rule_shards["npz"], "output": tmp_path / "out"}
    run_without(JAX_SIDE, "import_npz", *(f"--{name}={value}" for name, value in flags.items()))
    assert (tmp_path / "out" / "extraction.json").is_file()


def test_extraction_runs_without_jax(tmp_path, tiny_checkpoint):
    (tmp_path / "c.csv").write_text("path\ns4.mp4\n")
    flags = {"clips": tmp_path / "c.csv", "media": TESTDATA, "avhubert": tiny_checkpoint, "input": "roi"}
    arguments = [f"--{name}={value}" for name, value in (flags | {"output": tmp_path / "out", "processes": 1}).items()]
    run_without(JAX_SIDE, "extract", *arguments)
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["stored"] == 1
