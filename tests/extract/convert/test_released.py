"""Conversion of RawNet2's and MDS's released weights to .safetensors and back: exact, and safe on bad files."""

import collections
import dataclasses
import math
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from avh_shards import UserError
from avh_shards.weights import misfits, pack_notes
from extract.convert.weights import convert_weights, official_networks
from jax_avh.methods import mds, rawnet2
from jax_avh.models.weights import named_arrays, read_notes
from tests import rules
from tests.extract.convert.test_npz import Attack

RAWNET2, MDS_96, MDS_224 = NETWORKS = official_networks()[".pth"]
EVERY = [network for networks in official_networks().values() for network in networks]


def draw(network, dtype=torch.float32):
    """Builds the official class's state dict: parameters, statistics and non-zero counters."""
    generator = torch.Generator().manual_seed(0)
    weights = collections.OrderedDict(
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in network.shapes.items()}
    )
    weights.update({name: torch.tensor(7) for name in network.counters})
    weights._metadata = collections.OrderedDict({"": {"version": 1}})
    return weights


@pytest.fixture(autouse=True)
def nothing_is_kept(tmp_path):
    """Removes the large files, which pytest would keep for three runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def weights():
    return draw(RAWNET2)


@pytest.fixture(scope="module")
def converted(weights, tmp_path_factory):
    """A .safetensors converted from the weights."""
    folder = tmp_path_factory.mktemp("rawnet2")
    torch.save(weights, folder / "w.pth")
    convert_weights(folder / "w.pth", folder / "w.safetensors")
    yield folder / "w.safetensors"
    shutil.rmtree(folder)


def assert_holds(path, weights, network):
    """Checks that a file holds all these parameters, bit for bit, as float32."""
    found = safetensors.torch.load_file(path)
    assert found.keys() == network.shapes.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value.view(torch.int32), weights[name].float().view(torch.int32))


def refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as error:
        convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "keys", "parameters"),
    [(RAWNET2, "rawnet2", 17_621_410), (MDS_96, "mds_img96", 80_834_052), (MDS_224, "mds", 122_777_092)],
    ids=["rawnet2", "mds_96", "mds_224"],
)
def test_names_and_shapes_are_those_of_the_official_programs(shared, network, keys, parameters):
    assert sum(math.prod(shape) for name, shape in network.shapes.items() if ".running_" not in name) == parameters
    rows = [line.split("\t") for line in shared(f"methods/{keys}_keys.txt").read_text().splitlines()]
    official = {name: tuple(int(size) for size in re.findall(r"\d+", shape)) for name, shape, _ in rows}
    assert network.shapes | dict.fromkeys(network.counters, ()) == official


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_networks_in_jax_have_these_names_and_shapes(network):
    model_of = {"rawnet2": rawnet2, "mds": mds}[network.method].model_of
    named = named_arrays(nnx.eval_shape(lambda: model_of(network.notes, "float32")))
    assert {name: array.shape for name, array in named.items()} == network.shapes


@given(st.data())
def test_every_change_of_a_parameter_is_told(data):
    network = data.draw(st.sampled_from(EVERY))
    name = data.draw(st.sampled_from(sorted(network.shapes)))
    shape = network.shapes[name]
    assert not misfits(network.shapes, network.shapes)
    missing = {key: value for key, value in network.shapes.items() if key != name}
    assert misfits(missing, network.shapes) == [f"{name} missing for {shape}"]
    assert misfits(network.shapes | {name: (*shape, 1)}, network.shapes) == [f"{name} {(*shape, 1)} for {shape}"]
    assert misfits(network.shapes | {f"{name}x": shape}, network.shapes) == [f"{name}x {shape} for nothing"]


def test_both_ways_bit_for_bit(tmp_path, weights, converted):
    assert_holds(converted, weights, RAWNET2)
    assert read_notes(converted) == {"method": "rawnet2"}
    convert_weights(converted, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == weights.keys()
    for name, value in back.items():
        counter = name.endswith("num_batches_tracked")
        assert value.dtype == (torch.int64 if counter else torch.float32)
        assert torch.equal(value, torch.tensor(0) if counter else weights[name])
    convert_weights(tmp_path / "back.pth", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == converted.read_bytes()


@pytest.mark.parametrize("network", [MDS_96, pytest.param(MDS_224, marks=pytest.mark.slow)], ids=["96", "224"])
def test_mds_both_ways(tmp_path, network):
    weights = draw(network)
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert read_notes(tmp_path / "w.safetensors") == network.notes
    convert_weights(tmp_path / "w.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in network.shapes)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_other_forms_of_the_same_weights(tmp_path, weights, converted, zipped, wrapped):
    """DataParallel weights in a checkpoint, or bare and without counters, in both file formats."""
    content = {f"module.{name}": value for name, value in weights.items() if wrapped or name in RAWNET2.shapes}
    content = {"state_dict": content, "epoch": 3} if wrapped else content
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == converted.read_bytes()


def test_half_precision_becomes_float32(tmp_path):
    weights = draw(RAWNET2, torch.float16)
    torch.save(weights, tmp_path / "w.pth")
    convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert_holds(tmp_path / "w.safetensors", weights, RAWNET2)


def test_converted_weights_load(weights, converted):
    def undrawn(notes, precision):  # the initial weights would be overwritten anyway
        return nnx.eval_shape(lambda: rawnet2.model_of(notes, precision))

    network = dataclasses.replace(rawnet2.METHOD, model_of=undrawn).load_model(converted)
    for name, array in named_arrays(network).items():
        np.testing.assert_array_equal(array.official(np.asarray(array.variable[...])), weights[name].numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc2_gru.bias": None}, r"do not fit the official rawnet2: fc2_gru.bias missing for \(2,\); .pt is for"),
        ({"fc2_gru.bias": torch.ones(3)}, r"rawnet2: fc2_gru.bias \(3,\) for \(2,\);"),
        ({"fc3_gru.bias": torch.ones(3)}, r"rawnet2: fc3_gru.bias \(3,\) for nothing;"),
        ({"module.first_bn.bias": torch.ones(20)}, r"rawnet2: module.first_bn.bias \(20,\) for nothing;"),
        ({f"x{n}": torch.ones(1) for n in range(20)}, r"nothing, x14 \(1,\) for nothing, x15 \(1,\) for nothing;"),
    ],
)
def test_parameters_that_fit_no_network_are_told(tmp_path, weights, changes, message):
    changed = {name: value for name, value in (dict(weights) | changes).items() if value is not None}
    refused(tmp_path, changed, message)


def test_of_mds_one_layer_alone_tells_the_size_of_its_frames():
    assert misfits(MDS_96.shapes | {"netfclip.0.weight": (4096, 4096)}, MDS_96.shapes) == [
        "netfclip.0.weight (4096, 4096) for (4096, 2304)"
    ]
    assert misfits(MDS_224.shapes, MDS_96.shapes) == ["netfclip.0.weight (4096, 12544) for (4096, 2304)"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_alignment_weights_are_told_their_ending(tmp_path, wrapped):
    weights = {name: torch.tensor(array) for name, array in rules.alignment_weights().items()}
    message = r"audio_proj.bias \(512,\) for nothing, .*; .pt is for avh_align, .ckpt for avh_sup, .pth for rawnet2 and"
    refused(tmp_path, {"state_dict": weights} if wrapped else weights, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no `state_dict`"),
        ({"epoch": 1}, "has no `state_dict`"),
        ([1], "has no `state_dict`"),
        ({"first_bn.bias": torch.ones(20), "epoch": 1}, "has no `state_dict`"),
        ({"state_dict": {}}, "has no `state_dict`"),
        ({"state_dict": {"a": 3}}, "holds more than named tensors"),
        ({"state_dict": {1: torch.ones(1)}}, "holds more than named tensors"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    refused(tmp_path, content, f"not a RawNet2 or MDS file: .* {message}")


@pytest.mark.parametrize("place", ["first_bn.bias", "state_dict", "optimizer"])
def test_an_attack_is_refused(tmp_path, place):
    refused(tmp_path, {place: Attack(tmp_path / "proof")}, r"refused to load: it names posix\.system")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("notes", "target", "message"),
    [
        ({"method": "avh_align"}, "w.pth", "holds weights of avh_align, but .pth files do not: .pt is for avh_align"),
        ({"method": "avad"}, "w.pth", "holds weights of avad, but .pth files do not"),
        ({"method": "rawnet2"}, "w.pt", "holds weights of rawnet2, but .pt files do not: .* .pth for rawnet2 and mds"),
        ({"method": "rawnet2"}, "w.ckpt", "holds weights of rawnet2, but .ckpt files do not"),
        ({"method": "rawnet2"}, "w.pth", r"official rawnet2: block0.0.bn2.bias missing for \(20,\), [^;]*$"),
        ({"method": "mds", "width_multiplier": "0.5"}, "w.pth", "as method mds, width_multiplier 0.5, which is not an"),
        ({"method": "mds", "image": "128"}, "w.pth", "official mds at 96 pixels: final_bn_aud.bias missing"),
    ],
)
def test_weights_that_have_no_such_official_form(tmp_path, notes, target, message):
    content = safetensors.torch.save({"first_bn.bias": torch.ones(20)}, pack_notes(notes))
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert_weights(tmp_path / "w.safetensors", tmp_path / target)
    assert not (tmp_path / target).exists()
