"""Untrusted weights and features: their demands are bounded, and errors name the kind of file."""

import gzip
import io
import json
import pickle
import re
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.clip_list import MAX_FRAMES
from avh_shards.format import list_shards
from avh_shards.weights import pack_notes
from extract.avhubert import AVHubertConfig, load_avhubert
from extract.convert.npz import import_features, read_npz
from extract.convert.unpickle import load_restricted
from extract.convert.weights import convert_weights
from extract.store.shard import read_failures
from jax_avh.inference import load_detector
from jax_avh.models.weights import load_weights
from tests import rules
from tests.conftest import TESTDATA
from tests.fuzz.test_torch import integer, name, text
from tests.rules import TINY_SETTINGS

FLOATS = name("torch", "FloatStorage")
TENSOR = name("torch._utils", "_rebuild_tensor_v2")


def archive(path, pickled, storages=(), byteorder="little"):
    """Writes a zip-format file with the given pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", byteorder)
        for key, data in enumerate(storages):
            file.writestr(f"a/data/{key}", data)
    return path


def legacy(path, pickled, keys, *storages):
    """Writes a legacy-format file with the given pickle."""
    head = (0x1950A86A20F9469CFC6C, 1001, {})
    opening = b"".join(pickle.dumps(value, protocol=2) for value in head)
    data = b"".join((len(data) // 4).to_bytes(8, "little") + data for data in storages)
    path.write_bytes(opening + pickled + pickle.dumps(keys, protocol=2) + data)
    return path


def storage(kind=FLOATS, count=4):
    """Returns the opcodes of a storage."""
    return b"(" + text("storage") + kind + text("0") + text("cpu") + integer(count) + b"tQ"


def tensor(offset, size, stride, kind=FLOATS, count=4):
    """Returns the opcodes of a tensor."""
    sizes = b"".join(b"(" + b"".join(map(integer, part)) + b"t" for part in (size, stride))
    return TENSOR + b"(" + storage(kind, count) + integer(offset) + sizes + b"\x89NtR"


def doubled(start, join):
    """Returns opcodes of a value that doubles sixty times."""
    return start + b"q\x00" + (b"0" + join + b"q\x00") * 60


WIDE = b"](" + b"N" * 2000 + b"eq\x00"  # a list of many elements, in the memo
HOSTILE = {
    "a far place in the memo": (b"Nr\xff\xff\xff\x7f", "it is read"),
    "a number of two gigabytes": (b"\x8b\xff\xff\xff\x7f1234", "not enough data"),
    "a number of any length": (b"\x8b\x04\0\0\x001234", "it uses the opcode LONG4"),
    "a text of four gigabytes": (b"X\xff\xff\xff\xff1234", "expected 4294967295 bytes"),
    "a million digits": (b"I" + b"9" * 10**6 + b"\n", "digits"),
    "a key that takes for ever to hash": (b"}" + doubled(b")", b"h\x00h\x00\x86") + b"Ns", "a key that is a tuple"),
    "keys of one hash": (b"}\x8a\x09" + (2**61 - 1 << 4).to_bytes(9, "little") + b"Ns", "a key that is a int"),
    "copies without end": (WIDE + (name("builtins", "set") + b"h\x00\x85R") * 10, "steps"),
    "copies of arguments": (b"(" + b"N" * 2000 + b"tq\x00" + (name("typing", "Any") + b"h\x00R") * 10, "steps"),
    "opcodes without end": (b"N0" * 5000, "steps"),
    "the state of a tensor": (tensor(0, (2, 2), (2, 1)) + b")b", "sets the state of a Tensor"),
    "the state of a storage": (storage() + b")b", "sets the state of a Tensor"),
    "an attribute of a tensor's class": (name("torch", "Tensor") + b")R", "names torch.Tensor"),
    "a tensor from an attribute": (name("torch._utils", "_rebuild_from_type_v2"), "names torch._utils._rebuild_from"),
    "a tensor beyond its storage": (tensor(1, (2, 2), (2, 1)), "reaches beyond its storage of 4 numbers"),
    "strides beyond its storage": (tensor(0, (2, 2), (4, 1)), "reaches beyond its storage of 4 numbers"),
    "more numbers than its storage": (tensor(0, (8,), (0,)), "reaches beyond its storage of 4 numbers"),
    "a negative stride": (tensor(3, (4,), (-1,)), "more than non-negative integers"),
    "a negative offset": (tensor(-1, (2,), (1,)), "more than non-negative integers"),
    "a dimension too many": (tensor(0, (1,) * 9, (1,) * 9), "9 dimensions"),
    "one storage as two": (
        tensor(0, (4,), (1,)) + tensor(0, (2,), (1,), kind=name("torch", "LongStorage"), count=2),
        "two",
    ),
    "less than its storage says": (tensor(0, (4,), (1,), count=5), "5 numbers|a storage differs in size"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_pickle_demands_is_bounded(tmp_path, monkeypatch, kind, zipped):
    monkeypatch.setattr("extract.convert.unpickle.MOST_STEPS", 10_000)  # type checks make calls slow
    opcodes, reason = HOSTILE[kind]
    pickled = b"\x80\x02" + opcodes + b"."
    path = (
        archive(tmp_path / "x.pt", pickled, [bytes(16)])
        if zipped
        else legacy(tmp_path / "x.pt", pickled, ["0"] if b"storage" in pickled else [], bytes(16))
    )
    if reason == "it is read":
        assert load_restricted(path) is None
        return
    with pytest.raises(UserError, match=reason) as error:
        load_restricted(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings", [b"}q\x00" + text("a") + b"h\x00s", doubled(b"]", b"](h\x00h\x00e"), doubled(b")", b"h\x00h\x00\x86")]
)
def test_settings_that_contain_themselves_or_double_are_refused(tmp_path, settings):
    pickled = b"\x80\x02}(" + text("model") + b"}" + text("cfg") + settings + b"u."
    with pytest.raises(UserError, match="settings that contain themselves or are too large"):
        load_avhubert(archive(tmp_path / "x.pt", pickled))
    weights = text("state_dict") + b"}" + text("a") + tensor(0, (4,), (1,)) + b"s"
    archive(tmp_path / "x.ckpt", b"\x80\x02}(" + weights + text("hyper_parameters") + settings + b"u.", [bytes(16)])
    with pytest.raises(UserError, match="settings that contain themselves or are too large"):
        convert_weights(tmp_path / "x.ckpt", tmp_path / "x.safetensors")


@pytest.mark.parametrize("keys", [[], ["0", "0"], ["1"], ["0", "1"], [0], "0", [["0"]]])
def test_storages_that_are_not_filled_are_refused(tmp_path, keys):
    numbers = [np.arange(4, dtype=np.float32).tobytes()] * len(keys)
    pickled = b"\x80\x02" + tensor(0, (4,), (1,)) + b"."
    assert load_restricted(legacy(tmp_path / "w.pt", pickled, ["0"], *numbers[:1] or [bytes(16)])).shape == (4,)
    with pytest.raises(UserError, match="its storages are not those of its tensors"):
        load_restricted(legacy(tmp_path / "x.pt", pickled, keys, *numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_the_order_of_bytes_is_honoured(tmp_path, dtype, monkeypatch):
    wanted = torch.tensor([0, 1, 2, 250]).to(dtype)
    torch.save(wanted, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as file:
        pickled, data = file.read("little/data.pkl"), file.read("little/data/0")
    swapped = np.frombuffer(data, f"V{wanted.itemsize}").tolist()
    archive(tmp_path / "big.pt", pickled, [b"".join(number[::-1] for number in swapped)], "big")
    for path in ("little.pt", "big.pt"):
        found = load_restricted(tmp_path / path)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner)
        | st.sets(st.text()).filter(bool)
        | st.builds(lambda x: [x, x], inner)
    ),
)


@settings(max_examples=50)
@given(plain_values, st.integers(2, 5))
def test_plain_values_are_read_as_python_reads_them(tmp_path_factory, value, protocol):
    path = archive(tmp_path_factory.getbasetemp() / "plain.pt", pickle.dumps(value, protocol))
    assert load_restricted(path) == value


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(tmp_path, protocol):
    value = {"a": [1, 2.5, None, True, False, "é\n'", (), (1,), -7, 10**20], "b": {}, "c": [], 3: {"d": (1, 2, 3, 4)}}
    value["again"] = value["a"]
    found = load_restricted(archive(tmp_path / "x.pt", pickle.dumps(value, protocol)))
    assert found == value
    assert found["again"] is found["a"]


def test_a_small_file_of_many_large_parameters_is_refused_before_they_are_made(tmp_path):
    """Each parameter fits the storage, but all of them share it."""
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in rules.AVHubert(AVHubertConfig(9, 64, 128, 4)).state_dict().items()
        }
    numbers = torch.zeros(3_000_000)
    model = {name: numbers[: shape.numel()].view(shape) for name, shape in shapes.items()}
    torch.save({"model": model, "cfg": TINY_SETTINGS | {"encoder_layers": 9}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="its parameters share memory"):
        load_avhubert(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("encoder_layers", 10**9),
        ("encoder_embed_dim", 2**40),
        ("encoder_ffn_embed_dim", 2**62),
        ("encoder_layers", float("inf")),
        ("encoder_layers", "9" * 5000),
        ("encoder_layers", torch.zeros(3)),
    ],
)
def test_sizes_beyond_any_encoder_are_refused(tmp_path, change, value):
    torch.save({"model": {"a": torch.zeros(3)}, "cfg": TINY_SETTINGS | {change: value}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="incomplete or invalid configuration"):
        load_avhubert(tmp_path / "x.pt")


def write_safetensors(path, arrays, notes=None):
    path.write_bytes(safetensors.numpy.save(arrays, pack_notes(notes) if notes else None))
    return path


@pytest.mark.parametrize(
    ("notes", "arrays"),
    [
        ({}, {"visual_proj.weight": (1, 200_000)}),
        ({}, {"head.weight": (1, 200_000)}),
        ({"method": "mds", "image": "320000", "width_multiplier": "1.0"}, {"conv1.weight": (3,)}),
        (
            {"method": "avad", "windows": "9" * 12, "tau": "9" * 12, "boundary": "zeros", "sync_width": "9" * 12}
            | {"sync_head": "mlp", "sync_modality": "both", "sync_normalised": "true"},
            {"lin1.weight": (3,)},
        ),
    ],
)
def test_a_network_is_made_only_of_what_its_file_holds(tmp_path, notes, arrays):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    with pytest.raises(UserError, match="parameters that do not fit the network"):
        load_detector(write_safetensors(tmp_path / "w.safetensors", arrays, notes))


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ({"method": "rawnet2", "samples": "9" * 12}, "invalid notes for rawnet2 .cuts of 999999999999 samples"),
        ({"method": "mds", "image": "9" * 5000, "width_multiplier": "1"}, "invalid notes for mds"),
        ({"method": "mds", "image": "96", "width_multiplier": "nan"}, "invalid notes for mds"),
        ({"method": "avad", "windows": "50", "tau": "15", "boundary": "\x1b[2J", "sync_width": "8"}, r"\\x1b\[2J"),
        ({"method": "avad", "windows": "50", "tau": "15", "boundary": "mask", "sync_width": "0"}, "width 0"),
    ],
)
def test_notes_of_no_network_are_refused(tmp_path, notes, reason):
    with pytest.raises(UserError, match=reason):
        load_detector(write_safetensors(tmp_path / "w.safetensors", {"a": np.zeros(3, np.float32)}, notes))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64])
def test_weights_that_are_not_finite_floats_are_refused(tmp_path, kind):
    arrays = {
        "head.weight": np.full((1, 16), 1e300 if kind is np.float64 else 1).astype(kind),
        "head.bias": np.ones(1, kind),
    }
    path = write_safetensors(tmp_path / "w.safetensors", arrays, {"method": "avh_sup"})
    with pytest.raises(
        UserError, match="holds NaN or infinity" if kind is np.float64 else "not floating-point numbers"
    ):
        load_weights(path)


def header(entries, data=b""):
    content = json.dumps(entries).encode()
    return len(content).to_bytes(8, "little") + content + data


@pytest.mark.parametrize(
    "content",
    [
        (10**12).to_bytes(8, "little") + b"{}",
        (2**23).to_bytes(8, "little") + b"{" + b" " * 2**23,
        header({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, bytes(4)),
        header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            bytes(12),
        ),
        header({"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        header({"__metadata__": {"avh-align": "3"}}),
    ],
    ids=["a length beyond the file", "a header of megabytes", "a huge shape", "overlapping", "a wrong dtype", "notes"],
)
def test_headers_that_cannot_be_are_told_by_both_sides(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (load_detector, lambda path: convert_weights(path, tmp_path / "w.pt")):
        with pytest.raises(UserError, match="not a readable"):
            read(tmp_path / "w.safetensors")


def write_kind(path, kind):
    match kind:
        case "a PyTorch file":
            torch.save({}, path)
        case "a PyTorch file (legacy)":
            torch.save({}, path, _use_new_zipfile_serialization=False)
        case "a TorchScript program":
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        case "a .safetensors file":
            write_safetensors(path, {"a": np.zeros(3)})
        case "an HDF5 file":
            h5py.File(path, "w").close()
        case "an .npz file":
            with path.open("wb") as file:
                np.savez(file, a=1)
        case "a zip archive":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("README", "x")
        case "a web page":
            path.write_text("\n<!DOCTYPE html><html><body>Please log in</body></html>")
        case "a pointer of Git LFS":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        case "a gzip archive":
            path.write_bytes(gzip.compress(b"x"))
        case "a video file":
            shutil.copy(TESTDATA / "s4_roi.mp4", path)
        case "an empty file":
            path.write_bytes(b"")
        case "a text file":
            path.write_text("sha256: 0123 weightsé\n" * 9999)


KINDS = ["a PyTorch file", "a PyTorch file (legacy)", "a TorchScript program", "a .safetensors file", "an HDF5 file"]
KINDS += ["an .npz file", "a zip archive", "a web page", "a pointer of Git LFS", "a gzip archive", "a video file"]
KINDS += ["an empty file", "a text file"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_wrong_kind_is_named(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    write_kind(path, kind)
    named = kind.removesuffix(" (legacy)")
    if kind != "a .safetensors file":
        wanted = rf"w\.safetensors: {named}.*, but \.safetensors weights are expected"
        wanted += "; convert it with launch.convert$" if named == "a PyTorch file" else "$"
        for read in (load_detector, lambda path: convert_weights(path, tmp_path / "out.pt")):
            with pytest.raises(UserError, match=wanted):
                read(path)
    if named != "a PyTorch file":
        path.rename(tmp_path / "w.pt")
        for read in (load_avhubert, lambda path: convert_weights(path, tmp_path / "out.safetensors")):
            with pytest.raises(UserError, match=rf"w\.pt: {named}.*, but an official PyTorch file is expected"):
                read(tmp_path / "w.pt")


def test_an_encoder_and_a_detector_that_are_mistaken_for_each_other(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "cfg": {}}, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match="as AV-HuBERT files do; pass the file to --avhubert unchanged"):
        convert_weights(tmp_path / "encoder.pt", tmp_path / "w.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "detector.pt")
    with pytest.raises(UserError, match="as detector weights do; convert those with"):
        load_avhubert(tmp_path / "detector.pt")


def array_header(shape, kind="<f4"):
    buffer = io.BytesIO()
    fields = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def write_members(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name if name == "bare" else f"{name}.npy", content)


def test_arrays_that_promise_too_much_cost_their_clip_alone(tmp_path):
    good = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    np.savez_compressed(tmp_path / "good.npz", visual=good[0], audio=good[1])
    np.savez_compressed(tmp_path / "longest.npz", **dict.fromkeys(("visual", "audio"), np.zeros((MAX_FRAMES, 8), "f2")))
    np.savez_compressed(
        tmp_path / "longer.npz", **dict.fromkeys(("visual", "audio"), np.zeros((MAX_FRAMES + 1, 8), "f2"))
    )
    write_members(tmp_path / "bytes.npz", visual=b"not an array", audio=b"")
    write_members(tmp_path / "rows.npz", visual=array_header((2**40, 8)), audio=b"")
    write_members(tmp_path / "text.npz", visual=array_header((1,), "<U99999999"), audio=b"")
    write_members(tmp_path / "lzma.npz", zipfile.ZIP_LZMA, visual=array_header((0, 8)), audio=array_header((0, 8)))
    with zipfile.ZipFile(tmp_path / "bare.npz", "w") as file:
        file.writestr("visual", b"bytes")
    reasons = {
        "longer": r"`visual` is float16 \[15001, 8\], larger than allowed",
        "bytes": "the magic string is not correct",
        "rows": r"\[1099511627776, 8\], larger than allowed",
        "text": r"<U99999999 \[1\], larger",
        "lzma": "a compression method that numpy does not write",
        "bare": "has no array `visual`",
    }
    clips = [ClipMeta(f"{clip}.mp4") for clip in ("good", *reasons, "longest")]
    assert import_features(clips, tmp_path, tmp_path / "out", width=8).stored == 2
    failures = {f.path.removesuffix(".mp4"): f.reason for f in read_failures(tmp_path / "out" / "failures.jsonl")}
    assert failures.keys() == reasons.keys()
    for clip, reason in reasons.items():
        assert re.search(reason, failures[clip]), failures[clip]
    shard = open_shard(list_shards(tmp_path / "out")[0])
    np.testing.assert_array_equal(shard.visual[:5], good[0].astype(np.float16))


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_an_archive_that_lists_members_without_end_is_refused(tmp_path, ending):
    entry = b"PK\x01\x02" + bytes(24) + (4).to_bytes(2, "little") + bytes(16) + b"name"
    entries = entry * 100_000
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2 + len(entries).to_bytes(4, "little") + bytes(6)
    start = b"PK\x03\x04" + bytes(22) + (10).to_bytes(2, "little") + bytes(2) + b"a/data.pkl"
    path = tmp_path / f"x{ending}"
    path.write_bytes(start + entries + end)
    with pytest.raises(UserError, match="lists too many members"):
        load_restricted(path) if ending == ".pt" else read_npz(path, 8)
