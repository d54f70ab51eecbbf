"""Methods on frames and clips, against the official programs' outputs and a second computation."""

import dataclasses
import functools
import itertools
import json
import re
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh
from scipy.special import logsumexp

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from jax_avh.config import check_config
from jax_avh.configs import avh_align, make_config
from jax_avh.data.batches import frame_batches, frame_streams
from jax_avh.data.loaders import hold_frames, stream_frames
from jax_avh.data.source import open_source
from jax_avh.inference import score_shards
from jax_avh.methods import METHODS, untrained
from jax_avh.methods.avh_sup import clip_cross_entropy
from jax_avh.models.alignment import MODALITY_FEATURES, NETWORKS
from jax_avh.models.weights import load_weights, save_weights
from jax_avh.parallel import DATA_AXIS, make_mesh, put_copies
from jax_avh.scores import open_scores
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.progress import Preemption
from jax_avh.training.step import Objective, init_state, train_steps
from tests import rules
from tests.jax_avh.data.test_batches import held_source, lengths_st, make_source
from tests.runs import losses, train

KINDS = [(head, modality) for head in NETWORKS for modality in MODALITY_FEATURES]


def write_shard(folder, clips, waveforms=None, **attributes):
    """Writes a shard of clips: (path, label, visual, audio)."""
    fixed = {"encoder": "test", "weights_sha256": "0", "width": clips[0][2].shape[1], "trimmed": False}
    writer = ShardWriter(folder, "float32", fixed | attributes, () if waveforms is None else ("waveform",))
    waveforms = waveforms or [None] * len(clips)
    stored = [
        StoredClip(ClipMeta(path, label=label), ClipFeatures(visual, audio), waveform)
        for (path, label, visual, audio), waveform in zip(clips, waveforms, strict=True)
    ]
    writer.write(0, [clip.meta for clip in stored], stored)
    return folder


# --- AVH-Align/sup ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supervised(shared):
    return json.loads(shared("training/supervised.json").read_text())


@pytest.fixture(scope="module")
def supervised_shards(tmp_path_factory):
    """Writes the recorded runs' clips in their order, once and twice."""
    clips = [(path, fake, *rules.feature_clip(path, frames, fake)) for path, frames, fake in rules.CLIPS["test"]]
    folder = tmp_path_factory.mktemp("supervised")
    twice = clips + [(f"again/{path}", *rest) for path, *rest in clips]
    return write_shard(folder / "once", clips), write_shard(folder / "twice", twice)


@pytest.mark.parametrize(
    ("head", "modality"),
    [pytest.param(*kind, marks=pytest.mark.slow) if kind == ("mlp", "video") else kind for kind in KINDS],
)
def test_one_clip_a_step_is_the_official_training(supervised, supervised_shards, tmp_path, head, modality):
    """Compares the scores before, the loss of each step, and the scores after."""
    record = supervised[f"{head}/{modality}"]
    network = write_rule_network(tmp_path / "w.safetensors", record["keys"], modality)
    once, twice = supervised_shards
    before = score_shards(once, tmp_path / "before.h5", weights=tmp_path / "w.safetensors")
    assert before.method == "avh_sup"
    np.testing.assert_allclose(before.clip, record["initial_scores"], rtol=0, atol=1e-4)
    config, mesh = make_config({"method": "avh_sup", "method.modality": modality}), make_mesh()
    objective, optimizer, state = start(config, network, mesh)
    step_losses = []
    loader = stream_frames(open_source(twice), mesh, 9, 0, whole_clips=True, clips=1)
    for batches in loader.epoch(None).batches:
        rate = np.float32(config.optimizer.learning_rate)
        state, loss = train_steps(objective, optimizer, state, batches, rate)
        step_losses += loss.tolist()
    np.testing.assert_allclose(step_losses, record["step_losses"], rtol=0, atol=1e-4)
    save_weights(nnx.merge(objective.graph, state.params), tmp_path / "w.safetensors")
    after = score_shards(once, tmp_path / "after.h5", method="avh_sup", weights=tmp_path / "w.safetensors")
    np.testing.assert_allclose(after.clip, record["final_scores"], rtol=0, atol=1e-4)


def start(config, network, mesh):
    """Returns the initial state of a run's steps."""
    method, optimizer = METHODS[config.method.name], make_optimizer(config.optimizer)
    graph, state = init_state(network, method.trained, optimizer)
    objective = Objective(method, graph, mesh, config.model.boundary, config.seed)
    return objective, optimizer, put_copies(mesh, state)


def write_rule_network(path, keys, modality):
    arrays = {name: rules.fill(name, tuple(shape)).astype(np.float32) for name, shape in keys.items()}
    notes = json.dumps({"method": "avh_sup", "modality": modality})
    safetensors.numpy.save_file(arrays, path, {"avh-align": notes})
    return load_weights(path)


@hypothesis.given(lengths_st, st.integers(0, 99), st.sampled_from([1, 30, 300]))
@hypothesis.settings(max_examples=15)
def test_packed_cross_entropy_is_that_of_each_clip(lengths, seed, scale):
    """Adds frames around that do not count, from other clips or none."""
    rng, frames = np.random.default_rng(seed), sum(lengths)
    logits = (scale * rng.standard_normal(80)).astype(np.float32)
    counted = np.arange(2, 2 + frames)
    numbers, labels = np.arange(len(lengths)) + 7, rng.integers(0, 2, len(lengths))
    clip, label, weight = np.full(80, -1, np.int32), np.zeros(80, np.int32), np.zeros(80, np.float32)
    clip[counted], label[counted], weight[counted] = np.repeat(numbers, lengths), np.repeat(labels, lengths), 1
    clip[0], clip[2 + frames] = 6, 7 + len(lengths)
    clips = (logsumexp(logits[clip == n].astype(np.float64)) for n in numbers)
    wanted = sum(np.logaddexp(0, 2 * s if y == 0 else -2 * s) for s, y in zip(clips, labels, strict=True))
    loss, gradient = loss_and_gradient(*map(jnp.asarray, (logits, clip, label, weight)))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[weight == 0].any()


loss_and_gradient = jax.jit(jax.value_and_grad(clip_cross_entropy))


def test_segments_of_clips_are_known_to_be_sorted():
    """A TPU scatters into unsorted segments one element after the other."""
    arguments = jnp.zeros(6), jnp.array([-1, 3, 3, 4, 5, -1]), jnp.ones(6, jnp.int32), jnp.array([0, 1, 1, 1, 0, 0.0])
    program = str(jax.make_jaxpr(jax.value_and_grad(clip_cross_entropy))(*arguments))
    assert "indices_are_sorted=True" in program
    scatters = re.findall(r"scatter\S*\[(?:.|\n)*?indices_are_sorted=(\w+)", program)
    assert scatters == ["True"] * len(scatters)
    assert scatters


@hypothesis.given(lengths_st, st.integers(1, 20), st.integers(0, 4), st.none() | st.integers(0, 9))
@hypothesis.settings(max_examples=40)
def test_batches_of_whole_clips_hold_each_clip_once(lengths, frames, clips, epoch):
    source = held_source(lengths)
    (stream,) = streams = frame_streams(source, None if epoch is None else (0, epoch))
    plan = frame_batches(streams, frames, whole_clips=True, clips=clips)
    (border,) = plan.border
    assert set(border) <= set(stream.border)
    assert (border[0], border[-1], plan.items.sum()) == (0, stream.frames, len(lengths))
    assert plan.sizes.max() <= plan.chunk_frames <= max(frames, *lengths)
    assert not clips or plan.items.max() <= clips
    for size, items, end in zip(plan.sizes[:-1], plan.items, border[1:], strict=False):  # no batch could hold more
        following = lengths[stream.order[np.searchsorted(stream.border, end)]]
        assert size + following > plan.chunk_frames or items == clips
    other = frame_batches(frame_streams(source, (1, 1)), frames, whole_clips=True, clips=clips)
    assert plan.chunk_frames == other.chunk_frames


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    """Writes shards whose fakes are recognisable by their audio, and returns a run's configuration."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("separable")
    for split in ("train", "val"):
        clips = []
        for n in range(14):
            visual, audio = rng.standard_normal((2, int(rng.integers(1, 30)), 8)).astype(np.float32)
            clips.append((f"{split}{n}.mp4", n % 2, visual, audio + 3 * (n % 2)))
        write_shard(folder / split, clips)
    config = make_config({"method": "avh_sup", "data.train": f"{folder}/train", "data.val": f"{folder}/val"})
    config.method.head, config.optimizer.learning_rate = "linear", 0.1
    config.data.batch_frames, config.train.epochs, config.train.checkpoint_steps = 40, 4, 2
    return config


@pytest.fixture(scope="module")
def unbroken(separable, tmp_path_factory):
    """Returns the workdir of an uninterrupted run on one device, by the number of streams."""

    @functools.cache
    def run(streams):
        workdir = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["jax_avh.training.train"], "make_mesh", lambda: mesh_of(1))
            train(with_data(separable, streams=streams), workdir)
        return workdir

    return run


def with_data(config, **settings):
    """Returns a configuration with other settings of its data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **settings))


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    ("placement", "streams", "stop"), [pytest.param("stream", 1, 16, marks=pytest.mark.slow), ("device", 2, 9)]
)
def test_a_supervised_run_is_the_same_on_two_devices_stopped_within_an_epoch(
    separable, unbroken, tmp_path, monkeypatch, placement, streams, stop
):
    config = with_data(separable, placement=placement, streams=streams)
    with monkeypatch.context() as patch:
        looks = itertools.count(1)
        patch.setattr(Preemption, "reached", lambda self: next(looks) == stop)
        progress = train(config, tmp_path)
    assert progress.epoch >= 0
    assert progress.step > 0
    train(config, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(unbroken(streams)), rtol=0, atol=1e-4)


def test_a_supervised_run_learns_what_its_labels_show(separable, unbroken, tmp_path):
    (_, before), *_, (_, after) = losses(unbroken(1))
    assert after < before / 2
    table = score_shards(separable.data.val, tmp_path / "s.h5", weights=unbroken(1))
    label = np.array([clip.label for clip in table.clips])
    assert table.method == "avh_sup"
    assert table.clip[label == 1].min() > table.clip[label == 0].max()


def test_epochs_of_packed_clips_on_the_devices_share_their_programs(separable):
    """Checks that no order of the clips, each of which has different batches, compiles a new program."""
    source, mesh = open_source(separable.data.train).labelled(REAL, FAKE), mesh_of(1)
    loader = hold_frames(source, mesh, 40, 0, loop_steps=3, whole_clips=True)
    network = NETWORKS["linear"](source.width, rngs=nnx.Rngs(0))
    objective, optimizer, state = start(separable, network, mesh)
    steps = set()
    before = train_steps._cache_size()
    for number in range(5):
        epoch = loader.epoch((0, number))
        steps.add(len(epoch.items))
        for batches in epoch.batches:
            state, _ = train_steps(objective, optimizer, state, batches, np.float32(1e-3))
    assert len(steps) > 1
    assert train_steps._cache_size() <= before + 2  # of three steps, and of one


# --- methods without training ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def similarity_cases(shared, tmp_path_factory):
    """Writes the recorded cases as a shard; where lengths differ, they are cut as in each official program."""
    record = json.loads(shared("methods/scores.json").read_text())["cases"]
    folder = tmp_path_factory.mktemp("cases")
    made = {name: similarity_clip(name) for name in record}
    resampled = {
        n: (v[record[n]["speechforensics"]["visual_index_map"] or slice(None)], a) for n, (v, a) in made.items()
    }
    cut = {name: (v[: len(a)], a[: len(v)]) for name, (v, a) in made.items()}
    return record, {
        method: write_shard(folder / method, [(f"{name}.mp4", -1, *pair) for name, pair in clips.items()])
        for method, clips in (("speech_forensics", resampled), ("factor", cut))
    }


def similarity_clip(name):
    i = int(name.removeprefix("case").partition("_")[0])
    visual_frames, audio_frames = {6: (52, 47), 7: (60, 75)}.get(i, (40 + 13 * i, 40 + 13 * i))
    visual, audio = (
        np.random.RandomState(seed + i).standard_normal((frames, 1024)).astype(np.float32)
        for seed, frames in ((100, visual_frames), (200, audio_frames))
    )
    late = np.roll(visual, 2, axis=0)
    if i % 2 == 0 or i == 7:
        n = min(visual_frames, audio_frames)
        audio[:n] = np.float32(0.5) * late[:n] + np.float32(0.5) * audio[:n]
    return visual, audio


@pytest.mark.parametrize("method", ["speech_forensics", "factor"])
@pytest.mark.parametrize("batch_frames", [64, 8192])
def test_scores_without_training_equal_the_official_programs(similarity_cases, tmp_path, method, batch_frames):
    record, shards = similarity_cases
    table = score_shards(shards[method], tmp_path / "s.h5", method, batch_frames=batch_frames)
    sign, name = {"speech_forensics": (-1, "speechforensics"), "factor": (1, "factor")}[method]
    wanted = [sign * record[clip.path.removesuffix(".mp4")][name]["score"] for clip in table.clips]
    np.testing.assert_allclose(table.clip, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_frames", [7, 64, 8192])
def test_speech_forensics_hears_the_first_50_seconds(tmp_path, batch_frames):
    """Compares with the definition on clips cut there, clip by clip and for any batches."""
    rng, tau = np.random.default_rng(0), untrained.TAU
    lengths = [1300, 5, 1250, 1251, 17] if batch_frames > 7 else [5, 17, 3]
    clips = [(f"{n}.mp4", 0, *rng.standard_normal((2, n, 8)).astype(np.float32)) for n in lengths]
    folder = write_shard(tmp_path / "s", clips)
    table = score_shards(folder, tmp_path / "s.h5", "speech_forensics", batch_frames=batch_frames)
    for n, (_, _, *features) in enumerate(clips):
        visual, audio = (x[:1250] / np.linalg.norm(x[:1250], axis=1, keepdims=True) for x in features)
        padded = np.pad(audio, ((tau, tau), (0, 0)))
        means = [(visual * padded[offset : offset + len(visual)]).sum(axis=1).mean() for offset in range(2 * tau + 1)]
        np.testing.assert_allclose(table.clip[n], -max(means), atol=1e-5)
        frame = table.frame[slice(*table.offset[n : n + 2])]
        np.testing.assert_allclose(frame.mean(), table.clip[n], atol=1e-5)


def test_length_and_silence_are_scores_of_clips(tmp_path):
    rng = np.random.default_rng(0)
    lengths, silent = [5, 30, 60], [0, 480, 38_400]  # samples
    sounds = [np.pad(np.full(640 * n - s, 99, np.int16), (s, 0)) for n, s in zip(lengths, silent, strict=True)]
    clips = [(f"{n}.mp4", 0, *rng.standard_normal((2, n, 8)).astype(np.float32)) for n in lengths]
    folder = write_shard(tmp_path / "s", clips, sounds)
    for method, wanted in {
        "clip_length": [0.2, 1.2, 2.4],
        "leading_silence": [0, 0.03, 2.4],
        "leading_amplitude": [-99 / 32768, 0, 0],
    }.items():
        table = score_shards(folder, tmp_path / f"{method}.h5", method)
        assert table.frame is None
        np.testing.assert_allclose(table.clip, wanted, rtol=1e-6)
        assert open_scores(tmp_path / f"{method}.h5").frame is None


# --- choice of the method --------------------------------------------------------------------------------------------


def test_methods_that_do_not_go_with_shards_or_weights(tmp_path):
    source = make_source(tmp_path / "s", [5])
    network = NETWORKS["mlp"](source.width, rngs=nnx.Rngs(0))
    save_weights(network, tmp_path / "w.safetensors", {"method": "avh_sup", "weights_sha256": "1"})
    weights = tmp_path / "w.safetensors"
    for options, reason in {
        (("method", "leading_silence"),): "features-00000.h5: its shards hold no waveform; extract them with --store",
        (("method", "avh_align"),): "avh_align needs --weights",
        (): "--weights: required here",
        (("method", "factor"), ("weights", weights)): "takes no --weights",
        (("method", "avh_align"), ("weights", weights)): "was trained as avh_sup, not as avh_align",
        (("weights", weights),): "was trained on features of another encoder",
    }.items():
        with pytest.raises(UserError, match=reason):
            score_shards(tmp_path / "s", tmp_path / "out.h5", **dict(options))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "factor"}, "method.name=factor: must be avh_align or avh_sup"),
        ({"method": "avh_align", "method.modality": "audio"}, "modality=audio: must be both"),
        ({"method.head": "deep"}, "head=deep: must be mlp or linear"),
        ({"data.batch_clips": "-1"}, "must not be negative"),
    ],
)
def test_settings_that_mean_nothing(settings, reason):
    with pytest.raises(UserError, match=reason):
        check_config(make_config({"data.train": "a", "data.val": "b"} | settings))


def test_a_method_brings_its_own_settings_and_the_users_stand():
    assert make_config({"method": "avh_align"}) == make_config({}) == avh_align.get_config()
    config = make_config({"optimizer.learning_rate": "0.5", "method": "avh_sup"})
    assert (config.optimizer.learning_rate, config.optimizer.plateau_factor, config.train.epochs) == (0.5, 1.0, 100)


def test_initial_weights_of_another_kind_are_refused(tmp_path):
    make_source(tmp_path / "s", [5, 5], labels=[0, 1])
    save_weights(NETWORKS["linear"](4, rngs=nnx.Rngs(0)), tmp_path / "w.safetensors")
    settings = {"method": "avh_sup", "data.train": f"{tmp_path}/s", "data.val": f"{tmp_path}/s"}
    with pytest.raises(UserError, match=r"weights of a network with .*, but the settings ask for"):
        train(make_config(settings | {"init": f"{tmp_path}/w.safetensors"}), tmp_path / "run")
    save_weights(NETWORKS["mlp"](4, rngs=nnx.Rngs(0)), tmp_path / "w.safetensors", {"method": "avh_align"})
    with pytest.raises(UserError, match="trained as avh_align; give weights of avh_sup"):
        train(make_config(settings | {"init": f"{tmp_path}/w.safetensors"}), tmp_path / "run")
    make_source(tmp_path / "real", [5, 5])
    with pytest.raises(UserError, match="none of its 2 clips is labelled fake"):
        train(make_config(settings | {"data.val": f"{tmp_path}/real"}), tmp_path / "run")


def test_a_training_set_of_another_size_is_a_part_of_it(tmp_path):
    source = make_source(tmp_path / "s", [1, 2, 3, 4, 5, 6, 7])
    few, same, other = source.sample(3, 0), source.sample(3, 0), source.sample(3, 1)
    assert few.members == same.members != other.members
    assert set(few.members) < set(source.members)
    assert list(few.members) == sorted(few.members)
    assert source.sample(9, 0) is source
