"""Methods on cuts, chunks and sequences, with small networks: batches, training, devices, scores, errors."""

import dataclasses
import itertools
import sys
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from apps import simulate as simulation
from apps.simulate import Corpus
from avh_shards import ClipMeta, UserError
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from jax_avh.config import check_config, list_settings
from jax_avh.configs import make_config
from jax_avh.data.batches import ExampleBatches, Examples, pass_order
from jax_avh.data.source import open_source
from jax_avh.evaluation.evaluate import evaluate
from jax_avh.inference import score_shards
from jax_avh.methods import METHODS
from jax_avh.models.alignment import LinearNetwork
from jax_avh.models.weights import save_weights
from jax_avh.parallel import DATA_AXIS
from jax_avh.training.progress import Preemption
from tests.jax_avh.data.test_batches import make_source
from tests.runs import curve, finish, losses, start_training, train
from tests.small import use_small_networks

CORPUS = Corpus(8, 4, 6, fakes=True, kinds=("local",), frames=(20, 60), width=8)
NAMES = ("rawnet2", "mds", "avad")
EPOCHS = {"avh_align": 1, "rawnet2": 3, "mds": 3, "avad": 5}  # enough for the loss to fall, at these rates
RATES = {"avh_align": "3e-3", "rawnet2": "1e-2", "mds": "1e-2", "avad": "3e-3"}
LOOKS = {"rawnet2": 7, "mds": 9, "avad": 5}  # checks for SIGTERM, the last of them within an epoch


class Numbers(Examples):
    """Examples whose inputs hold their own number."""

    def read(self, example):
        return {"number": np.array([example, -example])}


@hypothesis.given(st.integers(1, 20), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.none() | st.integers(0, 3))
@hypothesis.settings(max_examples=30)
def test_batches_hold_every_example_once_whatever_the_chunks(tmp_path_factory, count, part, chunks, epoch):
    source = make_source(tmp_path_factory.mktemp("s"), [1] * 3, labels=[0, 1, 0])
    examples = Numbers(source, np.sort(np.arange(count) % 3))
    order = pass_order(len(examples.clip), None if epoch is None else (0, epoch))
    batches = ExampleBatches(examples, order, part * chunks, chunks=chunks)
    found = []
    for batch in batches:
        assert batch.inputs["number"].shape == (chunks, part, 2)
        kept = batch.weight.ravel() > 0
        numbers = batch.inputs["number"].reshape(-1, 2)[kept, 0]
        np.testing.assert_array_equal(batch.label.ravel()[kept], source.labels[examples.clip[numbers]])
        found += numbers.tolist()
    assert found == order.tolist()
    assert sorted(found) == list(range(count))
    full = dataclasses.replace(batches, full_only=True)
    assert full.items.tolist() == [part * chunks] * (count // (part * chunks))
    own = [dataclasses.replace(batches, own=range(n, n + 1))[0] for n in range(chunks)]
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *own)
    jax.tree.map(np.testing.assert_array_equal, together, batches[0])


@pytest.fixture(scope="module")
def small():
    """Replaces the methods' networks by small ones."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_networks(patch)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, small) -> Path:
    """Creates simulated shards, and an alignment network trained on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "CORPORA", {"av_deepfake1m": CORPUS})
        root = tmp_path_factory.mktemp("corpus")
        simulation.simulate(root)
    root = root / "av_deepfake1m" / "untrimmed"
    train(run_config(root, "avh_align", {"data.batch_frames": "128", "method.head": "linear"}), root / "sync")
    return root


def run_config(root: Path, method: str, settings=None):
    chosen = {"data.train": str(root / "train"), "data.val": str(root / "val"), "data.batch_examples": "4"}
    chosen |= {"optimizer.learning_rate": RATES[method], "optimizer.warmup_epochs": "0"}
    chosen |= {"train.epochs": str(EPOCHS[method])}
    chosen |= {"method.sync_weights": str(root / "sync"), "method.windows": "30"} if method == "avad" else {}
    return make_config(chosen | (settings or {}) | {"method": method})


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Returns a function that returns the workdir of a method's uninterrupted run."""
    done = {}

    def run(method: str) -> Path:
        if method not in done:
            done[method] = tmp_path_factory.mktemp("runs") / method
            train(run_config(corpus, method), done[method])
        return done[method]

    return run


@pytest.mark.parametrize("method", ["avad", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mds", "rawnet2"))])
def test_a_run_learns(corpus, runs, method):
    _, (before, _), *_, (after, _) = losses(runs(method))
    assert after < 0.95 * before


@pytest.mark.parametrize("method", ["mds", *(pytest.param(m, marks=pytest.mark.slow) for m in ("avad", "rawnet2"))])
def test_a_run_stopped_within_an_epoch_ends_bit_for_bit_the_same(corpus, runs, tmp_path, monkeypatch, method):
    """Also compares statistics, dropout and the order of the examples."""
    looks = itertools.count(1)
    stop = len(open_source(corpus / "val").clips) // 2 + LOOKS[method]
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self: next(looks) == stop)
        progress = train(run_config(corpus, method), tmp_path)
    assert progress.step > 0
    train(run_config(corpus, method), tmp_path)
    assert curve(tmp_path) == curve(runs(method))
    best, other = ((folder / "best.safetensors").read_bytes() for folder in (tmp_path, runs(method)))
    assert best == other


def one_device(devices=None) -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("method", ["rawnet2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("avad", "mds"))])
def test_one_device_gives_the_losses_and_scores_of_two(corpus, runs, tmp_path, monkeypatch, method):
    score_shards(corpus / "test", tmp_path / "two.h5", weights=runs(method))
    for module in ("training.train", "data.passes"):
        monkeypatch.setattr(sys.modules[f"jax_avh.{module}"], "make_mesh", one_device)
    # Rounding moves MDS's first embeddings, of norm 100 or so, and Adam then diverges: see the slow test below.
    epochs = 0 if method == "mds" else 1
    train(run_config(corpus, method, {"train.epochs": str(epochs)}), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(runs(method))[: epochs + 1], rtol=1e-5)
    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], batch_size=3))
    table = score_shards(corpus / "test", tmp_path / "one.h5", weights=runs(method))
    other = score_shards(corpus / "test", tmp_path / "again.h5", weights=runs(method))
    np.testing.assert_allclose(table.clip, other.clip, rtol=1e-5)


SLOW = pytest.mark.slow
TOPOLOGIES = [  # method, processes, devices of each
    ("avh_sup", 2, 1),
    *(pytest.param(method, 1, 4, marks=SLOW) for method in NAMES),
    *(pytest.param(method, 2, 2, marks=SLOW) for method in NAMES),
    *(pytest.param(method, 3, 1, marks=SLOW) for method in (*NAMES, "avh_sup")),
]


@pytest.mark.parametrize(("method", "processes", "devices"), TOPOLOGIES)
def test_any_devices_and_processes_give_the_losses_of_one(corpus, tmp_path, monkeypatch, method, processes, devices):
    """Runs the command with the real networks, in double precision."""
    if method in ("rawnet2", "mds"):  # computing takes longer than compiling
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        monkeypatch.setenv("XLA_FLAGS", "")
    settings = {
        "data.train": corpus / "train",
        "data.val": corpus / "val",
        "train.epochs": 1,
        "method.name": method,
    }
    settings |= {"method.image": 32, "method.samples": 8000, "method.windows": 30}
    settings |= {"data.batch_examples": 3 if processes == 3 else 4, "data.batch_frames": 250}
    settings |= {"method.sync_weights": corpus / "sync"} if method == "avad" else {}
    for name, topology in {"one": (1, 1), "many": (processes, devices)}.items():
        finish(start_training(tmp_path / name, *topology, x64=True, **settings), tmp_path / name)
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-5)


def test_avad_starts_in_two_processes(corpus, runs, tmp_path):
    """Each process computes the window scores of all clips on its own devices; the slow test above trains on."""
    config = run_config(corpus, "avad", {"train.epochs": "0"})
    settings = {name: setting.value for name, setting in list_settings(config).items() if setting.value != ""}
    finish(start_training(tmp_path / "run", 2, **settings), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(runs("avad"))[:1], rtol=1e-4)


@pytest.mark.parametrize("method", ["rawnet2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mds", "avad"))])
def test_half_precision_trains(corpus, runs, tmp_path, method):
    train(run_config(corpus, method, {"train.precision": "bfloat16", "train.epochs": "1"}), tmp_path)
    exact, found = np.array(losses(runs(method)))[:2], np.array(losses(tmp_path))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], exact[:, 0], rtol=0.1)  # validation looks at few clips
    assert not np.array_equal(found, exact)


def test_other_sync_weights_at_the_same_place_are_another_run(corpus, tmp_path):
    config = run_config(
        corpus, "avad", {"train.epochs": "0", "method.sync_weights": str(tmp_path / "sync.safetensors")}
    )
    write_alignment(tmp_path / "sync.safetensors", seed=0)
    train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    write_alignment(tmp_path / "sync.safetensors", seed=1)
    with pytest.raises(UserError, match="other settings or features"):
        train(config, tmp_path / "run")


def write_alignment(path, seed):
    save_weights(LinearNetwork(8, rngs=nnx.Rngs(seed)), path, {"method": "avh_align"})


def test_sliding_scores_every_frame_and_short_clips_alike(corpus, runs, tmp_path):
    first = score_shards(corpus / "test", tmp_path / "first.h5", weights=runs("avad"))
    sliding = score_shards(corpus / "test", tmp_path / "sliding.h5", "avad_sliding", runs("avad"))
    assert (first.method, first.frame, sliding.method) == ("avad", None, "avad_sliding")
    short = np.diff(first.offset) <= 30
    assert 0 < short.sum() < len(short)
    np.testing.assert_allclose(first.clip[short], sliding.clip[short], rtol=1e-5)
    assert not np.isclose(first.clip[~short], sliding.clip[~short]).any()
    for n, score in enumerate(sliding.clip):
        frames = sliding.frame[slice(*sliding.offset[n : n + 2])]
        assert frames[1:].mean() == pytest.approx(score, rel=1e-5)


def write_clips(folder, lengths, store, sound=None):
    """Writes clips of noise with alternating labels; `store` names the contents besides features."""
    rng, stored = np.random.default_rng(0), []
    for n, frames in enumerate(lengths):
        features = ClipFeatures(*rng.standard_normal((2, frames, 8)).astype(np.float32))
        waveform = (rng.normal(0, 3000, 640 * frames) if sound is None else np.full(640 * frames, sound)).astype(
            np.int16
        )
        crops = rng.integers(0, 255, (frames, 96, 96), np.uint8)
        stored.append(StoredClip(ClipMeta(f"c{n}", n % 2), features, waveform.astype(np.int16), crops))
    attributes = {"encoder": "simulated", "weights_sha256": "simulated", "width": 8, "trimmed": False}
    ShardWriter(folder, "float32", attributes, store).write(0, [clip.meta for clip in stored], stored)
    return folder


@pytest.mark.parametrize("method", [*NAMES, "avad_sliding"])
def test_short_clips_and_silent_ones_have_scores(runs, tmp_path, method):
    """Scores clips of one frame, less than a chunk, and one and a half chunks; then digital silence."""
    for name, sound in (("noise", None), ("silence", 0)):
        shards = write_clips(tmp_path / name, [1, 2, 24, 37], ("waveform", "crops"), sound)
        weights = runs(METHODS[method].name.removesuffix("_sliding"))
        table = score_shards(shards, tmp_path / f"{name}.h5", method, weights)
        assert np.isfinite(table.clip).all()
        assert table.frame is None or np.isfinite(table.frame).all()


def test_frames_of_a_chunk_share_its_score_and_the_rest_takes_the_last(runs, tmp_path):
    shards = write_clips(tmp_path / "s", [62], ("waveform", "crops"))
    table = score_shards(shards, tmp_path / "s.h5", weights=runs("mds"))
    values = np.unique(table.frame)
    assert len(values) == 2
    np.testing.assert_array_equal(table.frame, np.repeat(table.frame[[0, 25]], [25, 37]))
    assert table.clip[0] == pytest.approx(values.mean(), rel=1e-6)


@pytest.mark.parametrize(("method", "deviation"), [("mds", "it sees grey mouth crops"), ("rawnet2", None)])
def test_what_is_not_the_published_system_is_said_beside_its_numbers(corpus, runs, tmp_path, method, deviation):
    score_shards(corpus / "test", tmp_path / "s.h5", weights=runs(method))
    said = [line for line in evaluate([tmp_path / "s.h5"]).metrics.warnings if "published system" in line]
    assert len(said) == (deviation is not None)
    assert deviation is None or f"mds is not the published system: {deviation}" in said[0]


@pytest.mark.parametrize(
    ("method", "store", "lacks"), [("rawnet2", ("crops",), "waveform"), ("mds", ("waveform",), "crops")]
)
def test_shards_without_what_is_read_are_refused(runs, tmp_path, method, store, lacks):
    shards = write_clips(tmp_path / "s", [30] * 4, store)
    config = run_config(tmp_path, method, {"data.train": str(shards), "data.val": str(shards)})
    for act in (
        lambda: train(config, tmp_path / "run"),
        lambda: score_shards(shards, tmp_path / "s.h5", weights=runs(method)),
    ):
        with pytest.raises(UserError, match=f"hold no {lacks}; extract them with --store={lacks}"):
            act()


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("rawnet2", {"data.batch_examples": "3"}, "not a multiple of the 2 devices"),
        ("rawnet2", {"data.batch_examples": "10"}, "has 8 examples, fewer than one batch"),
        ("rawnet2", {"data.placement": "device"}, "reads its examples ahead; use auto"),
        ("rawnet2", {"init": "sync"}, "trained as avh_align; give weights of rawnet2"),
        ("avad", {"method.sync_weights": "nowhere.safetensors"}, "no such file of weights"),
        ("avad", {"method.sync_weights": "rawnet2"}, "weights of rawnet2; --config.method.sync_weights needs"),
        ("avad", {"method.sync_weights": "wide"}, "takes features of width 16, but"),
    ],
)
def test_what_cannot_be_trained_is_told(corpus, runs, tmp_path, method, settings, reason):
    wide = make_source(tmp_path / "wide_shards", [30] * 3).path.parent  # of width 4
    places = {"sync": str(corpus / "sync" / "best.safetensors"), "rawnet2": str(runs("rawnet2")), "wide": str(wide)}
    if settings.get("method.sync_weights") == "wide":
        settings = settings | {"data.train": str(tmp_path / "wide_shards"), "data.val": str(tmp_path / "wide_shards")}
        places, reason = {"wide": str(corpus / "sync")}, "takes features of width 8, but"
    settings = {name: places.get(value, value) for name, value in settings.items()}
    with pytest.raises(UserError, match=reason):
        train(run_config(corpus, method, settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "avad"}, "sync_weights is missing; give a trained avh_align"),
        ({"method": "mds", "method.image": "100"}, "image=100: must be a multiple of 32"),
        ({"method": "mds", "method.width_multiplier": "2"}, "width_multiplier=2.0: must be above 0 and at most 1"),
        ({"method": "avad", "method.sync_weights": "x", "method.windows": "1"}, "windows=1: must be at least 2"),
        ({"method": "rawnet2", "optimizer.schedule": "linear"}, "schedule=linear: must be plateau or cosine"),
        ({"method": "rawnet2", "optimizer.weight_decay": "-1"}, "weight_decay=-1.0: must not be negative"),
    ],
)
def test_settings_that_mean_nothing_are_told(settings, reason):
    with pytest.raises(UserError, match=reason):
        check_config(make_config({"data.train": "a", "data.val": "b"} | settings))
