"""Extraction on a Ray cluster: the same shards as on one machine, whatever dies."""

import json
import random
import re
import subprocess
import sys
import time

import psutil
import pytest
import ray.cluster_utils
import torch

from avh_shards import ClipMeta, UserError
from extract.run.job import ExtractSettings, Job
from extract.run.ray import extract_on_ray
from tests.sets import assert_same_set, make_media, start_extract
from tests.test_walls import BLOCK


@pytest.fixture(scope="module")
def media(tmp_path_factory, short_clips):
    """Folder of twelve clips."""
    folder = tmp_path_factory.mktemp("clips") / "media"
    make_media(folder, 12, short_clips)
    return folder


@pytest.fixture(scope="module")
def local(media, tiny_checkpoint):
    """Shards extracted from them on one machine."""
    assert start_extract(media, tiny_checkpoint, media.with_name("local")).wait() == 0
    return media.with_name("local")


@pytest.fixture
def start(media, tmp_path, tiny_checkpoint):
    """Starts their extraction on Ray or on this machine."""
    return lambda output, cluster: start_extract(media, tiny_checkpoint, tmp_path / output, cluster=cluster)


def ray_workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Busy workers of the run's own cluster (its agents are called ray::...Agent: a node dies with them).

    Idle ones are spared: Ray starts them before the run is connected, and if one dies then, it may wait for ever.
    """
    titles = [(child, child.cmdline()[:1]) for child in psutil.Process(process.pid).children(recursive=True)]
    return [child for child, title in titles if title and re.match("ray::(?!IDLE|.*Agent)", title[0])]


def kill_workers(process: subprocess.Popen, kills: int, seed: int) -> int:
    """Kills workers at random while the run lasts; returns the number killed."""
    rng, killed = random.Random(seed), 0
    while killed < kills and process.poll() is None:
        time.sleep(rng.uniform(0.1, 2.0))
        try:
            if workers := ray_workers(process):
                rng.choice(workers).kill()
                killed += 1
        except psutil.NoSuchProcess:
            continue
    return killed


def killed_workers(start, tmp_path, local, kills: int, seed: int) -> None:
    """Runs on Ray until `kills` workers have been killed; each run finishes with the right shards."""
    run = 0
    while kills > 0:
        process = start(f"ray{run}", "ray")
        kills -= kill_workers(process, kills, seed + run)
        assert process.wait(timeout=300) == 0
        assert_same_set(local, tmp_path / f"ray{run}")
        run += 1


def test_shards_of_a_cluster_whose_workers_die_are_those_of_one_machine(start, tmp_path, local):
    killed_workers(start, tmp_path, local, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray forks in this process, where JAX may be loaded
def test_a_dead_nodes_clips_are_done_elsewhere(start, tmp_path, local, monkeypatch):
    """The second of two nodes dies after the first shard."""
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    process = start("ray", "ray")
    while not list((tmp_path / "ray").glob("features-*.h5")):
        assert process.poll() is None
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    assert process.wait(timeout=300) == 0
    cluster.shutdown()
    assert_same_set(local, tmp_path / "ray")


@pytest.mark.slow
def test_shards_of_a_cluster_whose_workers_die_twenty_times(start, tmp_path, local):
    killed_workers(start, tmp_path, local, kills=20, seed=1)


@pytest.mark.slow
def test_a_cluster_run_that_was_killed_goes_on_on_one_machine(start, tmp_path, local):
    process = start("broken", "ray")
    while not list((tmp_path / "broken").glob("features-*.h5")) and process.poll() is None:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    for child in [process, *children]:
        child.kill()
    process.wait()
    assert start("broken", "none").wait() == 0
    assert_same_set(local, tmp_path / "broken")


@pytest.mark.slow
def test_a_restart_on_a_cluster_tries_failed_clips_again(start, media, tmp_path, local):
    (media / "c3.wav").rename(tmp_path / "c3.wav")
    assert start("broken", "ray").wait() == 0
    (tmp_path / "c3.wav").rename(media / "c3.wav")
    assert start("broken", "ray").wait() == 0
    assert_same_set(local, tmp_path / "broken")


def test_without_ray_the_flag_is_told(tmp_path, tiny_checkpoint):
    make_media(tmp_path / "media", 1)
    flags = {"clips": tmp_path / "media.csv", "media": tmp_path / "media", "avhubert": tiny_checkpoint}
    flags |= {"output": tmp_path / "out", "input": "roi", "cluster": "ray"}
    command = ["extract", *(f"--{k}={v}" for k, v in flags.items())]
    code = BLOCK.format(blocked={"ray"})
    result = subprocess.run([sys.executable, "-c", code, json.dumps([command])], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("error: --cluster=ray needs the package ray (extra `ray`)")


def test_the_driver_leaves_the_gpu_to_the_encoders(tmp_path, tiny_checkpoint, monkeypatch):
    """Moving weights to a GPU, of which this machine pretends to have one, would fail before Ray is called."""

    def no_cluster(**_):
        raise ConnectionError("no cluster")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("ray.init", no_cluster)
    job = Job([ClipMeta("x.mp4")], str(tmp_path), str(tmp_path / "out"), ExtractSettings())
    with pytest.raises(UserError, match="Ray cannot be reached or started: no cluster"):
        extract_on_ray(job, tiny_checkpoint)
