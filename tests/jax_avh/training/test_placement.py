"""Placement of features, streamed, in host memory or on the devices: same batches and losses, and its choice."""

import itertools
import re
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from avh_shards import UserError
from avh_shards.format import list_shards
from avh_shards.paths import as_path
from jax_avh.config import Config, DataConfig, OptimizerConfig, TrainConfig
from jax_avh.data.batches import frame_batches, frame_streams
from jax_avh.data.loaders import FeatureSize, Memory, choose_placement, hold_frames, stream_frames
from jax_avh.data.source import open_source
from jax_avh.methods import avh_align
from jax_avh.methods.avh_align import AVHAlignConfig
from jax_avh.models import AlignmentNetwork
from jax_avh.parallel import make_mesh, put_copies
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.step import Objective, init_state, train_steps
from tests.jax_avh.data.test_batches import frame_stream, held_source, lengths_st, make_batches, make_source
from tests.runs import losses, train


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@hypothesis.given(
    lengths_st,
    st.integers(1, 7),
    st.integers(1, 4),
    st.none() | st.integers(0, 9),
    st.integers(1, 5),
    st.sampled_from([2, 4]),
    st.booleans(),
)
@hypothesis.settings(max_examples=6)
def test_batches_gathered_on_the_devices_are_those_of_the_streams(
    mesh, lengths, share, tau, epoch, loop_steps, count, whole_clips
):
    source = held_source(lengths)
    seed = None if epoch is None else (0, epoch)
    streams = frame_streams(source, seed, count)
    wanted = list(frame_batches(streams, share * count, tau, whole_clips=whole_clips, chunks=count))
    loader = hold_frames(source, mesh, share * count, tau, loop_steps, streams=count, whole_clips=whole_clips)
    found = []
    for batches in loader.epoch(seed).batches:
        assert 1 <= len(batches) <= loop_steps
        found += jax.jit(lambda b: [b[jnp.int32(step)] for step in range(len(b))])(batches)
    for batch, other in zip(found, wanted, strict=True):
        for a, b in zip(batch, other, strict=True):
            np.testing.assert_array_equal(a, b)


@hypothesis.given(st.integers(1, 30), st.integers(1, 9), st.data())
@hypothesis.settings(max_examples=15)  # each compiles a program
def test_loops_end_at_the_same_steps_wherever_they_start(mesh, steps, loop_steps, data):
    """Checks that a run resumed within an epoch compiles and computes the same as the uninterrupted one."""
    source = held_source([steps, steps])
    loader = hold_frames(source, mesh, 2, 1, loop_steps, streams=2)

    def ends(first):
        return [first + n for n in itertools.accumulate(len(batches) for batches in loader.epoch(None, first).batches)]

    first = data.draw(st.sampled_from([0, *ends(0)]))
    assert ends(first) == [end for end in ends(0) if end > first]


@hypothesis.given(lengths_st, st.integers(1, 20), st.integers(0, 4), st.integers(1, 4), st.data())
def test_a_process_reads_its_own_chunks_alone(lengths, size, tau, chunks, data):
    stream = frame_stream(held_source(lengths), (0, 0))
    start = data.draw(st.integers(0, chunks - 1))
    own = range(start, data.draw(st.integers(start + 1, chunks)))
    whole = make_batches(stream, size, tau, chunks)
    for batch, part in zip(whole, make_batches(stream, size, tau, chunks, own), strict=True):
        for a, b in zip(batch, part, strict=True):
            np.testing.assert_array_equal(a[own.start : own.stop], b)


def run_config(folder: Path | str, **options) -> Config:
    data = DataConfig(f"{folder}/train", f"{folder}/val", batch_frames=24)
    for name, value in options.items():
        setattr(data, name, value)
    method, training = AVHAlignConfig(head="linear"), TrainConfig(epochs=2, checkpoint_steps=3)
    return Config(method, data=data, train=training, optimizer=OptimizerConfig(1e-3))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        make_source(folder / split, [9, 1, 2, 20, 3, 17, 1, 30])
    return folder


@pytest.fixture(scope="module")
def streamed_losses(shards, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(run_config(shards, placement="stream", streams=2), workdir)
    return losses(workdir)


@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_every_placement_gives_the_same_losses(shards, streamed_losses, tmp_path, capsys, placement):
    train(run_config(shards, placement=placement, streams=2), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)
    said = {"auto": "features: host (local files"}.get(placement, f"features: {placement} (as asked")
    assert said in capsys.readouterr().out


def test_a_run_goes_on_in_another_placement(shards, streamed_losses, tmp_path):
    config = run_config(shards, placement="device", streams=2)
    config.train.epochs = 1
    train(config, tmp_path)
    train(run_config(shards, placement="stream", streams=2), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)


@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_shards_at_a_url_give_the_same_losses(shards, streamed_losses, tmp_path, capsys, placement):
    for split in ("train", "val"):
        for shard in list_shards(shards / split):
            as_path(f"memory://corpus/{split}/{shard.name}").write_bytes(shard.read_bytes())
    train(run_config("memory://corpus", placement=placement, streams=2), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)
    assert placement != "auto" or "features: stream (at a URL, 0.00 GB" in capsys.readouterr().out


def test_shards_copied_from_a_url_give_the_same_losses(shards, streamed_losses, tmp_path, capsys):
    for split in ("train", "val"):
        for shard in list_shards(shards / split):
            as_path(f"memory://copied/{split}/{shard.name}").write_bytes(shard.read_bytes())
    config = run_config("memory://copied", streams=2)
    config.data.cache = str(tmp_path / "cache")
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), streamed_losses, rtol=0, atol=2e-6)
    assert "features: host (local files" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("*-features-*.h5"))) == 6


COLLECTIVES = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@pytest.mark.parametrize("kind", [stream_frames, hold_frames])
def test_the_compiled_steps_move_gradients_once_and_no_features(tmp_path, mesh, kind):
    """Guards against moving features, or a gradient per offset of the window; both have happened."""
    source = make_source(tmp_path, [200, 200])
    options = {"loop_steps": 5} if kind is hold_frames else {}
    batches = next(kind(source, mesh, 16, 15, streams=2, **options).epoch(None).batches)
    network = AlignmentNetwork(source.width, rngs=nnx.Rngs(0))
    method, optimizer = avh_align.METHOD, make_optimizer(OptimizerConfig())
    graph, state = init_state(network, method.trained, optimizer)
    objective, state = Objective(method, graph, mesh, "zeros", 0), put_copies(mesh, state)
    leaves, tree = jax.tree.flatten((state, batches, np.float32(1)))
    steps = jax.jit(lambda *leaves: train_steps(objective, optimizer, *tree.unflatten(leaves)))
    program = steps.lower(*leaves).compile().as_text()
    moved = {}
    for shapes, name in COLLECTIVES.findall(program):
        sizes = [np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[([\d,]*)\]", shapes)]
        moved.setdefault(name, []).append(sum(sizes))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert parameters <= sum(moved.pop("all-reduce")) <= parameters + 10
    assert not moved


GIGABYTE = 10**9


def sizes(gigabytes, local=True, shards=1, streams=1, step=0) -> FeatureSize:
    return FeatureSize(gigabytes * GIGABYTE, local, shards, streams, step * GIGABYTE)


def memory(devices, host, accelerators=True, count=1) -> Memory:
    return Memory(devices * GIGABYTE, host * GIGABYTE, accelerators, count)


@pytest.mark.parametrize(
    ("asked", "source", "memory", "wanted", "reason"),
    [
        ("auto", sizes(42), memory(141, 100), "device", "42.00 GB fit into the devices' memory"),
        ("auto", sizes(42, local=False), memory(141, 100), "device", "fit into the devices'"),
        ("auto", sizes(42), memory(64, 100), "device", "42.00 GB fit into the devices' memory"),
        ("auto", sizes(42), memory(45, 100), "host", "local files, 100.00 GB of memory, 42.00 GB"),
        ("auto", sizes(42, step=20), memory(64, 100), "host", "local files"),
        ("auto", sizes(42), memory(0, 100), "host", "local files"),
        ("auto", sizes(42), memory(100, 100, accelerators=False), "host", "local files"),
        ("auto", sizes(42), memory(45, 64), "stream", "too much for the host's 64.00 GB"),
        ("auto", sizes(42, local=False), memory(45, 100), "stream", "at a URL"),
        ("auto", sizes(42, streams=8), memory(141, 100, count=4), "device", "fit"),
        ("auto", sizes(42), memory(141, 100, count=4), "host", "devices with --config.data.streams=4"),
        ("auto", sizes(1, shards=10**6), memory(0, 100), "stream", "more shards than half of the 1024 files"),
        ("stream", sizes(1), memory(141, 100), "stream", "as asked"),
        ("device", sizes(42), memory(141, 1), "device", "as asked"),
        ("device", sizes(42), memory(0, 1), "device", "as asked"),
    ],
)
def test_auto_chooses_by_size_and_says_why(asked, source, memory, wanted, reason):
    found, why = choose_placement(asked, source, memory)
    assert found == wanted
    assert reason in why


def test_features_that_do_not_fit_the_devices_are_refused():
    with pytest.raises(
        UserError, match=r"placement=device: 42.00 GB of features and 0.00 GB of a step .* use host or stream"
    ):
        choose_placement("device", sizes(42), memory(45, 100))
    with pytest.raises(
        UserError, match=r"42.00 GB of features and 20.00 GB of a step do not fit into 92% of the devices' memory"
    ):
        choose_placement("device", sizes(42, step=20), memory(64, 100))


def test_streams_that_do_not_fit_the_devices_are_refused(shards, tmp_path):
    with pytest.raises(UserError, match=r"placement=device: 2 devices would .*data\.streams=2 \(or a multiple\)"):
        train(run_config(shards, placement="device"), tmp_path / "run")
    with pytest.raises(UserError, match="streams=3: not a multiple of the 2 devices; use a number of devices that"):
        train(run_config(shards, streams=3, batch_frames=24), tmp_path / "run")
    with pytest.raises(UserError, match=r"batch_frames=25: not a multiple of data\.streams=2; choose one"):
        train(run_config(shards, streams=2, batch_frames=25), tmp_path / "run")


def test_a_batch_smaller_than_the_devices_is_refused(shards, tmp_path):
    with pytest.raises(UserError, match="batch_frames=1: fewer than the 2 devices"):
        train(run_config(shards, batch_frames=1), tmp_path / "run")


def test_float64_must_be_switched_on(shards, tmp_path):
    config = run_config(shards)
    config.train.precision = "float64"
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("url", [False, True])
def test_a_shard_that_vanishes_is_told(tmp_path, shards, url):
    folder = as_path("memory://vanishing") if url else tmp_path / "s"
    folder.mkdir()
    for shard in list_shards(shards / "train"):
        (folder / shard.name).write_bytes(shard.read_bytes())
    source = open_source(str(folder))
    (folder / "features-00001.h5").unlink()
    with pytest.raises((UserError, FileNotFoundError), match=r"features-00001\.h5"):
        source.features("visual", 3)


def test_a_shard_that_becomes_shorter_is_told(tmp_path):
    source = make_source(tmp_path, [50])
    file = tmp_path / "features-00000.h5"
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(UserError, match="has become shorter"):
        source.features("audio", 0)
