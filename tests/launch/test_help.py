"""Tests of the commands' help, and of their messages about typos, missing packages and missing devices."""

import re
import subprocess
import sys

import pytest

from jax_avh.configs import list_all_settings

ROWS = re.compile(r"^  --(?:\[no\])?([\w.]+)", re.MULTILINE)
CLIPS = {"clips", "media", "dataset", "root", "split", "selection"}
SETTINGS = {f"config.{name}" for name in list_all_settings()}
FLAGS = {  # command -> some of its flags, including flags that several commands share
    "audit": {"features", "output"},
    "calibrate": {"scores", "fakes", "output", "page", "dataset", "protocol", "calibration"},
    "clips": CLIPS | {"input"},
    "compile_check": SETTINGS | {"topology", "slices", "frames", "width", "placement", "json"},
    "convert": {"input", "output"},
    "demo": {"output", "avhubert"},
    "detect": {"avhubert", "weights", "json", "pages", "reference", "two_sided", "false_alarms"},
    "evaluate": {"scores", "output", "clips", "failures", "threshold", "reference", "two_sided"},
    "extract": CLIPS | {"avhubert", "trimmed", "store", "task_index", "clip_timeout"},
    "import_npz": {"clips", "features", "output", "dtype", "width", "clips_per_shard"},
    "inspect": {"against"},
    "paper": SETTINGS | {"root", "output"},
    "score": {"method", "weights", "features", "output", "dataset", "trimmed"},
    "simulate": {"output"},
    "submit": {"scores", "test_files", "output"},
    "sweep": SETTINGS | {"config_file", "workdir", "parallel", "print_jobs"},
    "train": SETTINGS | {"config_file", "workdir", "profile", "distributed", "process_id"},
}
UNEXPLAINED = {"optimizer.learning_rate", "optimizer.warmup_epochs"}  # clear from their names or other comments
LIBRARIES = ("grain", "orbax", "verbosity", "logtostderr", "pdb", "flagfile", "array_record", "only_check_args")


@pytest.mark.parametrize("command", FLAGS)
def test_help_lists_the_flags_of_the_command_and_only_those(fork, command):
    status, page = fork(command, "--help")
    assert status == 0
    listed = ROWS.findall(page)
    assert FLAGS[command] <= set(listed)
    assert len(listed) == len(set(listed))
    assert not [name for name in listed if name.startswith(LIBRARIES)]
    assert f"python -m launch.{command}" in page
    if command == "train":
        assert fork(command, "--helpfull") == (status, page)


def test_help_holds_the_comments_and_the_defaults_of_settings(fork):
    page = fork("train", "--help")[1]
    assert (
        "--config.model.tau=15\n      Audio frames on each side of a visual frame that compete in the softmax" in page
    )
    assert "--config.data.placement=auto\n      Where features are kept:" in page
    assert 'or "float64" for everything, to check other runs by' in " ".join(page.split())
    assert {name for name, setting in list_all_settings().items() if not setting.comment} <= UNEXPLAINED
    assert "--config.train.epochs=100" in fork("train", "--config.method=mds", "--help")[1]
    assert "waveform" in fork("extract", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "--scroes=a.h5"], "--scroes: unknown flag; did you mean --scores?"),
        (["train", "--workdri=w"], "--workdri: unknown flag; did you mean --workdir?"),
        (["train", "--config.data.tarin=x"], "--config.data.tarin: unknown flag; did you mean --config.data.train?"),
        (["sweep", "--paralel=2", "--workdir=w"], "--paralel: unknown flag; did you mean --parallel?"),
        (["sweep", "--config.sede=2", "--workdir=w"], "no such setting; did you mean --config.seed?"),
        (["train", "--grain_nmu_threads=2"], "--grain_nmu_threads: unknown flag"),
        (["extract", "--medai=x"], "--medai: unknown flag; did you mean --media?"),
    ],
)
def test_a_typo_suggests_a_flag_of_the_command(fork, arguments, expected):
    status, output = fork(*arguments)
    assert status == 2
    assert re.fullmatch(f"error: .*{re.escape(expected)}\n", output)


BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = [{command!r}, "--nothing=1"]
runpy.run_module("launch.{command}", run_name="__main__", alter_sys=True)
"""
TORCH, JAX = ("torch", "av", "cv2", "dlib", "soxr"), ("jax", "jaxlib", "flax", "orbax", "grain")


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [
        ("train", JAX, ".[jax]"),
        ("score", JAX, ".[jax]"),
        ("extract", TORCH, ".[extract]"),
        ("convert", TORCH, ".[extract]"),
        ("detect", TORCH, ".[extract,jax]"),
        ("evaluate", ("h5py",), "."),
    ],
)
def test_a_missing_side_is_named_with_its_extra(command, blocked, extra):
    code = BLOCKED.format(blocked=blocked, command=command)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert re.fullmatch(r'error: the package \w+ is not installed; run pip install -e "(.*)" .*\n', result.stderr)[
        1
    ] == (extra)


def test_a_missing_package_of_a_program_of_the_users_keeps_its_traceback():
    code = "import launch, no_package_of_this_name"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'no_package_of_this_name'\n")


@pytest.mark.parametrize("platform", ["cuda", "tpx"])
def test_a_missing_device_is_one_sentence(rule_shards, tmp_path, monkeypatch, launch, platform):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    scoring = [f"--features={rule_shards['val']}", f"--output={tmp_path / 's.h5'}"]
    status, output = launch("score", "--method=factor", *scoring)
    if status == 0:
        pytest.skip(f"this machine has a device for {platform}")
    assert status == 2
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: JAX_PLATFORMS={platform}: jax finds no such device here")
    assert "Traceback" not in output
