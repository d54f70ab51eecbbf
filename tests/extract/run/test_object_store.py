"""Shards in an object store, over the S3 protocol."""

import time

import boto3
import numpy as np
import pytest

from avh_shards.paths import REQUESTS, as_path
from jax_avh.configs import make_config
from jax_avh.data.source import open_source
from tests.jax_avh.data.test_batches import make_source
from tests.runs import losses, train
from tests.sets import assert_same_set, make_media, start_extract

moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    """Starts a local S3 server with a bucket; every process finds it through the environment."""
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    yield client
    server.stop()


def test_tasks_fill_one_folder_of_a_bucket(tmp_path, tiny_checkpoint, short_clips, bucket, launch):
    """Two tasks of an array, the first killed and restarted, write the same shards as one run in a local folder."""
    media, url = tmp_path / "media", "s3://shards/set"
    make_media(media, 4, short_clips)
    tasks = [{"task_index": index, "task_count": 2} for index in (0, 1)]
    first = start_extract(media, tiny_checkpoint, url, **tasks[0])
    while first.poll() is None and not keys(bucket):
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert [start_extract(media, tiny_checkpoint, url, **task).wait() for task in tasks] == [0, 0]
    assert start_extract(media, tiny_checkpoint, tmp_path / "local").wait() == 0
    for key in keys(bucket):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        bucket.download_file("shards", key, str(tmp_path / key))
    assert_same_set(tmp_path / "local", tmp_path / "set")
    status, output = launch("inspect", url)
    assert status == 0, output


def keys(bucket) -> list[str]:
    return [item["Key"] for item in bucket.list_objects_v2(Bucket="shards").get("Contents", [])]


def test_training_reads_shards_from_a_bucket(tmp_path, bucket):
    """Training on byte ranges, in every placement, has the same losses as on local files."""
    urls, local = {}, {}
    for split in ("train", "val"):
        local[f"data.{split}"] = make_source(tmp_path / split, [9, 1, 2, 20, 3, 17, 1, 30]).path
        urls[f"data.{split}"] = f"s3://shards/{split}"
        for file in (tmp_path / split).glob("features-*.h5"):
            bucket.upload_file(str(file), "shards", f"{split}/{file.name}")
    assert as_path(urls["data.train"]).fs.s3.meta.config.max_pool_connections == REQUESTS
    copied = open_source(urls["data.train"], tmp_path / "cache")
    as_path(urls["data.train"]).fs.invalidate_cache()
    open_source(f"{urls['data.train']}/features-00000.h5", tmp_path / "cache")  # described by itself, not in a list
    assert copied.fingerprint() == open_source(local["data.train"]).fingerprint()
    assert len(list((tmp_path / "cache").glob("*.h5"))) == len(copied.shards)
    settings = {"data.batch_frames": 24, "data.streams": 2, "train.epochs": 1, "method.head": "linear"}
    runs = {"local": local} | {name: urls | {"data.placement": name} for name in ("stream", "host", "device")}
    for name, data in runs.items():
        config = {key: str(value) for key, value in (settings | data).items()}
        train(make_config(config), tmp_path / name)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "local"), rtol=0, atol=2e-6)
