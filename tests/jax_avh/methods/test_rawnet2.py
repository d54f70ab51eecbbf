"""RawNet2: parity with the official program; filters and recurrent layers in two ways; cuts of any length."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from avh_shards.clip import FAKE, REAL
from jax_avh.methods.rawnet2 import cut, weighted_cross_entropy
from jax_avh.models import rawnet2 as model
from jax_avh.models.cpu_kernels import fft_correlate, gru_cell, gru_states
from jax_avh.models.layers import Products
from jax_avh.models.rawnet2 import GRU, SAMPLES, Idle, RawNet2, band_edges, correlate, loudness, sinc_bank
from jax_avh.models.weights import named_arrays
from jax_avh.parallel import compiling_for, make_mesh, on_own_part
from tests import rules

SMALL = {"widths": (20, 20, 32), "hidden": 16}


def draw(seed, shape):
    return np.random.RandomState(seed).standard_normal(shape)


def rule_network(precision="float32"):
    return rules.fill_network(nnx.eval_shape(lambda: RawNet2(nnx.Rngs(0), precision)))


def assert_near(found, wanted, tolerance=1e-5, **names):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, **names)


@functools.partial(nnx.jit, static_argnums=2)
def everything(network, sound, training=False):
    return dict(network.stages(loudness(sound.astype(network.dtype)), training))


def as_recorded(found, key):
    """Returns what is stored of [B, T, C] arrays under a key: every n-th step, or the mean over time."""
    name, _, every = key.partition("__t")
    if name.endswith("_timemean"):
        return found[name.replace("timemean", "out")].mean(axis=1)
    if name == "gru_last":
        return found["gru_out"][:, -1]
    channels_first = every or name == "fms5_out"
    return found[name].swapaxes(1, 2)[..., :: int(every or 1)] if channels_first else found[name]


@pytest.fixture(scope="module")
def official(shared):
    return dict(np.load(shared("methods/rawnet2.npz")))


@pytest.fixture(scope="module")
def network():
    return rule_network()


@pytest.fixture(scope="module")
def small():
    """Returns a narrow, randomly initialised network."""
    return nnx.jit(lambda: RawNet2(nnx.Rngs(0), **SMALL))()


@pytest.fixture(scope="module")
def noise(official):
    sound = (draw(3, (2, SAMPLES)) * 0.1).astype(np.float32)
    assert_near(sound[:, :16], official["input_head"], 0)
    return sound


@pytest.fixture(scope="module")
def tones(official):
    """Returns a sweep and an intermittent square wave, which differ more than two noises do."""
    time = np.arange(SAMPLES) / 16000
    sweep = 0.5 * np.sin(2 * np.pi * (200 * time + 800 * time**2))
    square = np.where(time % 0.5 < 0.25, 0.8 * np.sign(np.sin(2 * np.pi * 110 * time)), 0)
    sound = (np.stack([sweep, square]) + draw(8, (2, SAMPLES)) * 0.01).astype(np.float32)
    assert_near(sound[:, :16], official["alt_input_head"], 0)
    assert_near(sound[:, ::97], official["alt_input_s97"], 1e-6)
    return sound


# --- the official program's outputs ----------------------------------------------------------------------------------


def test_arrays_are_the_official_ones(shared, network):
    lines = (line.split("\t") for line in shared("methods/rawnet2_keys.txt").read_text().splitlines())
    wanted = {name: tuple(map(int, shape.split("x"))) for name, shape, _ in lines if shape != "scalar"}
    named = named_arrays(network)
    assert {name: array.shape for name, array in named.items()} == wanted
    learnt = [array.variable for array in named.values() if not isinstance(array.variable, nnx.BatchStat)]
    assert sum(variable.size for variable in learnt) == 17_621_410


def test_filters_equal_the_official_ones(official, noise):
    bank = sinc_bank()
    assert_near(band_edges(), official["mel_edges_hz"], 1e-9)
    assert_near(bank, official["sinc_filters"], 2e-7)  # the official ones are computed in float32
    assert_near(bank.astype(np.float32), official["sinc_filters_f64"], 0)
    filtered = jax.jit(lambda sound: fft_correlate(sound, bank))
    for sound, wanted in zip(noise, official["sinc_out__t64"], strict=True):
        assert_near(filtered(jnp.asarray(sound))[:, ::64], wanted, 1e-6)


def test_everything_between_equals_the_official(official, network, noise):
    found = {name: np.asarray(array) for name, array in everything(network, noise).items()}
    found["score_bonafide"] = found["log_probs"][:, 1]
    stages = ("front", "block", "fms", "gru", "fc1", "logits", "log_probs", "score")
    keys = {key for key in official if key.startswith(stages)} - {"log_probs_f64", "log_probs_f64bank"}
    assert len(keys) == 24
    for key in keys:
        assert_near(as_recorded(found, key), official[key], err_msg=key)
    assert_near(found["log_probs"], official["log_probs_f64bank"], 1e-6)


def test_other_sounds_give_the_official_outputs(official, network, tones):
    found = {name: np.asarray(array) for name, array in everything(network, tones).items()}
    for key in ("fms0_out__t64", "gru_in", "gru_last", "log_probs"):
        assert_near(as_recorded(found, key), official[f"alt_{key}"], err_msg=key)


@pytest.mark.parametrize("case", ["loss_labels_01", "loss_labels_10", "loss_labels_00", "loss_labels_11"])
def test_losses_equal_the_official_ones(official, network, noise, tones, case):
    label = jnp.array([REAL if digit == "1" else FAKE for digit in case[-2:]])
    for sound, key in ((noise, case), (tones, f"alt_{case}")):
        if key in official:
            loss = weighted_cross_entropy(everything(network, sound)["log_probs"], label, jnp.ones(2))
            assert float(loss) == pytest.approx(official[key], rel=1e-5)


def test_gradients_equal_the_official_ones(official, network, noise):
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params, sound):
        log_probs = nnx.merge(graph, params, rest)(sound)
        return weighted_cross_entropy(log_probs, jnp.array([FAKE, REAL]), jnp.ones(2))

    found = named_arrays(nnx.merge(graph, gradient(params, noise), rest))
    kinds = {kind: {n for n, v in found.items() if type(v.variable) is kind} for kind in (nnx.Param, Idle)}
    assert kinds == {nnx.Param: set(official["grad_names_labels_01"]), Idle: set(official["grad_absent_names"])}
    arrays = {name: named.official(np.asarray(named.variable[...], np.float64)) for name, named in found.items()}
    for name, norm in zip(official["grad_names_labels_01"], official["grad_norms_labels_01"], strict=True):
        assert np.linalg.norm(arrays[name]) == pytest.approx(norm, rel=2e-4), name
    for name in ("fc2_gru.weight", "bn_before_gru.weight", "block0.0.conv1.weight", "first_bn.bias"):
        assert_near(arrays[name], official[f"grad__{name}"], 5e-5, err_msg=name)


def test_training_normalises_and_remembers_as_the_official(official, noise):
    network = rule_network()
    found = {name: np.asarray(array) for name, array in everything(network, noise, True).items()}
    assert_near(found["log_probs"], official["trainbn_log_probs"], 2e-5)
    assert_near(found["gru_in"], official["trainbn_gru_in"], 3e-4)
    loss = weighted_cross_entropy(jnp.asarray(found["log_probs"]), jnp.array([FAKE, REAL]), jnp.ones(2))
    assert float(loss) == pytest.approx(official["trainbn_loss_labels_01"], rel=1e-5)
    named = named_arrays(network)
    kept = {key: name for key in official if (name := key.removeprefix("trainbn_after__")) != key}
    assert len(kept) == 6
    for key, name in kept.items():
        assert_near(named[name].variable[...], official[key], 1e-6, err_msg=name)
    arrays = {name: array.official(np.asarray(array.variable[...])) for name, array in named.items()}
    moved = {
        name for name, array in arrays.items() if np.any(array != rules.fill(name, array.shape).astype(np.float32))
    }
    assert moved == {name for name in named if "running" in name}


@pytest.mark.slow
def test_in_float64_it_is_nearer_still(official, noise):
    with jax.enable_x64(True):
        found = everything(rule_network("float64"), jnp.asarray(noise))["log_probs"]
        assert found.dtype == jnp.float64
        assert_near(found, official["log_probs_f64"], 3e-8)


def test_bfloat16_is_near_float32(official, noise):
    found = everything(rule_network("bfloat16"), noise)["log_probs"]
    assert found.dtype == jnp.float32
    assert_near(found, official["log_probs"], 0.02)
    assert np.abs(found - official["log_probs"]).max() > 1e-5  # it is another precision


def test_in_bfloat16_every_product_is():
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: RawNet2(nnx.Rngs(0), "bfloat16", **SMALL)), nnx.Param, ...)
    gradient = jax.grad(lambda params, rest, sound: nnx.merge(graph, params, rest)(sound).sum())
    program = jax.jit(gradient).lower(params, rest, jnp.zeros((2, 4800))).as_text()
    products = re.findall(r"stablehlo\.(dot_general|convolution)\b.* : \(tensor<(?:\d+x)*(\w+)>", program)
    assert len(products) > 40
    assert {dtype for _, dtype in products} == {"bf16"}


def test_a_silent_cut_has_finite_scores(network):
    assert np.isfinite(everything(network, np.zeros((2, SAMPLES), np.float32))["log_probs"]).all()


@pytest.mark.parametrize("length", [30000, 64600, 64599, 70000, 32300])
def test_cuts_are_the_official_ones(official, length):
    high, low = np.divmod(np.arange(length), 256)
    found = cut(high.astype(np.int16)).astype(int) * 256 + cut(low.astype(np.int16))
    assert found.shape == (SAMPLES,)
    np.testing.assert_array_equal(found[::997], official[f"pad_{length}_idx__s997"])


# --- second computations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "platform"), [(1025, "cpu"), (8192, "cpu"), (8193, "cpu"), (20001, "cpu"), (3000, "tpu")]
)
def test_filters_are_a_correlation_at_any_length(length, platform):
    sound = draw(length, length)
    with jax.enable_x64(True), compiling_for(platform):
        found = correlate(jnp.asarray(sound), sinc_bank())
    for wave, taps in zip(found, sinc_bank(), strict=True):
        assert_near(wave, np.correlate(sound, taps), 1e-12)


def test_programs_for_tpus_have_no_fourier_transform():
    def program(platform):
        with compiling_for(platform):
            return str(jax.make_jaxpr(lambda sound: loudness(sound))(jnp.zeros((2, 4800))))

    assert "fft" in program("gpu")
    assert "fft" not in program("tpu")


def test_cuts_one_by_one_and_all_at_once_are_heard_alike(monkeypatch):
    sound = jnp.asarray(draw(0, (3, 9000)), jnp.float32)
    one_by_one = loudness(sound)
    monkeypatch.setattr(model, "CUTS_AT_ONCE", {})
    assert_near(loudness(sound), one_by_one, 1e-6)
    wanted = torch.max_pool1d(torch.tensor(np.asarray(fft_correlate(sound[1], sinc_bank()))).abs(), 3).T
    assert_near(one_by_one[1], wanted, 1e-6)


def test_recurrent_layers_equal_pytorchs():
    """Compares outputs and gradients in float64."""
    inputs, cotangent = draw(0, (3, 9, 5)), draw(1, (3, 9, 7))
    reference = torch.nn.GRU(5, 7, 3, batch_first=True, dtype=torch.float64)
    inputs_there = torch.tensor(inputs, requires_grad=True)
    outputs_there, _ = reference(inputs_there)
    (outputs_there * torch.tensor(cotangent)).sum().backward()
    with jax.enable_x64(True):
        network = GRU(5, 7, 3, nnx.Rngs(0), "float64")
        named = named_arrays(network)
        assert named.keys() == dict(reference.named_parameters()).keys()
        for name, value in reference.named_parameters():
            named[name].variable.set_value(jnp.asarray(value.detach().numpy()))
        graph, params = nnx.split(network)

        @jax.jit
        def both(params, inputs, cotangent):
            outputs, pull = jax.vjp(lambda params, inputs: nnx.merge(graph, params)(inputs), params, inputs)
            return outputs, *pull(cotangent)

        outputs, of_params, of_inputs = both(params, inputs, cotangent)
    assert_near(outputs, outputs_there.detach(), 1e-12)
    assert_near(of_inputs, inputs_there.grad, 1e-12)
    gradients = named_arrays(nnx.merge(graph, of_params))
    for name, value in reference.named_parameters():
        assert_near(gradients[name].variable[...], value.grad, 1e-12, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_a_layer_and_its_gradient_equal_those_of_a_plain_loop(dtype, tolerance):
    arguments = [jnp.asarray(draw(n, shape), jnp.float32) for n, shape in enumerate([(6, 2, 12), (12, 4), (12,)])]

    def loop(given, weight, bias):
        states = [jnp.zeros((2, 4))]
        for at_step in given:
            states.append(gru_cell(states[-1], at_step, states[-1] @ weight.T + bias[None]))
        return jnp.stack(states[1:])

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradient(layer, *arguments):
        states, pull = jax.vjp(layer, *arguments)
        return states, *pull(jnp.cos(states))

    found = with_gradient(lambda *arguments: gru_states(*arguments, Products(dtype)), *arguments)
    for ours, plain in zip(found, with_gradient(loop, *arguments), strict=True):
        assert_near(ours, plain, tolerance * np.abs(plain).max())


def test_on_two_devices_cuts_score_as_on_one(small):
    graph, state = nnx.split(small)
    sound = jnp.asarray(draw(0, (4, 4800)) * np.array([[0.1], [1], [3], [9]]), jnp.float32)

    def log_probs(state, sound):
        return nnx.merge(graph, state)(sound)

    wanted = jax.jit(log_probs)(state, sound)
    assert np.abs(np.diff(wanted[:, 0])).min() > 1e-4  # cuts differ
    assert_near(jax.jit(on_own_part(make_mesh(), log_probs))(state, sound), wanted, 1e-6)


# --- rules and bad input ---------------------------------------------------------------------------------------------


def test_a_cut_may_be_as_short_as_one_step(network, small):
    assert (network.least_samples, small.least_samples) == (3211, 1024 + 3**4)
    sound = jnp.asarray(draw(0, (1, small.least_samples)), jnp.float32)
    log_probs = nnx.jit(RawNet2.__call__)(small, sound)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(AssertionError, match="fewer than"):
        small(sound[:, 1:])


def test_first_weights_are_drawn_as_pytorchs(small):
    named = named_arrays(small)
    fan_in = {"gru.weight_ih_l0": 16, "gru.bias_hh_l2": 16, "fc1_gru.bias": 16, "block2.0.conv1.weight": 60}
    for name, count in fan_in.items():
        largest = np.abs(named[name].variable[...]).max()
        assert 0.9 * count**-0.5 < largest <= count**-0.5, name


def test_padding_does_not_count_in_the_loss():
    log_probs = jax.nn.log_softmax(jnp.asarray(draw(0, (5, 2)), jnp.float32))
    label, weight = jnp.array([FAKE, REAL, REAL, FAKE, REAL]), jnp.array([1.0, 1, 0, 1, 0])
    kept = jnp.array([0, 1, 3])
    wanted = weighted_cross_entropy(log_probs[kept], label[kept], jnp.ones(3))
    assert float(weighted_cross_entropy(log_probs, label, weight)) == pytest.approx(float(wanted), rel=1e-6)


def test_no_sound_at_all_is_silence():
    np.testing.assert_array_equal(cut(np.zeros(0, np.int16)), np.zeros(64600, np.int16))
