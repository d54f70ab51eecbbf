"""Runs whose workdir is at a URL: in memory, and in buckets over the protocols of S3 and Google Cloud Storage."""

import dataclasses
import time

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from avh_shards import UserError
from avh_shards.paths import as_path
from jax_avh.config import TrainConfig
from jax_avh.inference import score_shards
from jax_avh.scores import open_scores
from jax_avh.training.checkpoint import Checkpoints
from tests.extract.run.test_object_store import bucket  # noqa: F401 (a fixture)
from tests.jax_avh.data.test_batches import make_source
from tests.jax_avh.training.test_train import Killed, assert_equal_runs
from tests.runs import curve, finish, free_port, start_training, train


@pytest.fixture
def url():
    """Returns an empty folder in memory."""
    yield UPath("memory://runs/run")
    UPath("memory://runs").fs.rm("/", recursive=True)


@pytest.mark.parametrize("place", ["_upload", "save"])
@pytest.mark.parametrize("nth", [1, 6])
def test_a_run_at_a_url_that_dies_ends_as_a_local_one(small_run, url, monkeypatch, place, nth):
    """Kills a run as it uploads or has started to save its nth checkpoint."""
    config, local = small_run
    original, passed = getattr(Checkpoints, place), []

    def dying(*args):
        passed.append(1)
        if place == "_upload" and len(passed) >= nth:
            raise Killed
        original(*args)
        if len(passed) == nth:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, place, dying)
        with pytest.raises(Killed):
            train(config, str(url))
    assert not (url / "result.json").exists()
    train(config, str(url))
    assert_equal_runs(url, local, config)
    assert (url / "result.json").read_text() == (local / "result.json").read_text()
    assert sorted(path.name for path in url.iterdir()) == sorted(path.name for path in local.iterdir())


def test_weights_at_a_url_score_as_local_ones(small_run, url, tmp_path):
    config, local = small_run
    url.fs.put(str(local), url.path, recursive=True)
    for name, weights in {"local": local, "url": str(url), "file": str(url / "best.safetensors")}.items():
        score_shards(config.data.val, tmp_path / f"{name}.h5", weights=weights)
        for part in ("frame", "clip"):
            found, wanted = (getattr(open_scores(tmp_path / f"{one}.h5"), part) for one in (name, "local"))
            np.testing.assert_array_equal(found, wanted)


def test_a_damaged_checkpoint_at_a_url_is_told(small_run, url):
    config, _ = small_run
    train(dataclasses.replace(config, train=TrainConfig(epochs=0)), str(url))
    (url / "checkpoints" / "checkpoints.tar").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"run/checkpoints: a checkpoint in it cannot be read \(.+\); remove this"):
        train(config, str(url))


@pytest.mark.parametrize("object_name", ["metrics.jsonl", "checkpoints.tar"])
def test_a_store_that_fails_is_told(small_run, url, monkeypatch, object_name):
    config, local = small_run
    put_file = MemoryFileSystem.put_file

    def failing(system, source, target):
        if target.endswith(object_name):
            raise RuntimeError("the store is away")
        put_file(system, source, target)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", failing)
        with pytest.raises(UserError, match=rf"{object_name}: cannot be written: the store is away; once it can, the"):
            train(config, str(url))
    train(config, str(url))
    assert_equal_runs(url, local, config)


def test_a_trace_is_not_written_to_a_url(small_run, url):
    with pytest.raises(UserError, match="--profile: traces are written to local disks only"):
        train(small_run[0], str(url), profile=True)


@pytest.fixture(params=["s3", "gs"])
def store(request, monkeypatch):
    """Returns the URL of an empty bucket in a local server; every process finds it through the environment."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        yield as_path("s3://shards")
        return
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="shards")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks over gRPC, which no emulator answers
    yield as_path("gs://shards")
    server.stop()


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_ends_as_a_local_one(tmp_path, store):
    """Kills both processes of a run within an epoch; the same command ends bit-equal to a run in a local folder."""
    settings: dict[str, object] = {"data.batch_frames": 4, "train.checkpoint_steps": 4}
    for split in ("train", "val"):
        folder = make_source(tmp_path / split, [9, 1, 2, 20, 3, 17, 1, 30]).path
        store.fs.put(str(folder), (store / split).path, recursive=True)
        settings[f"data.{split}"] = str(store / split)
    run = store / "run"
    started = start_training(tmp_path / "killed", 2, workdirs=[str(run)] * 2, **settings, **{"train.epochs": 200})
    while not store.fs.glob((run / "checkpoints" / "checkpoints.tar").path):
        assert started[0].poll() is None, (tmp_path / "killed.0.log").read_text()
        store.fs.invalidate_cache()
        time.sleep(0.01)
    for process in started:
        process.kill()
        process.wait()
    download(run, tmp_path / "then")
    settings["train.epochs"] = len(curve(tmp_path / "then")) + 1  # at least one epoch more
    finish(start_training(tmp_path / "resumed", 2, workdirs=[str(run)] * 2, **settings), tmp_path / "resumed")
    assert f"{run}: resumes after epoch" in (tmp_path / "resumed.0.log").read_text()
    finish(start_training(tmp_path / "local", 2, **settings), tmp_path / "local")
    download(run, tmp_path / "now")
    found, wanted = tmp_path / "now", tmp_path / "local"
    assert curve(found) == curve(wanted)
    for name in ("best.safetensors", "result.json"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in wanted.iterdir())


def download(run, folder) -> None:
    """Copies a folder of a bucket as it is now to the local disk."""
    run.fs.invalidate_cache()
    run.fs.get(run.path, str(folder), recursive=True)
