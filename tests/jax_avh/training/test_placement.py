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
from jax_avh.data.batches import frame_stream
from jax_avh.data.loaders import FeatureSize, Memory, choose_placement, hold_frames, stream_frames
from jax_avh.data.source import open_source
from jax_avh.methods import avh_align
from jax_avh.methods.avh_align import AVHAlignConfig
from jax_avh.models import AlignmentNetwork
from jax_avh.parallel import make_mesh, put_copies
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.step import Objective, init_state, train_steps
from tests.jax_avh.data.test_batches import lengths_st, make_batches, make_source
from tests.runs import losses, train


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@hypothesis.given(lengths_st, st.integers(2, 20), st.integers(1, 4), st.none() | st.integers(0, 9), st.integers(1, 5))
@hypothesis.settings(max_examples=6)
def test_batches_gathered_on_the_devices_are_those_of_the_stream(
    tmp_path_factory, mesh, lengths, batch_frames, tau, epoch, loop_steps
):
    source = make_source(tmp_path_factory.mktemp("s"), lengths)
    seed = None if epoch is None else (0, epoch)
    wanted = list(make_batches(frame_stream(source, seed), batch_frames, tau, mesh.size))
    found = []
    for batches in hold_frames(source, mesh, batch_frames, tau, loop_steps).epoch(seed).batches:
        assert 1 <= len(batches) <= loop_steps
        found += jax.jit(lambda b: [b[jnp.int32(step)] for step in range(len(b))])(batches)
    for batch, other in zip(found, wanted, strict=True):
        for a, b in zip(batch, other, strict=True):
            np.testing.assert_array_equal(a, b)


@hypothesis.given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_loops_end_at_the_same_steps_wherever_they_start(tmp_path_factory, mesh, steps, loop_steps, data):
    """Checks that a run resumed within an epoch compiles and computes the same as the uninterrupted one."""
    loader = hold_frames(make_source(tmp_path_factory.mktemp("s"), [steps * 2]), mesh, 2, 1, loop_steps)

    def ends(first):
        return [first + n for n in itertools.accumulate(len(batches) for batches in loader.epoch(None, first).batches)]

    first = data.draw(st.sampled_from([0, *ends(0)]))
    assert ends(first) == [end for end in ends(0) if end > first]


@hypothesis.given(lengths_st, st.integers(1, 20), st.integers(0, 4), st.integers(1, 4), st.data())
def test_a_process_reads_its_own_chunks_alone(tmp_path_factory, lengths, size, tau, chunks, data):
    stream = frame_stream(make_source(tmp_path_factory.mktemp("s"), lengths), (0, 0))
    start = data.draw(st.integers(0, chunks - 1))
    own = range(start, data.draw(st.integers(start + 1, chunks)))
    whole = make_batches(stream, size, tau, chunks)
    for batch, part in zip(whole, make_batches(stream, size, tau, chunks, own), strict=True):
        for a, b in zip(batch, part, strict=True):
            np.testing.assert_array_equal(a[own.start : own.stop], b)


def run_config(folder: Path | str, **options) -> Config:
    data = DataConfig(f"{folder}/train", f"{folder}/val", batch_frames=25)
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
    train(run_config(shards, placement="stream"), workdir)
    return losses(workdir)


@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_every_placement_gives_the_same_losses(shards, streamed_losses, tmp_path, capsys, placement):
    train(run_config(shards, placement=placement), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)
    said = {"auto": "features: host (0.00 GB in local files"}.get(placement, f"features: {placement} (as asked")
    assert said in capsys.readouterr().out


def test_a_run_goes_on_in_another_placement(shards, streamed_losses, tmp_path):
    config = run_config(shards, placement="device")
    config.train.epochs = 1
    train(config, tmp_path)
    train(run_config(shards, placement="stream"), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)


@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_shards_at_a_url_give_the_same_losses(shards, streamed_losses, tmp_path, capsys, placement):
    for split in ("train", "val"):
        for shard in list_shards(shards / split):
            as_path(f"memory://corpus/{split}/{shard.name}").write_bytes(shard.read_bytes())
    train(run_config("memory://corpus", placement=placement), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), streamed_losses, rtol=0, atol=2e-6)
    assert placement != "auto" or "features: stream (0.00 GB at a URL)" in capsys.readouterr().out


def test_shards_copied_from_a_url_give_the_same_losses(shards, streamed_losses, tmp_path, capsys):
    for split in ("train", "val"):
        for shard in list_shards(shards / split):
            as_path(f"memory://copied/{split}/{shard.name}").write_bytes(shard.read_bytes())
    config = run_config("memory://copied")
    config.data.cache = str(tmp_path / "cache")
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), streamed_losses, rtol=0, atol=2e-6)
    assert "features: host (0.00 GB in local files" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("*-features-*.h5"))) == 6


COLLECTIVES = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@pytest.mark.parametrize("kind", [stream_frames, hold_frames])
def test_the_compiled_steps_move_gradients_once_and_features_by_the_batch(tmp_path, mesh, kind):
    """Guards against moving all features, or a gradient per offset of the window; both have happened."""
    frames, batch_frames, tau = 4000, 16, 15
    source = make_source(tmp_path, [frames])
    options = {"loop_steps": 5} if kind is hold_frames else {}
    batches = next(kind(source, mesh, batch_frames, tau, **options).epoch(None).batches)
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
    features = (batch_frames + 2 * tau * mesh.size + batch_frames) * source.width
    assert parameters <= sum(moved.pop("all-reduce")) <= parameters + 10
    assert moved.pop("reduce-scatter", []) == ([features // mesh.size] if kind is hold_frames else [])
    assert not moved
    assert features < frames * source.width / 10


GIGABYTE = 10**9


def sizes(gigabytes, local=True, shards=1) -> FeatureSize:
    return FeatureSize(gigabytes * GIGABYTE, local, shards)


@pytest.mark.parametrize(
    ("asked", "source", "memory", "wanted", "reason"),
    [
        ("auto", sizes(42), (141, 100, True), "device", "42.00 GB fit into the devices' 141.00 GB"),
        ("auto", sizes(42, local=False), (141, 100, True), "device", "fit into the devices'"),
        ("auto", sizes(42), (64, 100, True), "host", "42.00 GB in local files, 100.00 GB of memory"),
        ("auto", sizes(42), (100, 100, False), "host", "in local files"),
        ("auto", sizes(42), (64, 64, True), "stream", "too much for the host's 64.00 GB"),
        ("auto", sizes(42, local=False), (64, 100, True), "stream", "at a URL"),
        ("auto", sizes(1, shards=10**6), (0, 100, True), "stream", "more shards than half of the"),
        ("stream", sizes(1), (141, 100, True), "stream", "as asked"),
        ("device", sizes(42), (141, 1, True), "device", "as asked"),
    ],
)
def test_auto_chooses_by_size_and_says_why(asked, source, memory, wanted, reason):
    devices, host, accelerators = memory
    found, why = choose_placement(asked, source, Memory(devices * GIGABYTE, host * GIGABYTE, accelerators))
    assert found == wanted
    assert reason in why


def test_features_that_do_not_fit_the_devices_are_refused():
    memory = Memory(64 * GIGABYTE, 100 * GIGABYTE, accelerators=True)
    with pytest.raises(UserError, match=r"placement=device: 42.00 GB of features do not fit .* use host or stream"):
        choose_placement("device", sizes(42), memory)


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
