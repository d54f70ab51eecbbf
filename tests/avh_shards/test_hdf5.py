"""Tests of HDF5 files that are damaged, hostile, on a full disk or on a file system without locks."""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.hdf5 import open_hdf5, write_text, writing_hdf5
from avh_shards.paths import as_path
from extract.store.shard import StoredClip
from jax_avh.data.source import open_source, rows_of_file
from tests.avh_shards.test_shards import features, rewrite, shard_set, write, write_one


def variable_text(path) -> None:
    """Stores the clips' text as older versions did, with variable length in the file's global heap."""

    def change(file):
        for name in ("path", "category", "split", "identity"):
            values = file[f"clips/{name}"].asstr()[:]
            del file[f"clips/{name}"]
            file.create_dataset(f"clips/{name}", data=values.astype(object), dtype=h5py.string_dtype())

    rewrite(path, change)


def test_text_of_fixed_and_of_variable_length_is_the_same(tmp_path):
    clips = [ClipMeta("ü/a.mp4", category="RealVideo-FakeAudio", identity="id1"), ClipMeta("日本.mp4")]
    shards = shard_set(tmp_path, clips)
    write(shards, *(StoredClip(clip, features(2)) for clip in clips))
    path = shards.writer.path(0)
    with h5py.File(path) as file:
        assert file["clips/path"].dtype.kind == "S"  # stored without the heap
        assert file["clips/path"].asstr()[1] == "日本.mp4"
    before = open_shard(path).clips
    variable_text(path)
    assert repr(open_shard(path).clips) == repr(before)


def test_the_child_keeps_to_a_limit_that_is_lower_already():
    code = (
        "import resource; from avh_shards.hdf5_child import _limit; kind = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(kind, (64, 64)); _limit(kind, 128); print(resource.getrlimit(kind))\n"
        "_limit(kind, 32); print(resource.getrlimit(kind))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["(64, 64)", "(32, 32)"]


def test_a_heap_that_never_ends_is_refused_in_seconds(tmp_path):
    path = write_one(tmp_path)
    variable_text(path)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    while heap >= 0:
        size = int.from_bytes(data[heap + 8 : heap + 16], "little")
        data[heap + 16 : heap + size] = bytes(size - 16)
        heap = data.find(b"GCOL", heap + size)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"features-00000\.h5: not a valid avh-align HDF5 file \(the HDF5 library"):
        open_shard(path)


def promise_rows(file):
    del file["visual"]
    space = h5py.h5s.create_simple((2**31, 8))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file.id, b"visual", h5py.h5t.IEEE_F32LE, space, creation)


def nested_groups(file):
    group = file.create_group("deep")
    for _ in range(1200):
        group = group.create_group("g")


def attribute(name, value):
    return lambda file: file.attrs.update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (promise_rows, "stored in chunks, or compressed|promises"),
        (nested_groups, "more than 1000 objects"),
        (lambda file: file.__setitem__("again", file["/"]), "more than 1000 objects"),
        (attribute("trimmed", np.bytes_(b"x")), "'trimmed' is 'x'"),
        (attribute("trimmed", np.void(b"x")), "'trimmed' is not a single number or text"),
        (attribute("trimmed", h5py.Empty("f4")), "attribute 'trimmed' is (empty|not a single number)"),
        (attribute("width", np.complex64(8)), "'width' is not a single number or text"),
        (attribute("width", 8.0), "'width' is 8.0"),
        (attribute("version", "1"), "version '1'"),
        (attribute("frame_rate", np.array([25, 25])), "'frame_rate' is not a single number"),
        (attribute("settings", "[1"), "'settings' is not a JSON object"),
        (attribute("settings", "[" * 100_000), "'settings' is not a JSON object"),
        (attribute("seconds", '{"encode": "x"}'), "'seconds' holds more than numbers"),
        (attribute("encoder", "\x1b[31mred"), r"'encoder' is '\\x1b\[31mred'"),
        (
            lambda f: (f.pop("visual"), f.create_dataset("visual", (8, 8), [("re", "f4"), ("im", "f4")])),
            "/visual holds",
        ),
        (lambda f: (f.pop("visual"), f.create_dataset("visual", (), "f4", data=1.0)), "promise"),
        (lambda f: (f.pop("visual"), f.create_dataset("visual", data=h5py.Empty("f4"))), "/visual is empty"),
    ],
)
def test_a_hostile_shard_is_refused_in_one_sentence(tmp_path, change, reason):
    path = write_one(tmp_path)
    rewrite(path, change)
    with pytest.raises(UserError, match=reason) as error:
        open_shard(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


def test_an_array_beyond_the_end_of_the_file_is_refused_before_it_is_read(tmp_path):
    path = write_one(tmp_path)
    with h5py.File(path) as file:
        start = file["visual"].id.get_offset()
    data = path.read_bytes().replace(start.to_bytes(8, "little"), (2**40).to_bytes(8, "little"), 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"invalid dataset size|/visual promises 256 bytes"):
        open_shard(path)


def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for name in ("pipe.h5", "."):
        with pytest.raises(UserError, match="not a file"):
            open_hdf5(tmp_path / name)


def test_a_reader_that_is_interrupted_reads_the_next_file(tmp_path, monkeypatch):
    path = write_one(tmp_path)

    class Slow(io.FileIO):
        def read(self, count=-1):
            os.kill(os.getpid(), signal.SIGINT)  # like Ctrl-C during a transfer
            return super().read(count)

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", lambda self, mode: Slow(str(self)))
        with pytest.raises(KeyboardInterrupt):
            open_shard(path)
    assert len(open_shard(path).clips) == 2


def test_files_are_read_from_several_threads_at_once(tmp_path):
    paths = [write_one(tmp_path / str(n), lengths=(n + 1,)) for n in range(4)]
    found = {}
    threads = [threading.Thread(target=lambda p=p: found.update({p: len(open_shard(p).visual)})) for p in paths * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {path: n + 1 for n, path in enumerate(paths)}


def test_a_shard_that_shrinks_while_it_is_mapped_is_noticed(tmp_path):
    path = write_one(tmp_path, lengths=(50,))
    source = open_source(tmp_path).in_memory()
    source.check_unchanged()
    os.truncate(path, 4096)
    with pytest.raises(UserError, match=r"features-00000\.h5: has 4096 bytes, but had \d+ when it was opened"):
        source.check_unchanged()
    with pytest.raises(UserError, match="has become shorter"):
        dataclasses.replace(source, rows=rows_of_file).features("audio", 0)


def write_array(path, array):
    with writing_hdf5(path) as file:
        write_text(file, "text", ["a"] * 10)
        file["x"] = array


def test_a_block_that_fails_leaves_no_file(tmp_path):
    with contextlib.suppress(RuntimeError), writing_hdf5(tmp_path / "x.h5") as file:
        file["x"] = np.zeros(100)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("count", [9_000, 10**6])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, count):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(UserError, match=r"x\.h5: cannot be written: no space left on device"):
            write_array(disk / "x.h5", np.zeros(count))
        assert list(disk.iterdir()) == []
        write_array(disk / "x.h5", np.arange(100))
        np.testing.assert_array_equal(open_hdf5(disk / "x.h5").array("x"), np.arange(100))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not shutil.which("gcc"), reason="a file system without locks is made by gcc")
def test_files_are_read_and_written_where_nothing_can_be_locked(tmp_path):
    """Clusters often have file systems without locks, on which the HDF5 library itself would fail."""
    source = "#include <errno.h>\nint flock(int fd, int op) { errno = ENOLCK; return -1; }\n"
    (tmp_path / "nolock.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "nolock.so", tmp_path / "nolock.c"], check=True)
    program = (
        "import sys, numpy; from avh_shards.hdf5 import open_hdf5, writing_hdf5\n"
        "with writing_hdf5(sys.argv[1]) as file: file['x'] = numpy.arange(5)\n"
        "print(open_hdf5(sys.argv[1]).array('x').sum())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.h5"],
        env=os.environ | {"LD_PRELOAD": str(tmp_path / "nolock.so")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("10\n", "")


def test_a_remote_file_is_read_like_a_local_one(tmp_path):
    path = write_one(tmp_path)
    remote = as_path("memory://hdf5/features-00000.h5")
    remote.parent.mkdir(parents=True, exist_ok=True)
    remote.write_bytes(path.read_bytes())
    here, there = open_hdf5(path), open_hdf5(remote)
    assert (here.attributes, here.extents) == (there.attributes, there.extents)
    np.testing.assert_array_equal(here.array("visual"), there.array("visual"))
    remote.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="not a valid avh-align HDF5 file"):
        open_hdf5(remote)
