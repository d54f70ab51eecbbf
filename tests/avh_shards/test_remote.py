"""Files in a bucket are read in few requests, many at the same time, and yield what local files do."""

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import strategies as st

from avh_shards import UserError, hdf5
from avh_shards.format import read_shard_table
from avh_shards.hdf5 import read_spans
from avh_shards.paths import REQUESTS, as_path
from jax_avh.data.batches import ExampleBatches, Examples, frame_batches, frame_streams, read_parts
from jax_avh.data.source import OPENING_THREADS, PAIRED_FEATURES, open_source
from tests.jax_avh.data.test_batches import frame_stream, make_source

LATENCY = 0.03  # seconds per request
PATIENCE = 10  # seconds for which requests wait for each other


class Store:
    """Counts the requests of a slow file system. Where `together` is set, that many first requests wait for each other,
    so that a reader that does not send them at the same time fails."""

    def __init__(self):
        self.lock = threading.Lock()
        self.reset()

    def reset(self, together: int = 0) -> None:
        self.requests: list[tuple[str, int, int]] = []
        self.current = self.most = 0
        self.together = together
        self.barrier = threading.Barrier(max(together, 1))

    @contextlib.contextmanager
    def request(self, path: str, start: int, end: int):
        with self.lock:
            self.requests.append((path, start, end))
            early = len(self.requests) <= self.together
            self.current += 1
            self.most = max(self.most, self.current)
        try:
            self.barrier.wait(PATIENCE) if early else time.sleep(LATENCY)
            yield
        finally:
            with self.lock:
                self.current -= 1

    @property
    def sizes(self) -> list[int]:
        return [end - start for _, start, end in self.requests]


@pytest.fixture(scope="module")
def store():
    found = Store()
    cat_file = MemoryFileSystem.cat_file

    def slow(self, path, start=None, end=None, **options):
        with found.request(path, start, end):
            return cat_file(self, path, start, end, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", slow)
        yield found


def upload(source, name: str) -> str:
    """Copies the shards of a source to a slow file system and returns their URL."""
    for shard in source.shards:
        as_path(f"memory://{name}/{shard.path.name}").write_bytes(shard.path.read_bytes())
    return f"memory://{name}"


@hypothesis.given(
    st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 40)), max_size=20), st.integers(0, 9), st.integers(1, 60)
)
@hypothesis.settings(max_examples=20)
def test_spans_are_read_in_few_requests(store, spans, gap, most):
    data = np.random.default_rng(0).integers(0, 256, 2000, np.uint8)
    path = as_path("memory://spans/file")
    path.write_bytes(data.tobytes())
    position = 400
    wanted = []
    runs = 0
    for step, size in spans:
        runs += not wanted or not 0 <= step <= gap
        position += step
        wanted.append((path, max(position, 0), max(position, 0) + size))
        position = max(position, 0) + size
    store.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "GAP_BYTES", gap)
        patch.setattr(hdf5, "REQUEST_BYTES", most)
        found = list(read_spans(wanted))
    for rows, (_, start, stop) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(rows, data[start:stop])
    longest = max((stop - start for _, start, stop in wanted), default=0)
    assert max(store.sizes, default=0) <= max(most, longest)
    assert len(store.requests) <= runs + 2 * sum(store.sizes) // most


def test_as_many_requests_as_allowed_are_made_at_once(store):
    path = as_path("memory://spans/file")
    path.write_bytes(bytes(range(100)))
    store.reset(together=REQUESTS)
    reversed_bytes = list(read_spans([(path, n, n + 1) for n in range(99, -1, -1)]))
    assert np.concatenate(reversed_bytes).tolist() == list(range(99, -1, -1))
    assert store.most == REQUESTS


def test_features_come_in_large_requests_for_whole_sets_and_at_once_for_batches(store, tmp_path, monkeypatch):
    local = make_source(tmp_path, [9, 1, 2, 20, 3, 17, 1, 30])
    remote = open_source(upload(local, "features"))
    found, wanted = np.zeros((2, 2, 83, remote.width), np.float32)
    store.reset()
    for source, features in ((remote, found), (local, wanted)):
        read_parts(
            [(frame_stream(source), name, 0, rows) for name, rows in zip(PAIRED_FEATURES, features, strict=True)]
        )
    assert len(store.requests) == 2 * len(local.shards)  # the clips of a shard are stored end to end
    np.testing.assert_array_equal(found, wanted)
    assert wanted.any(axis=(1, 2)).all()
    monkeypatch.setattr(hdf5, "GAP_BYTES", -1)
    batches, wanted = (frame_batches(frame_streams(source, (0, 0)), 83, 2) for source in (remote, local))
    store.reset(together=2 * 8)  # both modalities of every clip
    for array, other in zip(batches[0], wanted[0], strict=True):
        np.testing.assert_array_equal(array, other)
    assert len(store.requests) == 2 * 8


class FirstFrames(Examples):
    """The first frame of each clip."""

    def read(self, example):
        return {"frame": self.source.features("visual", example, 0, 1)}


def test_the_examples_of_a_batch_are_read_at_once(store, tmp_path):
    local = make_source(tmp_path, [9, 1, 2, 20])
    remote = open_source(upload(local, "examples"))
    order = np.array([2, 0, 3, 1])
    store.reset(together=4)
    found, wanted = (
        ExampleBatches(FirstFrames(source, np.arange(4)), order, 4)[0].inputs["frame"] for source in (remote, local)
    )
    np.testing.assert_array_equal(found, wanted)


def test_features_held_in_memory_are_fetched_in_large_requests(store, tmp_path):
    local = make_source(tmp_path, [9, 1, 2, 20, 3, 17, 1, 30])
    remote = open_source(upload(local, "held"))
    store.reset(together=len(local.shards))
    held = remote.in_memory()
    assert len(store.requests) == len(local.shards)
    for clip in range(8):
        np.testing.assert_array_equal(held.features("audio", clip), local.features("audio", clip))
    assert len(store.requests) == len(local.shards)


def test_shards_are_opened_many_at_a_time(store, tmp_path):
    local = make_source(tmp_path, [1] * OPENING_THREADS, per_shard=1)
    url = upload(local, "opened")
    store.reset(together=OPENING_THREADS)
    remote = open_source(url)
    assert repr(remote.clips) == repr(local.clips)  # NaN equals nothing
    assert len(store.requests) == OPENING_THREADS  # one each, because these shards are small


@pytest.mark.parametrize("rounds", [16, 1])
def test_a_large_shard_is_opened_by_a_few_small_requests(store, tmp_path, monkeypatch, rounds):
    """In one round, not all of the metadata is found; the rest is then read as from a local file."""
    local = make_source(tmp_path, [60_000])
    (path,) = (as_path(upload(local, "large") + "/features-00000.h5"),)
    monkeypatch.setattr(hdf5, "ROUNDS", rounds)
    store.reset()
    table = read_shard_table(path)
    assert table.features == local.shards[0].features
    assert repr(table.clips) == repr(local.shards[0].clips)
    assert len(store.requests) <= 4
    assert max(store.sizes) <= hdf5.BLOCK


@pytest.fixture
def copied(monkeypatch):
    """Counts the copies of whole files, which take a moment."""
    found = []
    get_file = MemoryFileSystem.get_file

    def slow(self, path, target, **options):
        found.append(path)
        time.sleep(LATENCY)
        return get_file(self, path, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    return found


def test_copies_of_shards_are_made_once_and_used_again(store, tmp_path, copied):
    local = make_source(tmp_path / "local", [9, 1, 2, 20])
    url = upload(local, "cached")
    store.reset()
    with ThreadPoolExecutor(3) as threads:  # as processes of one machine
        sources = list(threads.map(lambda _: open_source(url, tmp_path / "cache"), range(3)))
    assert sorted(copied) == ["/cached/features-00000.h5", "/cached/features-00001.h5"]
    assert not store.requests
    for source in sources:
        assert source.local
        assert source.fingerprint() == local.fingerprint()
        np.testing.assert_array_equal(source.features("visual", 3), local.features("visual", 3))


def test_a_copy_that_is_not_whole_or_out_of_date_is_made_again(store, tmp_path, copied):
    url = upload(make_source(tmp_path / "local", [9, 1]), "renewed")
    (copy,) = (shard.path for shard in open_source(url, tmp_path / "cache").shards)
    os.truncate(copy, 1000)
    assert open_source(url, tmp_path / "cache").lengths.tolist() == [9, 1]
    upload(make_source(tmp_path / "other", [8, 2]), "renewed")  # of the same size
    assert open_source(url, tmp_path / "cache").lengths.tolist() == [8, 2]
    assert len(copied) == 3
    as_path(f"{url}/features-00000.h5").fs.rm("/renewed/features-00000.h5")
    with pytest.raises(UserError, match="no feature shards"):
        open_source(url, tmp_path / "cache")


def test_copies_need_a_local_folder(store, tmp_path):
    url = upload(make_source(tmp_path / "local", [9]), "refused")
    with pytest.raises(UserError, match="memory://cache: copies of files are kept in a local folder; name one"):
        open_source(url, "memory://cache")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        open_source(url, tmp_path / "file")
