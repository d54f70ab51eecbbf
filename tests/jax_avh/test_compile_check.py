"""Programs compiled for devices that are not there, and what is read from them."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from avh_shards import UserError
from jax_avh.compile_check import CHIPS, check_programs, count_flops, format_checks
from jax_avh.configs import make_config
from jax_avh.hlo import Collective, nbytes, parse
from jax_avh.methods import METHODS
from jax_avh.methods.base import COMPILED_STEP, step_bytes
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.parallel import DATA_AXIS, make_mesh, put_parts

without_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra `aot`)")
without_cuda = pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason='needs "jax[cuda13]"')

LOOP = """HloModule made_up

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %rows = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,4]{1,0} dynamic-slice(%rows, %count, %count), dynamic_slice_sizes={1,4}
  %kept = f32[1,4]{1,0:T(1,128)S(1)} negate(%row)
  %sum = f32[8,4]{1,0} all-reduce(%rows), replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%count, %sum)
}

%condition (state.1: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %count.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%count.1, %limit), direction=LT
}

ENTRY %main (first: f32[8,4]) -> f32[8,4] {
  %first = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %first)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def config(method="avh_align", **settings):
    """Returns the settings of a run on features that no one reads."""
    data = {"method": method, "data.train": "imagined", "data.val": "imagined", "data.placement": "stream"}
    return make_config(data | {name.replace("__", "."): value for name, value in settings.items()})


def test_loops_count_as_often_as_they_run_and_fast_memory_not_at_all():
    program = parse(LOOP)
    assert program.collectives() == [Collective("all-reduce", 8 * 4 * 4, 5)]
    slice_and_copy, negated, summed = 2 * 16, 16, 2 * 128
    assert program.traffic() == 5 * (slice_and_copy + negated + summed)


def test_sizes_of_types():
    assert nbytes("(f32[2,3]{1,0}, bf16[4]{0:T(256)S(1)}, pred[])") == 24 + 1
    assert nbytes("(f32[2,3]{1,0}, bf16[4]{0:T(256)S(1)}, pred[])", fast=True) == 24 + 8 + 1


def test_products_count_in_loops_on_every_device_and_when_computed_again():
    kernel = jnp.ones((8, 8))

    @jax.checkpoint
    def layer(inputs):
        return jnp.sin(inputs @ kernel)

    def loss(inputs):
        return jax.lax.scan(lambda carry, _: (layer(carry), None), inputs, length=3)[0].sum()

    one = 2 * 4 * 8 * 8
    assert count_flops(jax.make_jaxpr(loss)(jnp.ones((4, 8))).jaxpr, 1) == 3 * one
    assert count_flops(jax.make_jaxpr(jax.grad(loss))(jnp.ones((4, 8))).jaxpr, 1) == 3 * 3 * one
    mesh = make_mesh()
    spread = jax.shard_map(
        lambda inputs: inputs @ kernel,
        mesh=mesh,
        in_specs=PartitionSpec(DATA_AXIS),
        out_specs=PartitionSpec(DATA_AXIS),
    )
    assert count_flops(jax.make_jaxpr(spread)(jnp.ones((4, 8))).jaxpr, mesh.size) == one


def test_the_collectives_of_a_compiled_program_are_read():
    mesh = make_mesh()
    total = jax.shard_map(
        lambda part: jax.lax.psum(part[0], DATA_AXIS),
        mesh=mesh,
        in_specs=PartitionSpec(DATA_AXIS),
        out_specs=PartitionSpec(),
    )
    parts = put_parts(mesh, np.ones((mesh.size, 16, 4), np.float32))
    found = parse(jax.jit(total).lower(parts).compile().as_text()).collectives()
    assert found == [Collective("all-reduce", 16 * 4 * 4, 1)]


def test_the_rate_of_products_is_that_of_their_precision():
    gpu, tpu = CHIPS["h100"], CHIPS["v5e"]
    assert gpu.rate("bfloat16") == pytest.approx(2 * gpu.rate("tensorfloat32"))
    assert gpu.rate("tensorfloat32") > 7 * gpu.rate("float32")
    assert tpu.rate("bfloat16") == pytest.approx(3 * tpu.rate("bfloat16_3x")) == pytest.approx(6 * tpu.rate("float32"))


@pytest.mark.parametrize("topology", ["v9:2x2", "", "v5e", "v5e:3x3", "v5e:2x2x"])
def test_an_unknown_topology_is_one_sentence(topology):
    with pytest.raises(UserError, match=f"--topology={topology}: .*; (check the layout|give one of|install)|unknown"):
        check_programs(METHODS["avh_align"], config(), topology, 1000, 16)


def test_the_command_says_what_is_missing(launch, tmp_path):
    status, output = launch("compile_check", "--topology=v9:2x2", f"--json={tmp_path}/c.json", "--slices=2")
    assert status == 2
    assert output.startswith("error: --topology=v9:2x2: unknown; give one of v4,")
    assert not list(tmp_path.iterdir())


@without_libtpu
def test_the_command_prints_and_writes_what_the_compiler_says(launch, tmp_path):
    flags = ["--topology=v5e:2x2", "--frames=1000000", "--width=64", "--placement=device", "--config.data.streams=8"]
    flags += ["--config.method=avh_sup", "--config.method.head=linear", f"--json={tmp_path}/c.json"]
    status, output = launch("compile_check", *flags)
    assert status == 0, output
    assert "no measurement" in output
    training, validation, scoring = json.loads((tmp_path / "c.json").read_text())
    assert (training["program"], validation["program"], scoring["program"]) == ("training", "validation", "scoring")
    features = 2 * 2 * 1_000_000 * 64 / 4  # float16, both modalities, a fourth on each device
    assert features < training["argument_bytes"] < 1.2 * features + 2e7
    status, output = launch("compile_check", *flags, "--frames=20000000", "--width=1024")
    assert status == 1
    assert "does not fit" in output
    assert "--config.data.placement=stream" in output


@without_libtpu
@pytest.mark.parametrize("placement", ["stream", "device"])
def test_a_step_exchanges_its_gradients_and_nothing_else(placement):
    """Also checks that no device holds more than its own share of the features and of the batch."""
    frames = 40_000
    settings = config(train__precision="bfloat16", data__placement=placement, data__streams=4)
    checks = check_programs(METHODS["avh_align"], settings, "v5e:2x2", frames, 1024)
    network = nnx.state(AlignmentNetwork(1024, rngs=nnx.Rngs(0)))
    parameters = sum(array.size for array in jax.tree.leaves(network))
    training = checks[0]
    assert set(training.exchanged) == {"all-reduce"}
    assert 4 * parameters <= training.exchanged["all-reduce"] < 4.1 * parameters
    held = frames // 4 if placement == "device" else 1024 // 4 + 30
    assert training.argument_bytes < 3 * 4 * parameters + 4 * held * 1024 * 1.02 + 1e6
    assert training.temporary_bytes < CHIPS["v5e"].memory / 200
    assert checks[2].exchanged == {}
    text = format_checks(checks, "frames", frames)
    assert f"features: {placement} (as asked" in text
    assert "bound by" in text


@without_libtpu
def test_features_are_kept_where_a_run_would_keep_them():
    settings = config("avh_sup", method__head="linear", data__placement="auto")
    training, *_ = check_programs(METHODS["avh_sup"], settings, "v5e:2x2", 10_000, 64)
    assert "features: stream" in training.placement
    assert "would fit into the devices with --config.data.streams=4" in training.placement


LARGE = [pytest.param(name, marks=without_libtpu) for name in ("v5e:2x2", "v5e:4x4", "v5p:4x4x4", "v5e:16x16")]
LARGE += [pytest.param(name, marks=without_cuda) for name in ("h100:4", "h100:8")]


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["stream", "device"])
@pytest.mark.parametrize("topology", LARGE)
def test_what_a_device_exchanges_does_not_grow_with_their_number(topology, placement):
    settings = config(train__precision="bfloat16", data__batch_frames=65_536, data__streams=256)
    settings.data.placement = placement
    training, *_ = check_programs(METHODS["avh_align"], settings, topology, 1_000_000, 1024)
    share = 65_536 // training.devices * 2 * 1024 * 2
    gradients = 4 * 1_740_545
    assert sum(training.exchanged.values()) < 4 * (share + gradients)
    assert set(training.exchanged) == {"all-reduce"}
    assert training.exchanged["all-reduce"] < 1.1 * gradients


@without_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "v5e:4x4"])
@pytest.mark.parametrize("method", ["avh_align", "avh_sup", "avad"])
def test_programs_compile_for_every_generation(topology, method):
    for check in check_programs(METHODS[method], config(method, train__precision="bfloat16"), topology, 100_000, 1024):
        assert check.total_bytes < check.capacity_bytes


@without_cuda
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["a100", "h100", "h100:8", "h200"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_programs_compile_for_gpus(topology, precision):
    """Also checks the memory of a step that the choice of the placement reckons with."""
    settings = config(train__precision=precision, data__batch_frames=8192)
    training, *others = check_programs(METHODS["avh_align"], settings, topology, 100_000, 1024)
    for check in (training, *others):
        assert check.total_bytes < check.capacity_bytes
        assert check.traffic_bytes > 0
    assert training.temporary_bytes * training.devices < COMPILED_STEP * step_bytes(8192, 15, 1024)
