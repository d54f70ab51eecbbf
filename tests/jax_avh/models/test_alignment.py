"""The alignment network: the vectorised window against single pairs (values and gradients), borders and zeros."""

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
from flax import nnx
from hypothesis import strategies as st

from avh_shards import UserError
from jax_avh.data.batches import FrameBatch
from jax_avh.methods import avh_align
from jax_avh.models.alignment import AlignmentNetwork, plain_scores
from jax_avh.models.layers import normalise
from jax_avh.models.weights import load_weights, save_weights
from jax_avh.models.windows import FORMS, Form, mean_squares, window_scores, windowed_softmax_loss
from tests import rules

WIDTH = 16

STEPS = Form(6, 72, ("float32",))  # four offsets at a time of the 15 that a batch of 18 frames has below


@pytest.fixture(scope="module")
def network():
    return AlignmentNetwork(WIDTH, rngs=nnx.Rngs(0))


def make_batch(lengths, tau, seed=0, dtype=np.float32, zero_frame=None):
    """Returns a batch of clips laid end to end, padded with tau empty audio frames on each side."""
    rng = np.random.default_rng(seed)
    frames = sum(lengths)
    visual, audio = rng.standard_normal((2, frames, WIDTH)).astype(dtype)
    if zero_frame is not None:
        visual[zero_frame] = audio[zero_frame] = 0
    clip = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return FrameBatch(
        jnp.asarray(visual),
        jnp.asarray(np.pad(audio, ((tau, tau), (0, 0)))),
        jnp.asarray(np.pad(clip, tau, constant_values=-1)),
        jnp.ones(frames, dtype),
        jnp.zeros(frames, jnp.int32),
    )


def pairwise_losses(network, batch, boundary):
    """Computes the loss by definition: scores every pair of the window, then takes -log softmax at the centre."""
    frames, window = len(batch.visual), len(batch.clip) - len(batch.visual) + 1
    t, w = (index.ravel() for index in np.indices((frames, window)))
    inside = batch.clip[t + w] == batch.clip[t + window // 2]
    audio = jnp.where(inside[:, None], batch.audio[t + w], jnp.zeros((1, WIDTH), batch.audio.dtype))
    scores = jax.vmap(full_network, (None, 0, 0))(network, batch.visual[t], audio).reshape(frames, window)
    competing = inside.reshape(frames, window) | (boundary == "zeros")
    return -jax.nn.log_softmax(scores, where=competing)[:, window // 2]


# Compiled once per shape for all tests.
@functools.partial(jax.jit, static_argnames=("graph", "boundary", "form"))
def compiled_scores(graph, params, batch, boundary="zeros", form=None):
    return window_scores(nnx.merge(graph, params), batch, boundary, form)


@functools.partial(jax.jit, static_argnames=("graph", "boundary", "form"))
def loss_and_gradients(graph, params, batch, boundary, form):
    """Returns the loss of all frames and its gradients with respect to parameters and visual frames.

    The form "pairs" is the definition.
    """

    def loss(params, visual):
        network, frames = nnx.merge(graph, params), batch._replace(visual=visual)
        if form == "pairs":
            return pairwise_losses(network, frames, boundary).sum()
        return windowed_softmax_loss(*window_scores(network, frames, boundary, form)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(params, batch.visual)


def full_network(network, visual, audio):
    """Applies the network layer by layer to one pair."""

    def unit(x):
        norm = jnp.sqrt(jnp.sum(x * x))
        return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), x)

    hidden = jnp.concatenate([network.visual_proj(unit(visual)), network.audio_proj(unit(audio))])
    for layer in network.mlp.layers:
        hidden = layer(hidden)
    return hidden[0]


def test_the_plain_forward_pass_is_the_fast_one(network):
    visual, audio = jnp.asarray(np.random.default_rng(0).standard_normal((2, 40, WIDTH)).astype(np.float32))
    plain = plain_scores(network, visual, audio)
    assert plain.std() > 0.01
    np.testing.assert_allclose(network(visual, audio), plain, atol=1e-5)
    np.testing.assert_allclose(network.score_folded(network.fold(), visual, audio), plain, atol=1e-5)


CASES = {
    "one long clip": ([18], 7),
    "clips shorter than the window": ([2, 5, 3, 1, 4, 3], 7),
    "clips of one frame": ([1] * 18, 7),
    "a single frame": ([1], 4),
}


@pytest.mark.parametrize(
    ("case", "boundary"),
    [
        pytest.param(case, boundary, marks=[pytest.mark.slow] if (case, boundary) == ("a single frame", "mask") else [])
        for case in CASES
        for boundary in ("zeros", "mask")
    ],
)
def test_vectorised_loss_equals_pairs_one_by_one(network, case, boundary):
    lengths, tau = CASES[case]
    batch = make_batch(lengths, tau, zero_frame=0 if sum(lengths) > 1 else None)
    wanted, (wanted_gradient, _) = loss_and_gradients(*nnx.split(network), batch, boundary, "pairs")
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted_gradient))
    for form in (FORMS["cpu"], STEPS):
        found, (gradient, _) = loss_and_gradients(*nnx.split(network), batch, boundary, form)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
            assert float(jnp.abs(a - b).max()) <= 1e-5 * scale


def test_chunks_are_scored_like_batches_of_their_own(network):
    batches = [make_batch(lengths, 7, seed) for seed, lengths in enumerate([[18], [2, 5, 11], [9, 9]])]
    together = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
    scores, competing = compiled_scores(*nnx.split(network), together, "mask", STEPS)
    for number, batch in enumerate(batches):
        wanted, mask = compiled_scores(*nnx.split(network), batch, "mask", STEPS)
        np.testing.assert_allclose(scores[number], wanted, atol=1e-6)
        np.testing.assert_array_equal(competing[number], mask)


def test_under_x64_they_agree_to_rounding():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax's layer norm requires it in float64
        network = AlignmentNetwork(WIDTH, rngs=nnx.Rngs(0), precision="float64")
        batch = make_batch([5, 12, 1], 7, dtype=np.float64)
        values, gradients = zip(
            *(loss_and_gradients(*nnx.split(network), batch, "zeros", form) for form in ("pairs", FORMS["cpu"])),
            strict=True,
        )
        np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
        for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@hypothesis.given(st.sets(st.integers(1, 17), max_size=5), st.sampled_from([1, 9]))
def test_where_a_batch_is_cut_changes_no_frame(network, borders, cut):
    """A batch that ends inside a clip, with its halo, has the same scores as the whole stream."""
    tau = 3
    batch = make_batch(np.diff([0, *sorted(borders), 18]), tau)
    whole, valid = compiled_scores(*nnx.split(network), batch)
    for start, stop in ((0, cut), (cut, 18)):
        piece = FrameBatch(
            batch.visual[start:stop],
            batch.audio[start : stop + 2 * tau],
            batch.clip[start : stop + 2 * tau],
            batch.weight[start:stop],
            batch.label[start:stop],
        )
        scores, inside = compiled_scores(*nnx.split(network), piece)
        np.testing.assert_allclose(scores, whole[start:stop], atol=1e-5)
        np.testing.assert_array_equal(inside, valid[start:stop])


@pytest.mark.parametrize(("frames", "tau"), [(1, 1), (63, 2), (64, 15), (65, 1), (200, 15), (70, 90)])
def test_mean_squares_of_sums_follow_from_the_summands(frames, tau):
    rng = np.random.default_rng(0)
    visual, audio = (rng.standard_normal((n, 8)).astype(np.float32) for n in (frames, frames + 2 * tau))
    windows = np.stack([audio[offset : offset + frames] for offset in range(2 * tau + 1)], axis=1)
    wanted = np.square(visual[:, None] + windows).mean(axis=2)
    np.testing.assert_allclose(mean_squares(jnp.asarray(visual), jnp.asarray(audio)), wanted, rtol=1e-4, atol=1e-5)


def test_centre_of_the_window_is_the_networks_own_score(network):
    batch = make_batch([7, 9], 4)
    scores, _ = window_scores(network, batch)
    own = network(batch.visual, batch.audio[4:-4])
    np.testing.assert_allclose(scores[:, 4], own, atol=1e-5)
    centred = batch._replace(audio=batch.audio[4:-4])
    np.testing.assert_array_equal(avh_align.METHOD.outputs(network, centred)[:, 0], -own)


@pytest.mark.parametrize("boundary", ["zeros", "mask"])
def test_zero_vectors_give_finite_gradients(network, boundary):
    batch = make_batch([18], 7)
    batch = batch._replace(visual=jnp.zeros_like(batch.visual), audio=jnp.zeros_like(batch.audio))
    for form in (FORMS["cpu"], STEPS):
        for leaf in jax.tree.leaves(loss_and_gradients(*nnx.split(network), batch, boundary, form)):
            assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_are_scaled_to_unit_length(dtype):
    features = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(dtype) * 9
    features[2] = 0
    unit = normalise(jnp.asarray(features))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), [1, 1, 0, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(unit[2], 0)


def test_loss_is_the_cross_entropy_of_the_centre():
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 31)).astype(np.float32))
    wanted = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.full((4, 5), 15))
    np.testing.assert_allclose(windowed_softmax_loss(scores), wanted, atol=1e-6)
    np.testing.assert_allclose(windowed_softmax_loss(jnp.zeros((2, 31))), np.log(31), rtol=1e-6)


def test_masked_loss_equals_the_loss_of_the_rest():
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9)).astype(np.float32))
    for keep in itertools.product([True, False], repeat=4):
        valid = jnp.asarray([[*keep, True, *keep[::-1]]])  # the centre stays in the centre
        left = scores[0][valid[0]][None]
        np.testing.assert_allclose(windowed_softmax_loss(scores, valid), windowed_softmax_loss(left), atol=1e-6)


def torch_network(weights):
    """Builds the network in PyTorch from its description, to check the layers and their layout independently."""
    linear, norm = torch.nn.Linear, torch.nn.LayerNorm
    mlp = []
    for inputs, hidden in ((1024, 512), (512, 256), (256, 128)):
        mlp += [linear(inputs, hidden), norm(hidden), torch.nn.ReLU()]
    module = torch.nn.ModuleDict(
        {
            "visual_proj": linear(1024, 512),
            "audio_proj": linear(1024, 512),
            "mlp": torch.nn.Sequential(*mlp, linear(128, 1)),
        }
    )
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return module


def test_scores_equal_pytorchs(tmp_path):
    network = load_weights(rules.write_alignment_weights(tmp_path / "w.safetensors"))
    module = torch_network(rules.alignment_weights())
    visual, audio = np.random.default_rng(0).standard_normal((2, 20, 1024)).astype(np.float32)
    v, a = (torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in (visual, audio))
    with torch.no_grad():
        wanted = module["mlp"](torch.cat([module["visual_proj"](v), module["audio_proj"](a)], dim=-1))[:, 0]
    np.testing.assert_allclose(network(jnp.asarray(visual), jnp.asarray(audio)), wanted, atol=1e-5)


def test_the_number_of_parameters_is_the_papers(tmp_path):
    assert sum(p.size for p in jax.tree.leaves(nnx.state(AlignmentNetwork(rngs=nnx.Rngs(0))))) == 1_740_545


def test_fresh_weights_are_drawn_as_pytorch_draws_them():
    params = nnx.to_flat_state(nnx.state(AlignmentNetwork(rngs=nnx.Rngs(0))))
    for path, variable in params:
        value = np.asarray(variable[...])
        if path[-1] == "kernel":
            bound = 1 / np.sqrt(value.shape[0])
            assert 0.95 * bound < np.abs(value).max() <= bound
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.1)


def test_saved_weights_are_loaded_bit_for_bit(tmp_path, network):
    save_weights(network, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    for a, b in zip(*(jax.tree.leaves(nnx.state(n)) for n in (network, loaded)), strict=True):
        np.testing.assert_array_equal(a, b)
    arrays = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in rules.alignment_weights(WIDTH).items()
    }


def test_weights_that_do_not_fit_are_all_named(tmp_path):
    arrays = rules.alignment_weights(WIDTH)
    del arrays["mlp.0.bias"]
    arrays["mlp.3.weight"] = np.zeros((3, 3), np.float32)
    arrays["stray"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "w.safetensors")
    for name in ("mlp.0.bias", "mlp.3.weight", "stray"):
        assert name in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99, b"\xff" * 8 + b"{}"])
def test_files_that_are_not_weights(tmp_path, content):
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.safetensors"):
        load_weights(tmp_path / "w.safetensors")


def test_weights_of_something_else(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not alignment weights"):
        load_weights(tmp_path / "w.safetensors")
