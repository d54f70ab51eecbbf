"""Safe loading of official PyTorch files, without running pickled code.

A pickle is a program: its opcodes name importable callables, call them, and set the state of the results. These files
are therefore not read with `pickle` or `torch.load`, but by a small interpreter of the opcodes. It rebuilds plain
containers and tensors, keeps objects of the official programs as inert `StandIn`s, and rejects every other name. It
imports nothing that a file names and looks up no method of any object, so a file cannot reach a tensor's own
`__setstate__`. It counts each opcode and each element copied by a call, which bounds time and memory.
"""

import dataclasses
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch

from avh_shards import UserError
from avh_shards.text import one_line
from avh_shards.weights import LEGACY_MAGIC, PYTORCH_FILE, file_kind
from extract.convert.npz import open_archive

# Packages whose objects occur in the official files. Their code is never imported and not needed.
STAND_IN_PACKAGES = (
    "argparse",
    "fairseq",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "pytorch_lightning",
    "sentencepiece",
    "typing",
)

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Limits far above the needs of official files, which hold some ten thousand opcodes in less than a megabyte.
MOST_BYTES = 1 << 26  # of a file's pickles
MOST_STEPS = 1 << 19  # opcodes plus elements copied by calls
MOST_DIMENSIONS = 8  # of a tensor
LARGEST_KEY = 1 << 60  # of integer keys: larger ones could be chosen to collide in one hash
MOST_SETTINGS = 100_000  # values in a configuration
DEEPEST = 50  # nesting of a configuration

# Opcodes that push their argument from the file; `_Machine._step` handles the others.
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

Kind = TypeVar("Kind")
Storage = Callable[[torch.dtype, str, int], torch.Tensor]


class StandIn:
    """Placeholder for an object whose class is not loaded: constructor `arguments`, then `state` and `items`."""

    arguments: tuple = ()
    state: object = None
    items: Mapping = MappingProxyType({})

    def __init__(self, *arguments):
        self.arguments = arguments


@dataclasses.dataclass(frozen=True)
class _Name:
    """A class or function named in a file."""

    module: str
    name: str


def load_restricted(path: str | os.PathLike) -> object:
    """Loads a PyTorch file (zip or legacy format) without running code in it.

    Args:
      path: a `.pt`, `.pth` or `.ckpt` file.

    Returns:
      The stored object: tensors on the CPU, containers, numbers, text, and StandIn objects.

    Raises:
      UserError: the file is missing, damaged or not a PyTorch file, names a class that is not allowed, or takes more
        work or memory than official files do.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        kind = file_kind(path)
        if kind not in (PYTORCH_FILE, None):
            raise UserError(f"{path}: {kind}, but an official PyTorch file is expected")
        if zipfile.is_zipfile(path):
            with open_archive(path) as archive:
                return _load_zip(archive, path.stat().st_size)
        with path.open("rb") as file:
            return _load_legacy(file, path.stat().st_size)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused to load: {one_line(error)}") from None
    except Exception as error:  # the readers can raise anything on a damaged or hostile file
        reason = one_line(f"{type(error).__name__} {str(error)[:200]}")
        raise UserError(f"{path}: not a complete PyTorch file ({reason})") from error


def are_named_tensors(value: object) -> bool:
    """Returns whether a loaded object is a dictionary of tensors by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items()
    )


def plain(value: object) -> object:
    """Converts a configuration of any kind to plain dictionaries and lists.

    Equal settings have equal results, whether they are a dict, an omegaconf DictConfig (its state has `_content`, whose
    leaves have `_val`), an argparse Namespace (its state holds the fields) or Lightning's AttributeDict (a dict
    subclass, so it has items). Keys that are not text are left out.

    Raises:
      ValueError: the configuration contains itself or is too large.
    """
    left = MOST_SETTINGS

    def convert(value: object, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError("settings that contain themselves or are too large")
        if isinstance(value, StandIn):
            state = value.state if isinstance(value.state, dict) else {}
            for content in ("_content", "_val"):
                if content in state:
                    return convert(state[content], depth + 1)
            return {**convert(dict(state), depth + 1), **convert(dict(value.items), depth + 1)}
        if isinstance(value, dict):
            return {key: convert(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
        if isinstance(value, list | tuple):
            return [convert(item, depth + 1) for item in value]
        return value

    return convert(value, 0)


def _load_zip(archive: zipfile.ZipFile, room: int) -> object:
    """Loads the object in `<name>/data.pkl`; its storages are the members `<name>/data/<key>`."""
    members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > room:
        raise pickle.UnpicklingError("its members are compressed or overlap, which PyTorch never writes")
    (main,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
    if archive.getinfo(main).file_size > MOST_BYTES:
        raise pickle.UnpicklingError(f"its pickle is larger than {MOST_BYTES} bytes")
    folder = main.removesuffix("data.pkl")
    big_endian = f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big"
    read: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        if key not in read:
            data = bytearray(archive.read(f"{folder}data/{key}"))
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"a storage of {count} numbers is {len(data)} bytes long")
            flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            if big_endian and data:
                flat = flat.reshape(count, -1).flip(1).flatten()
            read[key] = flat.view(dtype)
        return read[key]

    return _Machine(storage).load(io.BytesIO(archive.read(main)))


def _load_legacy(file: io.BufferedReader, room: int) -> object:
    """Loads a legacy file: pickles of magic number, version, system info, object and storage keys, then the bytes."""
    pickles = io.BytesIO(file.read(MOST_BYTES))
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        nonlocal room
        if key not in storages:
            room -= count * dtype.itemsize
            if room < 0:
                raise pickle.UnpicklingError("its storages are larger than the file")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    machine = _Machine(storage)
    if machine.load(pickles) != LEGACY_MAGIC:
        raise ValueError("it has no magic number")
    _, _, loaded, keys = [machine.load(pickles) for _ in range(4)]
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError("its storages are not those of its tensors")
    file.seek(pickles.tell())
    for key in keys:
        flat = storages[key].view(torch.uint8)
        if int.from_bytes(file.read(8), "little") != len(storages[key]):
            raise ValueError("a storage differs in size from its tensors")
        if file.readinto(cast(Any, flat.numpy())) != len(flat):
            raise ValueError("it is cut short")
    return loaded


class _Machine:
    """Interpreter that rebuilds a pickled object; `storage` maps (dtype, key, number of elements) to a flat tensor."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._encoded: dict[str, bytes] = {}
        self._steps = 0

    def load(self, file: io.BytesIO) -> object:
        """Reads one pickle to its end and returns its object."""
        self._stack, self._below, self._memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(file):
            self._count(1)
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in VALUES:
                stack.append(argument)
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP" | "POP_MARK":
                if name == "POP_MARK" or not stack:
                    self._marked()
                else:
                    stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE" | "LIST":
                items = self._marked()
                self._stack.append(tuple(items) if name == "TUPLE" else items)
            case "DICT" | "FROZENSET":
                items = self._marked()
                self._stack.append(_pairs(items) if name == "DICT" else frozenset(map(_key, items)))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._marked()
                _of(list, self._stack[-1]).extend(items)
            case "ADDITEMS":
                items = self._marked()
                _of(set, self._stack[-1]).update(map(_key, items))
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
                _set_items(self._stack[-1], _pairs(items))
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, name = stack.pop(-2), stack.pop()
                stack.append(_named(_of(str, module), _of(str, name)))
            case "REDUCE" | "NEWOBJ":
                arguments = _of(tuple, stack.pop())
                stack.append(self._call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "PERSID" | "BINPERSID":
                stack.append(self._refer(argument if name == "PERSID" else stack.pop()))
            case _:
                raise pickle.UnpicklingError(f"it uses the opcode {name}, which does not belong in a weights file")

    def _marked(self) -> list:
        """Pops the items pushed since the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise pickle.UnpicklingError(f"it takes more than {MOST_STEPS} steps, far more than any weights file")

    def _call(self, function: object, arguments: tuple) -> object:
        """Returns the result of calling a named class or function."""
        self._count(len(arguments) + sum(len(a) for a in arguments if isinstance(a, list | tuple)))
        match function, arguments:
            case _Name("torch._utils", "_rebuild_tensor_v2"), (flat, offset, size, stride, *_):
                return _tensor(flat, offset, size, stride)
            case _Name("torch._utils", "_rebuild_parameter"), (torch.Tensor() as tensor, *_):
                return tensor
            case _Name("torch", "Size"), (tuple() as size,):
                return size
            case _Name("collections", "OrderedDict" | "defaultdict"), () | (_Name(),):
                return {}
            case _Name("builtins" | "__builtin__", "bytes"), ():
                return b""
            case _Name("builtins" | "__builtin__", "set"), (list() as items,):
                return set(map(_key, items))
            case _Name("_codecs", "encode"), (str() as text, "latin1"):  # bytes, in protocol 2
                return self._encoded.setdefault(text, text.encode("latin1"))
            case _Name(module), _ if _is_stand_in(module):
                return StandIn(*arguments)
            case _Name(module, name), _:
                raise pickle.UnpicklingError(f"it calls {module}.{name} with unexpected arguments")
        raise pickle.UnpicklingError("it calls something that is not a function")

    def _refer(self, reference: object) -> torch.Tensor:
        """Returns the storage that a pickle refers to by its persistent id."""
        match reference:
            case (("storage", torch.dtype() as dtype, str() as key, _, int() as count)) | (
                ("storage", torch.dtype() as dtype, str() as key, _, int() as count, None)
            ) if count >= 0:
                flat = self._storage(dtype, key, count)
                if (flat.dtype, len(flat)) != (dtype, count):
                    raise pickle.UnpicklingError("it refers to one storage in two different ways")
                return flat
        kind = reference[0] if isinstance(reference, tuple) and reference else reference
        kind = repr(kind[:80]) if isinstance(kind, str) else "something"
        raise pickle.UnpicklingError(f"it refers to {kind}, which does not belong in a weights file")


def _named(module: str, name: str) -> _Name | torch.dtype:
    """Returns the inert form of a name: the dtype of a storage class, or the name itself if it is allowed."""
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if (module, name) not in KNOWN_GLOBALS and not _is_stand_in(module):
        named = f"{module}.{name}"[:200]
        raise pickle.UnpicklingError(f"it names {named}, which does not belong in a weights file")
    return _Name(module, name)


def _is_stand_in(module: str) -> bool:
    return module.partition(".")[0] in STAND_IN_PACKAGES


def _of(kind: type[Kind], value: object) -> Kind:
    """Returns the value if it has this type; raises otherwise."""
    if not isinstance(value, kind):
        raise pickle.UnpicklingError(f"it uses a {type(value).__name__} as a {kind.__name__}")
    return value


def _key(value: object) -> object:
    """Returns a dictionary key or set element if its hash is quick to compute and cannot be chosen by the file."""
    if isinstance(value, str | bytes | float | StandIn | None) or (isinstance(value, int) and abs(value) < LARGEST_KEY):
        return value
    raise pickle.UnpicklingError(f"it has a key that is a {type(value).__name__} or too large")


def _pairs(items: list) -> dict:
    """Builds a dictionary from alternating keys and values."""
    if len(items) % 2:
        raise pickle.UnpicklingError("it has a key without a value")
    return dict(zip(map(_key, items[::2]), items[1::2], strict=True))


def _set_items(target: object, items: dict) -> None:
    if isinstance(target, StandIn):
        target.items = {**target.items, **items}  # a new dictionary, because the class's default is shared
    else:
        _of(dict, target).update(items)


def _set_state(target: object, state: object) -> None:
    """Sets the state of a `StandIn`; ignores attributes of a dictionary, such as the `_metadata` of a state dict."""
    if isinstance(target, StandIn):
        target.state = state
    elif not isinstance(target, dict):
        raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")


def _tensor(flat: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """Returns a tensor view of a storage; raises if it has more elements than the storage or reaches beyond it."""
    flat = _of(torch.Tensor, flat)
    size = _of(tuple, size)
    stride = _of(tuple, stride)
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError(f"a tensor has {len(size)} dimensions and {len(stride)} strides")
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor's shape holds more than non-negative integers")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if 0 not in size else 0
    if math.prod(size) > flat.numel() or last >= max(flat.numel(), 1):
        raise pickle.UnpicklingError(f"a tensor of {size} reaches beyond its storage of {flat.numel()} numbers")
    return flat.as_strided(size, stride, offset if 0 not in size else 0)


# Allowed names. Most are only referenced, such as a defaultdict's factory; `_Machine._call` lists the callable ones.
BUILTIN_TYPES = ("bytes", "dict", "float", "int", "list", "set")
KNOWN_GLOBALS = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *((package, kind) for package in ("builtins", "__builtin__") for kind in BUILTIN_TYPES),
    ("__builtin__", "long"),
}
