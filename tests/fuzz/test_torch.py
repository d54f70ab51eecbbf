"""Fuzzing of PyTorch files, built opcode by opcode or damaged: no code in them may run."""

import collections
import contextlib
import io
import pickletools
import random
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from avh_shards import UserError
from extract.avhubert import load_avhubert
from extract.convert.unpickle import load_restricted, plain
from extract.convert.weights import convert_weights
from tests.fuzz.campaign import campaign

FORBIDDEN_EVENTS = ("os.", "subprocess.", "pickle.", "socket.", "shutil.", "exec", "compile", "import")
NAMES = [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch", "Tensor"),
    ("torch._utils", "_rebuild_from_type_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("__builtin__", "long"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("typing", "Any"),
    ("torch", "Size"),
    ("torch", "FloatStorage"),
    ("torch", "LongStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
]
TEXTS = [
    "model",
    "cfg",
    "state_dict",
    "args",
    "hyper_parameters",
    "config",
    "storage",
    "cpu",
    "0",
    "1",
    "_content",
    "_val",
]
TEXTS += ["encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "latin1", "é"]
NUMBERS = [0, 1, 2, 3, 4, 8, 255, 256, 65535, 2**31 - 1, -1, -(2**31)]
OPCODES = {opcode.name: opcode.code.encode("latin1") for opcode in pickletools.opcodes}
SETTINGS = {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 1}

armed = False
seen: list[str] = []  # calls that a file caused


def watch(event: str, arguments: tuple) -> None:
    """Records forbidden audit events while a file is read."""
    if armed and event.startswith(FORBIDDEN_EVENTS) and "encodings" not in str(arguments[:1]):
        seen.append(f"{event} {arguments[:1]}")


def integer(number: int) -> bytes:
    return OPCODES["BININT"] + number.to_bytes(4, "little", signed=True)


def text(value: str) -> bytes:
    encoded = value.encode()
    return OPCODES["BINUNICODE"] + len(encoded).to_bytes(4, "little") + encoded


def name(module: str, kind: str) -> bytes:
    return OPCODES["GLOBAL"] + f"{module}\n{kind}\n".encode()


def storage(draw: random.Random) -> bytes:
    """Returns a reference to a storage, mostly to one in the file."""
    kind = draw.choice(["FloatStorage"] * 6 + ["LongStorage", "BoolStorage", "UntypedStorage"])
    count = draw.choice([4] * 6 + NUMBERS)
    key = draw.choice(["0", "0", "1", "2"])
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"


def numbers(draw: random.Random) -> bytes:
    return b"(" + b"".join(integer(draw.choice([1, 1, 2, 2, 4, *NUMBERS])) for _ in range(draw.randrange(4))) + b"t"


def tensor(draw: random.Random) -> bytes:
    """Returns a tensor, mostly one that fits its storage."""
    if draw.random() < 0.6:
        sizes = integer(0) + b"(" + integer(2) + integer(2) + b"t(" + integer(2) + integer(1) + b"t"
    else:
        sizes = integer(draw.choice([0, 0, *NUMBERS])) + numbers(draw) + numbers(draw)
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(draw) + sizes + b"\x89" + hooks + b"tR"


def value(draw: random.Random, depth: int = 0) -> bytes:
    """Returns opcodes that leave one value of any kind on the stack."""
    simple = [
        lambda: integer(draw.choice(NUMBERS)),
        lambda: text(draw.choice(TEXTS)),
        lambda: draw.choice([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f"]),
        lambda: name(*draw.choice(NAMES[7:] if draw.random() < 0.97 else NAMES)),
        lambda: tensor(draw),
        lambda: storage(draw),
        lambda: b"j" + draw.choice([0, 1, 2, 3]).to_bytes(4, "little"),
        lambda: b"\x8a\x09" + draw.randbytes(9),
        lambda: b"\x8b" + draw.choice([4, 10**6, 2**31 - 1]).to_bytes(4, "little") + draw.randbytes(4),
        lambda: draw.choice([b"I", b"L", b"F"]) + b"9" * draw.choice([1, 5, 5000]) + b"\n",
        lambda: b"G" + draw.randbytes(8),
    ]
    if depth > 4:
        return draw.choice(simple)()

    def some(most: int = 4) -> list[bytes]:
        return [value(draw, depth + 1) for _ in range(draw.randrange(most))]

    def pairs() -> bytes:
        return b"".join(text(draw.choice(TEXTS)) + item if draw.random() < 0.9 else item * 2 for item in some())

    nested = [
        lambda: b"}(" + pairs() + b"u",
        lambda: b"](" + b"".join(some()) + b"e",
        lambda: b"\x8f(" + b"".join(some()) + b"\x90",
        lambda: b"(" + b"".join(some()) + draw.choice([b"t", b"l", b"d", b"\x91"]),
        lambda: name(*draw.choice(NAMES[7:])) + b"(" + b"".join(some()) + b"t" + draw.choice([b"R", b"\x81"]),
        lambda: value(draw, depth + 1) + value(draw, depth + 1) + b"b",
        lambda: value(draw, depth + 1) + draw.choice([b"q\x00", b"r\x01\0\0\0", b"r\xff\xff\xff\x7f", b"\x94"]),
        lambda: b"".join([b"]q\x00", *[b"](h\x00h\x00eq\x00"] * draw.randrange(60)]),
        lambda: b"".join([b")q\x00", *[b"h\x00h\x00\x86q\x00"] * draw.randrange(60)]),
        lambda: value(draw, depth + 1) + b"2" + draw.choice([b"a", b"0", b"\x86", b"R", b"b"]),
        lambda: value(draw, depth + 1) + draw.choice(list(OPCODES.values())) + draw.randbytes(draw.randrange(3)),
    ]
    return draw.choice(simple if draw.random() < 0.4 else nested)()


def program(draw: random.Random) -> bytes:
    """Returns a pickle, mostly in the form of an official file."""
    if draw.random() < 0.2:
        return b"\x80\x02" + value(draw) + b"."
    parts = [b"\x80\x02}("]
    for key in draw.sample(TEXTS[:6], 3):
        parts += [text(key), value(draw)]
    return b"".join([*parts, b"u."])


def in_zip(pickled: bytes, draw: random.Random, storages: Sequence[bytes] = ()) -> bytes:
    storages = storages or [draw.randbytes(draw.choice([16] * 6 + [4, 0])) for _ in range(2)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw.choice([zipfile.ZIP_STORED] * 29 + [zipfile.ZIP_DEFLATED])) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", draw.choice(["little", "big"]))
        for key, data in enumerate(storages):
            archive.writestr(f"a/data/{key}", data)
    return buffer.getvalue()


def in_legacy(pickled: bytes, draw: random.Random) -> bytes:
    keys = draw.choice([[], ["0"], ["0"], ["0", "1"], ["0", "0"]])
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    data = b"".join(draw.choice([4, 4, 4, 2**40]).to_bytes(8, "little") + draw.randbytes(16) for _ in keys)
    return head + pickled + listed + data[: draw.choice([len(data)] * 5 + [10])]


def changed(draw: random.Random) -> bytes:
    """Returns an official file with some bytes changed, either only in its pickle or anywhere."""
    weights = collections.OrderedDict(a=torch.arange(4.0).reshape(2, 2), b=torch.ones(3).half())
    content = {
        "model": weights,
        "cfg": {"model": SETTINGS},
        "state_dict": weights,
        "x": {1: {2.5, b"y"}, "y": (None, "é")},
    }
    buffer = io.BytesIO()
    zipped = draw.random() < 0.7
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    if zipped and draw.random() < 0.7:
        with zipfile.ZipFile(buffer) as archive:
            folder = archive.namelist()[0].partition("/")[0]
            pickled, *storages = (archive.read(f"{folder}/{member}") for member in ("data.pkl", "data/0", "data/1"))
        return in_zip(flip(pickled, draw), draw, storages)
    return flip(buffer.getvalue(), draw)


def flip(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                data[place] = draw.choice(list(OPCODES.values()))[0]
            case 2:
                del data[place : place + draw.randrange(1, 9)]
            case 3:
                data[place:place] = data[place : place + draw.randrange(1, 20)]
        if not data:
            break
    return bytes(data)


def attempt(number: int) -> None:
    """Reads a file with every reader of such files."""
    global armed
    draw = random.Random(number)
    content = changed(draw) if draw.random() < 0.4 else draw.choice([in_zip, in_legacy])(program(draw), draw)
    if not seen:
        prepare()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / draw.choice(["w.pt", "w.ckpt", "w.pth"])
        path.write_bytes(content)
        for read in (load_avhubert, lambda path: convert_weights(path, path.with_suffix(".safetensors"))):
            with contextlib.suppress(UserError):
                read(path)
        armed = True
        try:
            loaded = load_restricted(path)
        finally:
            armed = False
            assert seen == ["watched"]
    with contextlib.suppress(ValueError):
        plain(loaded)


def prepare() -> None:
    """Starts watching this process."""
    global armed
    with tempfile.TemporaryDirectory() as folder:  # imports on first use are not caused by a file
        torch.save({}, Path(folder) / "w.pt")
        load_restricted(Path(folder) / "w.pt")
    sys.addaudithook(watch)
    armed = True
    sys.audit("os.system", "a check that the hook records")
    armed = False
    assert len(seen) == 1
    seen[:] = ["watched"]


def test_random_files_are_read_or_refused():
    outcomes = campaign(attempt, 200)
    assert min(outcomes["read"], outcomes["refused"]) > 10


@pytest.mark.slow
def test_many_random_files_are_read_or_refused():
    campaign(attempt, 10_000)
