"""AVAD: its decoder against the official program's outputs, its scores computed in two ways, clips of any length."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx
from hypothesis import strategies as st

from jax_avh.methods.avad import (
    assemble,
    clip_score,
    cut,
    kl_divergence,
    sequence_starts,
    soft_cross_entropy,
    valid_steps,
)
from jax_avh.models import avad
from jax_avh.models.avad import Decoder
from jax_avh.models.layers import normalise
from jax_avh.models.weights import named_arrays
from tests import rules

WINDOWS = 50
LENGTHS = {"prob": 50, "raw": 50, "raw_n30": 30}  # recorded case -> windows of its clips


def rule_decoder(precision="float32"):
    return rules.fill_network(nnx.eval_shape(lambda: Decoder(nnx.Rngs(0), precision=precision)))


@pytest.fixture(scope="module")
def official(shared):
    return dict(np.load(shared("methods/avad.npz")))


@pytest.fixture(scope="module")
def network():
    return rule_decoder()


@pytest.fixture(scope="module")
def outputs(network):
    """Returns the decoder as a compiled function of scores [B, 50, W]; with a key, it applies dropout."""
    forward = nnx.jit(lambda network, scores, key: network(scores, key))
    return lambda scores, key=None: forward(network, jnp.asarray(scores[:, :-1]), key)


def case_input(official, case, name="raw"):
    """Returns the scores [2, 50, W] of a recorded case, with zeros after the end of its clips."""
    scores = official["in_prob" if case == "prob" else f"in_{name}"].copy()
    scores[:, LENGTHS[case] :] = 0
    return scores


def assert_near(found, wanted, tolerance):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


# --- the official program's outputs ----------------------------------------------------------------------------------


def test_parameters_are_the_official_ones(shared, official, network):
    lines = shared("methods/avad_keys.txt").read_text().splitlines()
    wanted = {name: tuple(map(int, shape.strip("(),").split(","))) for name, shape in (s.split(" ", 1) for s in lines)}
    used = {name: shape for name, shape in wanted.items() if "compress_fn" not in name}
    assert {name: array.shape for name, array in named_arrays(network).items()} == used
    assert_near(network.pos_embedding[0, :2, :8], official["pos_first8"], 0)


@pytest.mark.parametrize("case", LENGTHS)
def test_predictions_and_scores_are_the_official_ones(official, outputs, case):
    length, scores = LENGTHS[case], case_input(official, case)
    logits = outputs(scores)
    seen = official[f"{case}_mask"] == 0  # steps that start from a window of the clip: one more than the scored ones
    lengths = jnp.array([length, length])
    assert (valid_steps(lengths + 1, WINDOWS) == seen).all()
    assert_near(logits[seen], official[f"{case}_logits"][seen], 1e-4)
    assert_near(jax.nn.softmax(logits)[seen], official[f"{case}_probs"][seen], 1e-5)
    divergences = np.asarray(kl_divergence(jnp.asarray(scores), logits))
    scored = np.asarray(valid_steps(lengths, WINDOWS))
    assert_near(divergences[scored], official[f"{case}_kl"][scored], 1e-4)
    clips = [clip_score(assemble(clip[None], length)) for clip in divergences]
    assert_near(clips, official[f"{case}_score"], 1e-5)
    assert_near([np.mean(clip[valid]) for clip, valid in zip(divergences, scored, strict=True)], clips, 1e-5)


@pytest.mark.parametrize("case", LENGTHS)
def test_every_layer_is_the_official_one(official, network, case):
    seen = official[f"{case}_mask"] == 0
    emb = network.embed(jnp.asarray(case_input(official, case)[:, :-1]))
    attention = network.decoder1.docoder(emb)
    made = {"emb": emb, "attn1": attention, "ffin1": network.decoder1.norm(emb + attention)}
    made["dec1"] = network.decoder1(emb)
    made["dec2"] = network.decoder2(made["dec1"])
    stored = [layer for layer in made if f"{case}_{layer}" in official]
    assert stored == {"prob": ["emb", "dec1", "dec2"], "raw": [*made], "raw_n30": ["dec1"]}[case]
    for layer in stored:
        assert_near(made[layer][seen], official[f"{case}_{layer}"][seen], 1e-4)


def test_the_official_score_is_that_of_the_first_fifty_windows(official, outputs):
    """Checks clips of 70 windows, of which the official program scores only the first 50."""
    longer = np.concatenate([official["in_raw"], official["in_raw"][:, :20]], axis=1)
    for clip, official_score, of_first in zip(longer, official["raw_n70_score"], official["raw_kl"], strict=True):
        sequences = cut(clip, WINDOWS)
        assert len(sequences) == 2
        scores = assemble(np.asarray(kl_divergence(jnp.asarray(sequences), outputs(sequences))), 70)
        assert scores.shape == (70,)
        assert_near(scores[1:50], of_first, 1e-4)
        assert_near(clip_score(scores[:50]), official_score, 1e-5)
        assert_near(clip_score(scores) * 69, scores[1:].sum(), 1e-4)


@pytest.mark.parametrize("case", ["raw", "raw_n30"])
def test_the_activations_branch_is_the_same_network(official, outputs, case):
    """Checks the branch of the released program's optional loss, the squared distance to the next activations."""
    length = LENGTHS[case]
    unit = np.asarray(normalise(jnp.asarray(case_input(official, case, "feat"))))
    logits = np.asarray(outputs(unit))
    assert_near(logits[:, : length - 1], official[f"{case}_avlogits"][:, : length - 1], 1e-4)
    distance = np.sum(np.square(logits - unit[:, 1:]), axis=-1)[:, : length - 1]
    np.testing.assert_allclose(distance, official[f"{case}_mse"][:, : length - 1], rtol=1e-5)
    scores = case_input(official, case)
    divergences = kl_divergence(jnp.asarray(scores), outputs(scores))[:, : length - 1]
    np.testing.assert_allclose((divergences + distance).mean(axis=1), official[f"{case}_score_lam1"], rtol=1e-5)


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [1, 17, 48])
def test_no_window_reaches_a_step_before_it(official, outputs, changed):
    """Shows that padding after the end of a clip cannot change its scores."""
    scores = official["in_raw"].copy()
    before = outputs(scores)
    scores[:, changed:] = 1e3
    after = outputs(scores)
    assert_near(after[:, :changed], before[:, :changed], 0)
    assert (np.abs(after[:, changed:] - before[:, changed:]).max(axis=-1) > 1e-3).all()


def test_every_window_so_far_counts(official, outputs):
    scores = official["in_raw"].copy()
    before = outputs(scores)
    scores[:, 0] += 1
    assert (np.abs(outputs(scores) - before).max(axis=-1) > 1e-4).all()


def test_dropout_needs_a_key_and_obeys_it(official, outputs):
    scores = official["in_raw"]
    first, again, other, none = (outputs(scores, key and jax.random.key(key)) for key in (1, 1, 2, None))
    assert_near(again, first, 0)
    for changed in (first, other):
        assert np.abs(changed - none).max() > 0.1
    assert np.abs(first - other).max() > 0.1


def test_dropout_is_where_the_official_program_has_it(official, network, monkeypatch):
    """Checks each block: on the attention's weights, after the norm, after the ReLU, after the second norm."""
    calls = []
    monkeypatch.setattr(avad, "dropout", lambda inputs, rate, key: calls.append((inputs, rate, key)) or inputs)
    network(jnp.asarray(official["in_raw"][:, :-1]), jax.random.key(0))
    inputs, rates, keys = zip(*calls, strict=True)
    assert rates == (0.1,) * 8
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8
    assert [values.shape for values in inputs] == [(2, 16, 49, 50), *[(2, 49, 256)] * 3] * 2
    for weights, first, inner, second in (inputs[:4], inputs[4:]):
        assert_near(jnp.sum(weights, axis=-1), 1, 1e-5)
        assert (inner >= 0).all()
        assert all((values < 0).any() for values in (first, second))
    np.testing.assert_array_equal(inputs[3], network.decoder1(network.embed(jnp.asarray(official["in_raw"][:, :-1]))))


def test_training_moves_every_parameter(official, network):
    """Checks that each gets a finite gradient from the steps that count, and none from the others."""
    scores, valid = jnp.asarray(official["in_raw"]), valid_steps(jnp.array([30, 1]), WINDOWS)

    def loss(network, key):
        return jnp.sum(jnp.where(valid, soft_cross_entropy(scores, network(scores[:, :-1], key)), 0))

    gradient = nnx.jit(nnx.grad(loss))(network, jax.random.key(0))
    for path, values in nnx.to_flat_state(gradient):
        assert np.isfinite(values[...]).all(), path
        assert (np.abs(values[...]) > 1e-6).any(), path
        if path == ("pos_embedding",):
            assert not values[0, 29:].any()
            assert values[0, :29].any(axis=-1).all()


def test_first_weights_are_drawn_as_the_official_ones():
    network = Decoder(nnx.Rngs(0))
    values = {name: np.asarray(array.variable[...]) for name, array in named_arrays(network).items()}
    expected = dict.fromkeys(values, ("uniform", 1 / 16))
    expected |= {"lin1.weight": ("normal", (2 / 31) ** 0.5), "pos_embedding": ("normal", 1.0)}
    expected |= {"lin2.weight": ("uniform", (6 / 287) ** 0.5)}
    constant = {"lin1.bias": 0, "null_k": 0, "null_v": 0, "b_2": 0, "a_2": 1}
    for name, drawn in values.items():
        kind, scale = expected[name]
        if fixed := [value for end, value in constant.items() if name.endswith(end)]:
            assert_near(drawn, fixed[0], 0)
        elif kind == "uniform":
            assert np.abs(drawn).max() <= scale
            assert drawn.std() == pytest.approx(scale / 3**0.5, rel=0.2 if drawn.ndim == 1 else 0.02), name
        else:
            assert drawn.std() == pytest.approx(scale, rel=0.05), name
            assert np.abs(drawn).max() > 3 * scale  # not cut off


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_precisions(official, precision):
    with jax.enable_x64(precision == "float64"):
        network = rule_decoder(precision)
        logits = nnx.jit(lambda network, scores: network(scores))(network, jnp.asarray(official["in_raw"][:, :-1]))
    assert logits.dtype == ("float64" if precision == "float64" else "float32")
    difference = np.abs(np.asarray(logits) - official["raw_logits"]).max()
    low, high = {"float64": (0, 2e-5), "bfloat16": (1e-3, 0.1)}[precision]
    assert low < difference < high


def test_sequences_of_another_length_are_refused(network):
    for steps in (48, 50):
        with pytest.raises(AssertionError, match="49"):
            network(jnp.zeros((1, steps, 31)))


# --- losses and scores -----------------------------------------------------------------------------------------------


def test_divergence_and_cross_entropy_are_scipys():
    rng = np.random.default_rng(0)
    scores, logits = 3 * rng.standard_normal((2, 8, 31)), 3 * rng.standard_normal((2, 7, 31))
    target, predicted = (scipy.special.softmax(values, axis=-1) for values in (scores[:, 1:], logits))
    scores, logits = (jnp.asarray(values, jnp.float32) for values in (scores, logits))
    divergence, loss = kl_divergence(scores, logits), soft_cross_entropy(scores, logits)
    assert_near(divergence, scipy.stats.entropy(target, predicted, axis=-1), 1e-5)
    assert_near(loss - divergence, scipy.stats.entropy(target, axis=-1), 1e-5)
    assert_near(kl_divergence(scores, scores[:, 1:]), 0, 1e-6)
    assert np.isfinite(kl_divergence(1e4 * scores, logits)).all()
    gradients = [jax.grad(lambda x, f=f: jnp.sum(f(scores, x)))(logits) for f in (kl_divergence, soft_cross_entropy)]
    assert_near(gradients[0], gradients[1], 1e-6)


# --- clips of any length ---------------------------------------------------------------------------------------------


def plain_starts(length, windows):
    starts, start = [], 0
    while start + windows < length:
        starts.append(start)
        start += windows // 2
    return [*starts, max(length - windows, 0)]


@hypothesis.given(st.integers(2, 300), st.integers(2, 60), st.integers(0, 99))
@hypothesis.example(50, 50, 0)
@hypothesis.example(51, 50, 0)
@hypothesis.example(75, 50, 0)
def test_each_window_is_scored_where_most_stands_before_it(length, windows, seed):
    starts = plain_starts(length, windows)
    assert sequence_starts(length, windows).tolist() == starts
    divergences = np.random.default_rng(seed).random((len(starts), windows - 1))
    found = assemble(divergences, length)
    assert found.shape == (length,)
    for position in range(1, length):
        before = {position - start: k for k, start in enumerate(starts) if start < position < start + windows}
        most = max(before)
        assert most >= min(position, (windows + 1) // 2)
        assert found[position] == divergences[before[most], most - 1]
    assert found[0] == found[1]
    assert clip_score(found) == pytest.approx(sum(found[1:].tolist()) / (length - 1))
    if length <= windows:  # the official rule
        assert found[1:].tolist() == divergences[0, : length - 1].tolist()


@hypothesis.given(st.integers(2, 300), st.integers(2, 60))
def test_sequences_hold_the_clip(length, windows):
    clip = np.random.default_rng(0).random((length, 3))
    sequences = cut(clip, windows)
    assert sequences.shape == (len(sequence_starts(length, windows)), windows, 3)
    assert not sequences[:, length:].any()
    np.testing.assert_array_equal(assemble(sequences[:, 1:, 0], length)[1:], clip[1:, 0])
    np.testing.assert_array_equal(sequences[0, :2], clip[:2])


def test_a_clip_of_one_window_has_no_score():
    assert not valid_steps(jnp.array([1]), WINDOWS).any()
    with pytest.raises(AssertionError, match="one window"):
        assemble(np.zeros((1, 49)), 1)
    with pytest.raises(AssertionError, match="one window"):
        clip_score(np.zeros(1))
