"""Precisions of the matrix products: what each network's training step asks of a device, and what a device has."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.lax import DotAlgorithmPreset, Precision

from avh_shards import UserError
from jax_avh.config import PRECISIONS
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.avad import Decoder
from jax_avh.models.layers import ARITHMETIC, check_precision
from jax_avh.models.mds import MDS
from jax_avh.models.rawnet2 import RawNet2
from jax_avh.parallel import compiling_for

PRODUCTS = ("dot_general", "conv_general_dilated")
NETWORKS = {
    "alignment": lambda precision: AlignmentNetwork(64, rngs=nnx.Rngs(0), precision=precision),
    "rawnet2": lambda precision: RawNet2(nnx.Rngs(0), precision, widths=(8, 16), hidden=32, samples=4800),
    "mds": lambda precision: MDS(nnx.Rngs(0), 32, precision, 0.1),
    "avad": lambda precision: Decoder(nnx.Rngs(0), 6, 5, precision),
}
INPUTS = {
    "alignment": ((128, 64), (128, 64)),
    "rawnet2": ((2, 1258, 20),),
    "mds": ((2, 30, 32, 32, 3), (2, 13, 99)),
    "avad": ((2, 5, 5),),
}


def outputs(name, network, *inputs):
    """Applies a network in training, but for the inputs' preparation, which is not trained."""
    if name == "rawnet2":
        return network.classify(*inputs, training=True)
    if name == "mds":
        return network.logits(*network.embeddings(*inputs, training=True), training=True)
    return network(*inputs)


def gradient_program(name, precision):
    """Returns the products of a gradient's program, as equations, and the network's parameters."""

    def loss(params, rest, *inputs):
        found = outputs(name, nnx.merge(graph, params, rest, copy=True), *inputs)
        return sum(array.sum() for array in jax.tree.leaves(found))

    graph, params, rest = nnx.split(nnx.eval_shape(lambda: NETWORKS[name](precision)), nnx.Param, ...)
    inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in INPUTS[name])
    products = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            products.extend([equation] if equation.primitive.name in PRODUCTS else [])
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(jax.grad(loss))(params, rest, *inputs).jaxpr)
    return products, jax.tree.leaves(params)


def asked(name, precision):
    """Returns the share of a gradient's products by dtype and precision, in values computed."""
    products, _ = gradient_program(name, precision)
    found = {}
    for equation in products:
        key = str(equation.invars[0].aval.dtype), equation.params["precision"]
        found[key] = found.get(key, 0) + equation.outvars[0].aval.size
    return {key: size / sum(found.values()) for key, size in found.items()}


def test_every_precision_has_an_arithmetic():
    assert set(ARITHMETIC) == set(PRECISIONS)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("precision", "platform", "dtype", "passes"),
    [
        ("float32", "gpu", "float32", Precision.HIGHEST),
        ("bfloat16_3x", "tpu", "float32", Precision.HIGH),
        ("bfloat16", "gpu", "bfloat16", Precision.HIGHEST),
    ],
)
def test_a_precision_is_that_of_the_products(name, precision, platform, dtype, passes):
    with compiling_for(platform):
        share = asked(name, precision)[dtype, (passes, passes)]
    assert_nearly_all(share, name, precision)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_is_asked_for_tensorfloat32_by_name(name):
    """In products of matrices; convolutions have no such name, and there "high" means it."""
    with compiling_for("gpu"):
        found = asked(name, "tensorfloat32")
    high = found.get(("float32", (Precision.HIGH, Precision.HIGH)), 0)
    matrices = found["float32", DotAlgorithmPreset.TF32_TF32_F32]
    assert_nearly_all(high + matrices, name, "tensorfloat32")
    assert matrices > 0
    assert (high > 0) == (name in ("rawnet2", "mds"))


def assert_nearly_all(share, name, precision):
    # The alignment network computes its last, single output in full float32, and so its folded maps for bfloat16.
    least = 0.999 if name != "alignment" else 0.25 if precision == "bfloat16" else 0.6
    assert share > least
    assert share == 1 or precision != "float32"


@pytest.mark.parametrize(("name", "high"), [("mds", True), ("rawnet2", False), ("avad", False)])
def test_a_tpu_convolves_in_three_passes_for_mds_only(name, high):
    with compiling_for("tpu"):
        share = asked(name, "float32")
    assert (("float32", (Precision.HIGH, Precision.HIGH)) in share) == high
    assert {dtype for dtype, _ in share} == {"float32"}


@pytest.mark.parametrize("name", ["mds", "avad"])
def test_gradients_of_kernels_are_added_up_in_float32(name):
    """Devices add them up as the products return them, so these must not be in bfloat16."""
    with compiling_for("tpu"):
        products, params = gradient_program(name, "bfloat16")
    kernels = {tuple(side for side in param.shape if side > 1) for param in params if param.ndim > 1}
    found = [equation.outvars[0].aval for equation in products]
    gradients = [aval for aval in found if tuple(side for side in aval.shape if side > 1) in kernels]
    assert len(gradients) >= len(kernels)
    assert {str(aval.dtype) for aval in gradients} == {"float32"}


@pytest.mark.parametrize(
    ("platform", "refused", "other"), [("tpu", "tensorfloat32", "bfloat16_3x"), ("gpu", "bfloat16_3x", "tensorfloat32")]
)
def test_a_precision_that_the_platform_lacks_is_one_sentence(platform, refused, other):
    with compiling_for(platform):
        for precision in set(PRECISIONS) - {refused, "float64"}:
            check_precision(precision)
        message = f"--config.train.precision={refused}: a {platform.upper()} does not have it; set {other}"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            check_precision(refused)


def test_a_cpu_takes_them_all():
    for precision in set(PRECISIONS) - {"float64"}:
        check_precision(precision)
