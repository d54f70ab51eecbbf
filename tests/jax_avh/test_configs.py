"""Configurations: published settings, settings by flags in any form, and settings of another run."""

import dataclasses
import importlib
import json
import re

import pytest

from apps.sweep import make_trials
from avh_shards import UserError
from jax_avh.config import Config, check_config, complete_record
from jax_avh.configs import get_config, list_all_settings, make_config, read_settings, trainable_methods
from jax_avh.methods.avh_align import AVHAlignConfig
from tests.conftest import TESTDATA
from tests.jax_avh.data.test_batches import make_source

# Published settings of each method that differ from those of AVH-Align.
PUBLISHED = {
    "avh_align": {},
    "avh_sup": {"optimizer.learning_rate": 1e-3, "optimizer.plateau_factor": 1.0, "train.epochs": 100},
    "rawnet2": {
        "data.batch_examples": 32,
        "optimizer.learning_rate": 1e-4,
        "optimizer.plateau_factor": 1.0,
        "optimizer.weight_decay": 1e-4,
        "train.epochs": 100,
    },
    "mds": {
        "data.batch_examples": 8,
        "optimizer.learning_rate": 1e-3,
        "optimizer.plateau_factor": 1.0,
        "optimizer.weight_decay": 1e-5,
        "train.epochs": 100,
    },
    "avad": {
        "data.batch_examples": 16,
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 5,
        "optimizer.weight_decay": 1e-6,
        "train.epochs": 100,
    },
}


def test_every_trainable_method_has_its_published_settings():
    assert trainable_methods() == list(PUBLISHED)
    official = get_config("avh_align")
    for method, settings in PUBLISHED.items():
        config = get_config(method)
        assert config == make_config({"method.name": method})
        expected = dataclasses.asdict(official) | {"method": dataclasses.asdict(config.method)}
        for name, value in settings.items():
            section, field = name.split(".")
            expected[section] = expected[section] | {field: value}
        assert dataclasses.asdict(config) == expected
        assert config.method.name == method


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_configuration_says_how_to_run_it_how_long_it_takes_and_what_to_expect(method):
    text = importlib.import_module(f"jax_avh.configs.{method}").__doc__
    assert "python -m launch.train" in text
    assert (f"--config.method={method}" in text) == (method != "avh_align")
    assert "\nExpected time: " in text
    assert "\nExpected number: " in text
    named = set(re.findall(r"--config\.([\w.]+)=", text)) - {"method"}
    assert named <= set(list_all_settings())


def test_settings_of_other_methods_are_checked_and_have_no_effect():
    assert make_config({"method.samples": "4000", "method.sync_weights": ""}) == get_config("avh_align")
    assert make_config({"method": "rawnet2", "method.samples": "4000"}).method.samples == 4000
    with pytest.raises(UserError, match="samples=x: not a value of this setting"):
        make_config({"method.samples": "x"})
    with pytest.raises(UserError, match="image=100: must be a multiple of 32"):
        make_config({"method.image": "100"})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seed": 1.5}, "seed=1.5: not a value of this setting"),
        ({"seed": True}, "seed=True: not a value of this setting"),
        ({"init": None}, "init=None: not a value of this setting"),
        ({"data": 3}, "--config.data: no such setting"),
        ({"method.name": 3}, "method.name=3: must be avh_align or avh_sup"),
    ],
)
def test_values_of_another_type_are_no_settings(settings, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        make_config(settings)


@pytest.mark.parametrize("killed", ["align", "sup"])
def test_a_config_file_of_an_older_version_repeats_its_run(killed):
    path = TESTDATA / "reference" / "killed" / killed / "config.json"
    record = json.loads(path.read_text())
    config = make_config(read_settings(path) | {"seed": "3"})
    found = dataclasses.asdict(config)
    # Fields that the file lacks.
    newer = {
        "data": {"streams": 1, "cache": ""},
        "optimizer": {"name": "adam", "clip_norm": 0.0},
        "train": {"checkpoint_minutes": 10.0},
    }
    assert found.pop("seed") == 3
    for section, fields in found.items():
        if isinstance(fields, dict):
            assert fields.items() <= (record[section] | newer.get(section, {})).items()
        else:
            assert fields == record[section]


def test_a_record_is_completed_by_defaults_not_by_what_is_wanted_now():
    config = Config(AVHAlignConfig())
    record = dataclasses.asdict(config) | {"fingerprint": {"train": "1"}}
    older = json.loads(json.dumps(record))
    older["method"] |= {"samples": 64600}
    del older["optimizer"]["warmup_epochs"]
    config.optimizer.warmup_epochs = 7
    assert complete_record(older, config) == record


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a run's settings"),
        ("[1]", "not a run's settings"),
        ('"x"', "not a run's settings"),
        ("[" * 100_000, "not a run's settings"),
        ("\xff", "not a run's settings"),
        ('{"epochs": 3}', "--config.epochs: no such setting"),
        (
            '{"data": {"trian": "x"}}',
            "--config.data.trian: no such setting; did you mean --config.data.train?",
        ),
        ('{"train": {"epochs": "many"}}', "--config.train.epochs=many: not a value"),
        ('{"train": {"epochs": [1]}}', "not a value of this setting"),
        ('{"optimizer": {"learning_rate": 1' + 400 * "0" + "}}", "not a value of this setting"),
        ('{"method": {"name": "factor"}}', "must be avh_align or avh_sup"),
        ('{"method": {"name": []}}', "must be avh_align or avh_sup"),
    ],
)
def test_what_is_no_config_file_is_told(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"config\.json: .*{re.escape(reason)}"):
        read_settings(path)


def test_flags_are_taken_in_any_form_and_order(tmp_path, fork):
    """Checks flags by the errors that they cause, so that no run is needed."""
    train = ["train", f"--workdir={tmp_path}/run", "--config.data.train=a"]
    (tmp_path / "f.flags").write_text("--config.method=mds\n--config.data.batch_examples=0\n")
    for flags, expected in {
        ("--config.seed=-1", "--config.data.val=b"): "--config.seed=-1: must be at least 0",
        ("--config.seed", "-1", "--config.data.val", "b"): "--config.seed=-1: must be at least 0",
        ("-config.seed=-1", "-config.data.val=b"): "--config.seed=-1: must be at least 0",
        ("--config.method=avad", "--config.data.val=b"): "sync_weights is missing",
        ("--config.data.val=b", "--config.method.name=avad"): "sync_weights is missing",
        ("--config.seed=1", "--config.data.val=b", "--config.seed=-2"): "--config.seed=-2: must be",
        (f"--flagfile={tmp_path}/f.flags", "--config.data.val=b"): "batch_examples=0: must be at least 1",
        ("--noconfig.data.shuffle", "--config.model.normalise", "--config.data.val="): "--config.data.val is missing",
        ("--config.data.val",): "--config.data.val: no value given",
        ("--config.data=x",): "--config.data: unknown flag",
        ("--other.seed=1",): "--other.seed: unknown flag",
    }.items():
        status, output = fork(*train, *flags)
        assert status == 2
        assert [line for line in output.splitlines() if line.startswith("error: ") and expected in line], output
    assert not (tmp_path / "run").exists()


def test_a_config_file_repeats_a_run_by_command(tmp_path, fork):
    make_source(tmp_path / "s", [5, 9, 7])
    data = [f"--config.data.{split}={tmp_path}/s" for split in ("train", "val")]
    size = ["--config.method.head=linear", "--config.data.batch_frames=10", "--config.train.epochs=0"]
    size.append("--noconfig.data.shuffle")
    for workdir, flags in {
        "one": [*data, *size],
        "two": [f"--config_file={tmp_path}/one/config.json"],
        "three": [f"--config_file={tmp_path}/one/config.json", "--config.seed=5"],
    }.items():
        status, output = fork("train", *flags, f"--workdir={tmp_path}/{workdir}")
        assert status == 0, output
    one, two, three = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two", "three"))
    assert not one["data"]["shuffle"]
    assert one == two == three | {"seed": 0}
    assert three["seed"] == 5
    for name in ("none.json", "one/result.json"):
        status, output = fork("train", f"--config_file={tmp_path}/{name}", f"--workdir={tmp_path}/four")
        assert (status, output.count("\n")) == (2, 1)
        assert output.startswith(f"error: {tmp_path}/{name}: ")
    jobs = fork("sweep", f"--config_file={tmp_path}/one/config.json", "--config.seed=0,1", "--print_jobs",
                f"--workdir={tmp_path}/sweep")[1]  # fmt: skip
    assert jobs.count(f"--config_file={tmp_path}/one/config.json") == 2


def test_a_sweep_starts_from_a_config_file(tmp_path):
    config = make_config({"data.train": "a", "data.val": "b", "model.tau": 3})
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    jobs = make_trials(["--config.seed=0,1"], str(tmp_path / "sweep"), str(tmp_path / "config.json"))
    assert [dataclasses.asdict(job.config) for job in jobs] == [
        dataclasses.asdict(config) | {"seed": seed} for seed in (0, 1)
    ]
    check_config(jobs[0].config)
