"""Official files: every format loads, and no pickled code runs."""

import argparse
import io
import os
import pickle
import sys
import tarfile
import types
import zipfile

import numpy as np
import omegaconf
import pytest
import torch

from avh_shards import UserError
from extract.avhubert import AVHubertConfig, load_avhubert
from extract.convert.unpickle import load_restricted
from tests import rules
from tests.rules import TINY_SETTINGS as SETTINGS
from tests.rules import encoder_checkpoint as checkpoint


@pytest.fixture
def foreign_class():
    """Defines a class that pickles as fairseq's Dictionary and is removed before the file is read."""
    names = ["fairseq", "fairseq.data", "fairseq.data.dictionary"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    kind = type("Dictionary", (), {"__module__": names[-1]})
    sys.modules[names[-1]].Dictionary = kind
    yield kind
    for name in names:
        del sys.modules[name]


def as_config(form: str) -> object:
    """Returns the same settings in the layout of an old or new file."""
    return {
        "dict": {"model": SETTINGS, "task": {"labels": ["km"]}},
        "omegaconf": omegaconf.OmegaConf.create({"model": SETTINGS, "task": {"labels": ["km"]}}),
        "namespace": argparse.Namespace(**SETTINGS, arch="av_hubert"),
    }[form]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("form", ["dict", "omegaconf", "namespace"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fine_tuned_files_of_every_age_load(tmp_path, form, dtype, zipped, tiny_encoder):
    path = tmp_path / "x.pt"
    torch.save(checkpoint(True, as_config(form), dtype), path, _use_new_zipfile_serialization=zipped)
    network = load_avhubert(path)
    assert network.config == AVHubertConfig.tiny()
    wanted = tiny_encoder.state_dict() if dtype == torch.float16 else rules.encoder_weights(tiny_encoder)
    for name, value in network.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value, wanted[name].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("form", [dict, omegaconf.OmegaConf.create, lambda s: argparse.Namespace(**s)])
def test_pretrained_files_load(tmp_path, form):
    torch.save(checkpoint(False, form(SETTINGS)), tmp_path / "x.pt")
    assert load_avhubert(tmp_path / "x.pt").config == AVHubertConfig.tiny()


def test_objects_of_the_official_programs_become_stand_ins(tmp_path, foreign_class, request):
    thing = foreign_class()
    thing.symbols = ["a"]
    file = checkpoint(False, SETTINGS) | {"task_state": {"dictionary": thing}}
    torch.save(file, tmp_path / "x.pt")
    for name in [n for n in sys.modules if n.startswith("fairseq")]:
        sys.modules[name] = None  # makes an import raise
    loaded = load_restricted(tmp_path / "x.pt")
    assert loaded["task_state"]["dictionary"].state == {"symbols": ["a"]}
    load_avhubert(tmp_path / "x.pt")


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Attack(os.system, "touch {proof}"), "posix.system"),
        (Attack(eval, "open('{proof}', 'w')"), "builtins.eval"),
        (Attack(getattr, "os", "system"), "builtins.getattr"),
        (Attack(pickle.loads, b""), "_pickle.loads"),
        (Attack(torch.load, "{proof}"), "torch.serialization.load"),
        (Attack(np.load, "{proof}"), "numpy.load"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_any_other_callable_is_refused_by_name_and_not_run(tmp_path, attack, named, zipped):
    proof = tmp_path / "proof"
    function, arguments = attack.call
    arguments = tuple(a.format(proof=proof) if isinstance(a, str) else a for a in arguments)
    file = checkpoint(False, SETTINGS) | {"extra_state": Attack(function, *arguments)}
    torch.save(file, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"x\.pt: refused") as error:
        load_avhubert(tmp_path / "x.pt")
    assert named.rpartition(".")[2] in str(error.value)
    assert not proof.exists()


def test_the_same_attack_does_run_in_a_plain_unpickler(tmp_path):
    """Shows that the attack in the test above is real."""
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {tmp_path}/proof")))
    assert (tmp_path / "proof").exists()


def test_torchscript_never_runs_however_the_archive_is_dressed(tmp_path):
    """torch.load would run a TorchScript program; an appended end record hides it from Python's zip reader."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
    with (tmp_path / "x.pt").open("ab") as file:
        file.write(b"PK\x05\x06" + bytes(10))
    with tarfile.open(tmp_path / "y.pt", "w") as archive:
        archive.add(__file__, "storages")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(UserError, match=name):
            load_restricted(tmp_path / name)


def legacy(*objects) -> bytes:
    """Builds the start of a legacy file with the given pickles."""
    head = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(pickle.dumps(o, protocol=2) if not isinstance(o, bytes) else o for o in (*head, *objects))


def test_a_pickle_cannot_change_the_functions_it_is_given(tmp_path):
    """BUILD sets attributes of any object; on a shared function that would have effects outside the file."""
    sets = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}U\x08__name__U\x01xs\x86b."
    (tmp_path / "x.pt").write_bytes(legacy(sets.replace(b"(N}", b"N}"), []))
    with pytest.raises(UserError, match="refused"):
        load_restricted(tmp_path / "x.pt")


def test_a_module_smuggled_in_as_a_storage_is_refused(tmp_path):
    class Smuggler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("module", "f", "x.py", "text") if thing == "smuggled" else None

    buffer = io.BytesIO()
    Smuggler(buffer, protocol=2).dump({"a": "smuggled"})
    (tmp_path / "x.pt").write_bytes(legacy(buffer.getvalue(), []))
    with pytest.raises(UserError, match="refers to 'module'"):
        load_restricted(tmp_path / "x.pt")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="refused"):
        load_restricted(tmp_path / "x.pt")


@pytest.mark.parametrize("form", ["compressed", "overlapping"])
def test_an_archive_that_holds_more_than_its_size_is_refused(tmp_path, form):
    """Otherwise a few bytes could fill the memory."""
    torch.save({"a": torch.zeros(9)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    method = {"compressed": zipfile.ZIP_DEFLATED, "overlapping": zipfile.ZIP_STORED}[form]
    with zipfile.ZipFile(tmp_path / "y.pt", "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if form == "overlapping":
            archive.filelist[0].file_size = archive.filelist[0].compress_size = 2**20
    with pytest.raises(UserError, match=r"y\.pt: refused to load: its members are compressed or"):
        load_restricted(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("encoder_embed_dim", -1),
        ("encoder_attention_heads", 0),
        ("encoder_attention_heads", 7),
        ("encoder_layers", "x"),
    ],
)
def test_sizes_that_cannot_be_are_told(tmp_path, change, value):
    torch.save(checkpoint(False, SETTINGS | {change: value}), tmp_path / "x.pt")
    with pytest.raises(UserError, match="not an AV-HuBERT file"):
        load_avhubert(tmp_path / "x.pt")


def test_all_parameters_that_do_not_fit_are_named_at_once(tmp_path):
    file = checkpoint(False, SETTINGS)
    del file["model"]["layer_norm.bias"]
    file["model"]["post_extract_proj.bias"] = torch.zeros(3)
    file["model"]["stray"] = torch.zeros(1)
    torch.save(file, tmp_path / "x.pt")
    with pytest.raises(UserError, match="3 parameters") as error:
        load_avhubert(tmp_path / "x.pt")
    for name in ("layer_norm.bias", "post_extract_proj.bias", "stray"):
        assert name in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt"):
        load_avhubert(tmp_path / "x.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cut_short(tmp_path, part, zipped):
    torch.save(checkpoint(False, SETTINGS), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UserError, match=r"x\.pt"):
        load_avhubert(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "file",
    [
        [],
        {},
        {"model": {}},
        {"model": {"a": 1}, "cfg": {"model": {"encoder_layers": 2}}},
        {"model": {}, "cfg": argparse.Namespace()},
    ],
)
def test_files_of_something_else(tmp_path, file):
    torch.save(file, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not an AV-HuBERT file"):
        load_avhubert(tmp_path / "x.pt")
