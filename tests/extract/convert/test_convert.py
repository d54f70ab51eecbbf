"""Conversion of official weights to .safetensors and back: same numbers, same scores, and rejected files."""

import argparse
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import omegaconf
import pytest
import safetensors.torch
import torch

from avh_shards import UserError
from avh_shards.weights import pack_notes, unpack_notes
from extract.convert.unpickle import StandIn, load_restricted
from extract.convert.weights import convert_weights, official_networks
from jax_avh.evaluation import POOLINGS
from jax_avh.inference import choose_method, score_shards
from jax_avh.models.weights import load_weights, read_notes
from tests import rules
from tests.conftest import TESTDATA
from tests.extract.convert.test_npz import Attack

KINDS = [(network.notes["head"], network.notes["modality"]) for network in official_networks()[".ckpt"]]
SUPERVISED = {"method": "avh_sup", "head": "mlp", "modality": "both", "normalised": "true"}


def rule_weights(head, modality):
    """Rule-made weights of an official network, with the shapes observed in the official programs."""
    if head == "linear":
        shapes = {"head.weight": (1, 2048 if modality == "both" else 1024), "head.bias": (1,)}
        return {name: torch.tensor(rules.fill(name, shape), dtype=torch.float32) for name, shape in shapes.items()}
    weights = rules.alignment_weights()
    if modality != "both":
        weights = {name: array for name, array in weights.items() if name.startswith("mlp")}
        weights |= {
            f"proj.{n}": rules.fill(f"proj.{n}", s) for n, s in {"weight": (1024, 1024), "bias": (1024,)}.items()
        }
    return {name: torch.tensor(array, dtype=torch.float32) for name, array in weights.items()}


def lightning_file(path, weights, config):
    """Writes a file as Lightning's trainer saves it, with these hyper-parameters."""
    parameters = list(weights.values())
    optimizer = torch.optim.Adam(parameters[:1])
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    content = {"epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.0.1", "loops": {"fit_loop": {}}}
    content |= {"state_dict": weights, "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"best": 0.1}]}
    content |= {"callbacks": {"EarlyStopping{'mode': 'min'}": {"best_score": torch.tensor(0.3)}}}
    torch.save(content | {"hyper_parameters": {"config": config}}, path)
    return path


def settings(head, modality):
    return {"model_hparams": {"model_type": head, "input_type": modality, "dropout": 0.0}, "lr": 1e-3}


def write_safetensors(path, weights, notes=None):
    path.write_bytes(safetensors.torch.save(weights, pack_notes(notes) if notes else None))
    return path


@pytest.mark.parametrize(("head", "modality"), KINDS)
def test_a_lightning_file_comes_back_bit_by_bit(tmp_path, head, modality):
    weights = rule_weights(head, modality)
    official = lightning_file(tmp_path / "w.ckpt", weights, settings(head, modality))
    convert_weights(official, tmp_path / "w.safetensors")
    notes = {"method": "avh_sup", "head": head, "modality": modality, "normalised": "true"}
    assert read_notes(tmp_path / "w.safetensors") == notes
    assert choose_method(None, tmp_path / "w.safetensors").name == "avh_sup"
    convert_weights(tmp_path / "w.safetensors", tmp_path / "back.ckpt")
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)
    assert back["state_dict"].keys() == weights.keys()
    for name, value in back["state_dict"].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name])
    assert back["hyper_parameters"] == {"config": {"model_hparams": {"model_type": head, "input_type": modality}}}
    assert back["pytorch-lightning_version"].startswith("2.")
    convert_weights(tmp_path / "back.ckpt", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def torch_scores(weights, head, modality, visual, audio):
    """Scores with a plain implementation of the official network."""
    features = {"visual": visual, "audio": audio, "video": visual}
    unit = {name: x / x.norm(dim=-1, keepdim=True) for name, x in features.items()}
    names = ("visual", "audio") if modality == "both" else (modality,)

    def layer(name, x):
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if head == "linear":
        return layer("head", torch.cat([unit[name] for name in names], -1))[:, 0]
    projections = [layer(f"{name}_proj" if modality == "both" else "proj", unit[name]) for name in names]
    x = torch.cat(projections, -1)
    for n in (0, 3, 6):
        norm = weights[f"mlp.{n + 1}.weight"], weights[f"mlp.{n + 1}.bias"]
        x = torch.relu(torch.nn.functional.layer_norm(layer(f"mlp.{n}", x), norm[0].shape, *norm))
    return layer("mlp.9", x)[:, 0]


@pytest.mark.parametrize(("head", "modality"), KINDS)
def test_a_converted_lightning_file_scores_as_in_pytorch(tmp_path, head, modality):
    weights = rule_weights(head, modality)
    convert_weights(lightning_file(tmp_path / "w.ckpt", weights, settings(head, modality)), tmp_path / "w.safetensors")
    visual, audio = np.random.default_rng(0).standard_normal((2, 9, 1024)).astype(np.float32)
    found = load_weights(tmp_path / "w.safetensors")(jnp.asarray(visual), jnp.asarray(audio))
    wanted = torch_scores(weights, head, modality, torch.from_numpy(visual), torch.from_numpy(audio)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.fixture(params=["lightning.fabric.utilities.data", "lightning_fabric.utilities", "lightning_utilities.core"])
def attribute_dict(request):
    """Creates an object that pickles as Lightning's AttributeDict, whose import raises when the file is read."""
    parts = request.param.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].AttributeDict = type("AttributeDict", (dict,), {"__module__": names[-1]})
    yield sys.modules[names[-1]].AttributeDict
    for name in names:
        del sys.modules[name]


def test_objects_of_lightning_are_inert(tmp_path, attribute_dict):
    inner = attribute_dict(settings("linear", "audio")["model_hparams"])
    config = attribute_dict(model_hparams=inner)
    config.extra = "state next to the items"
    official = lightning_file(tmp_path / "w.ckpt", rule_weights("linear", "audio"), config)
    for name in [n for n in sys.modules if n.startswith("lightning")]:
        sys.modules[name] = None
    found = load_restricted(official)["hyper_parameters"]["config"]
    assert isinstance(found, StandIn)
    assert found.items.keys() == {"model_hparams"}
    assert not StandIn.items
    convert_weights(official, tmp_path / "w.safetensors")
    assert read_notes(tmp_path / "w.safetensors")["modality"] == "audio"


@pytest.mark.parametrize("form", [omegaconf.OmegaConf.create, lambda config: argparse.Namespace(**config)])
def test_settings_of_other_programs_are_understood(tmp_path, form):
    weights = rule_weights("linear", "video")
    convert_weights(
        lightning_file(tmp_path / "w.ckpt", weights, form(settings("linear", "video"))), tmp_path / "w.safetensors"
    )
    assert read_notes(tmp_path / "w.safetensors")["modality"] == "video"


@pytest.mark.parametrize(
    ("network", "recorded", "message"),
    [
        (("mlp", "both"), ("linear", "both"), r"fit the official linear of both: .*head.bias missing for \(1,\)"),
        (("mlp", "both"), ("mlp", "audio"), "fit the official mlp of audio: .*visual_proj"),
        (("mlp", "video"), ("mlp", "both"), r"fit the official mlp of both: .*proj.weight \(1024, 1024\) for nothing"),
        (("linear", "both"), ("linear", "video"), r"head.weight \(1, 2048\) for \(1, 1024\)"),
        (("linear", "audio"), ("linear", "both"), r"head.weight \(1, 1024\) for \(1, 2048\)"),
        (("mlp", "both"), ("transformer", "both"), "as head transformer, modality both, which is not an"),
        (("mlp", "audio"), (None, None), "could be for audio or video"),
        (("linear", "video"), ("linear", None), "could be for audio or video"),
        (("mlp", "audio"), (None, "both"), "do not fit"),
    ],
)
def test_lightning_files_that_contradict_themselves_or_say_too_little(tmp_path, network, recorded, message):
    lightning_file(tmp_path / "w.ckpt", rule_weights(*network), settings(*recorded))
    with pytest.raises(UserError, match=message):
        convert_weights(tmp_path / "w.ckpt", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("hyper_parameters", [None, {}, [], {"config": 3}, {"config": {"model_hparams": None}}])
def test_parameters_of_one_network_alone_need_no_settings(tmp_path, hyper_parameters):
    torch.save(
        {"state_dict": rule_weights("linear", "both"), "hyper_parameters": hyper_parameters}, tmp_path / "w.ckpt"
    )
    convert_weights(tmp_path / "w.ckpt", tmp_path / "w.safetensors")
    assert read_notes(tmp_path / "w.safetensors") == SUPERVISED | {"head": "linear"}


@pytest.mark.parametrize(
    ("changed", "target", "message"),
    [
        ({}, "w.pt", "holds weights of avh_sup, but .pt files do not"),
        ({"method": "avh_align"}, "w.ckpt", "holds weights of avh_align, but .ckpt files do not"),
        (None, "w.ckpt", "holds weights of avh_align, but .ckpt files do not"),
        ({"normalised": "false"}, "w.ckpt", "always normalise"),
        ({"method": "avh_align", "normalised": "false"}, "w.pt", "always normalise"),
        ({"modality": "audio"}, "w.ckpt", "do not fit the official mlp of audio"),
        ({"head": "linear", "method": "avh_align"}, "w.pt", "not an official network of avh_align"),
    ],
)
def test_weights_that_have_no_such_official_form(tmp_path, changed, target, message):
    notes = None if changed is None else SUPERVISED | changed
    write_safetensors(tmp_path / "w.safetensors", rule_weights("mlp", "both"), notes)
    with pytest.raises(UserError, match=message):
        convert_weights(tmp_path / "w.safetensors", tmp_path / target)
    assert not (tmp_path / target).exists()


def test_weights_of_another_width_have_no_official_form(tmp_path):
    rules.write_alignment_weights(tmp_path / "w.safetensors", width=64)
    with pytest.raises(UserError, match=r"audio_proj.weight \(512, 64\) for \(512, 1024\)"):
        convert_weights(tmp_path / "w.safetensors", tmp_path / "w.pt")


@pytest.mark.parametrize("trained", [False, True], ids=["rule-made", "trained"])
def test_official_weights_score_as_recorded_and_come_back_equal(shared, rule_shards, tmp_path, trained):
    official = shared("training/avh_align_official.pt") if trained else tmp_path / "official.pt"
    if not trained:
        weights = {name: torch.from_numpy(value) for name, value in rules.alignment_weights().items()}
        torch.save({"epoch": 0, "state_dict": weights, "args": argparse.Namespace(tau=15)}, official)
    convert_weights(official, tmp_path / "w.safetensors")
    record = json.loads((TESTDATA / "training.json").read_text())["lr1e-3"]
    table = score_shards(rule_shards["test"], tmp_path / "s.h5", weights=tmp_path / "w.safetensors")
    recorded = {path: score for path, _, score in record["scores" if trained else "initial_scores"]}
    for clip, value in zip(table.clips, table.clip, strict=True):
        assert value == pytest.approx(recorded[clip.path], abs=1e-3)
    n = [clip.path for clip in table.clips].index("test/c03.mp4")
    frame = table.frame[slice(*table.offset[n : n + 2])]
    if trained:
        np.testing.assert_allclose(frame, record["frame_scores_test/c03.mp4"], rtol=0, atol=1e-3)
    assert POOLINGS["logsumexp"](frame) == pytest.approx(table.clip[n], rel=1e-6)
    convert_weights(tmp_path / "w.safetensors", tmp_path / "back.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = torch.load(official, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_in_the_official_form_converts(tmp_path, dtype):
    weights = {name: value.to(dtype) for name, value in rule_weights("mlp", "both").items()}
    official = {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}}
    official |= {"scheduler": {}, "best_val_loss": 3.4, "args": argparse.Namespace(tau=15, name="x")}
    torch.save(official, tmp_path / "w.pt")
    convert_weights(tmp_path / "w.pt", tmp_path / "w.safetensors")
    found = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], value.float()) for name, value in weights.items())
    assert read_notes(tmp_path / "w.safetensors") == SUPERVISED | {"method": "avh_align"}
    assert load_weights(tmp_path / "w.safetensors").width == 1024


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a.pt", "b.pt"),
        ("a.pt", "b.ckpt"),
        ("a.safetensors", "b.safetensors"),
        ("a.txt", "b.pt"),
        ("a.pt", "b.bin"),
    ],
)
def test_endings_that_mean_no_conversion(tmp_path, source, target):
    with pytest.raises(UserError, match="one must end in"):
        convert_weights(tmp_path / source, tmp_path / target)


@pytest.mark.parametrize("ending", [".pt", ".ckpt"])
@pytest.mark.parametrize(
    "content", [{"epoch": 1}, {"state_dict": {}}, {"state_dict": {"a": 3}}, {"state_dict": {1: torch.ones(1)}}, [1]]
)
def test_files_without_weights(tmp_path, content, ending):
    torch.save(content, tmp_path / f"w{ending}")
    with pytest.raises(UserError, match="not an AVH-Align file"):
        convert_weights(tmp_path / f"w{ending}", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("ending", [".pt", ".ckpt"])
def test_an_attack_in_weights_is_refused(tmp_path, ending):
    torch.save({"state_dict": {}, "hyper_parameters": Attack(tmp_path / "proof")}, tmp_path / f"w{ending}")
    with pytest.raises(UserError, match=r"refused to load: it names posix\.system"):
        convert_weights(tmp_path / f"w{ending}", tmp_path / "w.safetensors")
    assert not (tmp_path / "proof").exists()


def test_damaged_safetensors(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="not a readable"):
        convert_weights(tmp_path / "w.safetensors", tmp_path / "w.pt")


@pytest.mark.parametrize("text", ["[1]", "{", "3", "[" * 10**5])
def test_notes_that_are_none_are_told_by_both_sides(tmp_path, text):
    content = safetensors.torch.save(rule_weights("linear", "both"), {"avh-align": text})
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (read_notes, lambda path: convert_weights(path, tmp_path / "w.ckpt")):
        with pytest.raises(UserError, match="not a readable"):
            read(tmp_path / "w.safetensors")


def test_notes_come_back():
    assert unpack_notes(pack_notes(SUPERVISED)) == SUPERVISED
    assert unpack_notes(None) == unpack_notes({"format": "pt"}) == {}
