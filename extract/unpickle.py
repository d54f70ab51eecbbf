"""Reading official PyTorch files without running what is pickled in them.

A pickle may name any importable callable and have it called. Here only tensors and plain containers are rebuilt;
classes of the official programs become inert stand-ins that keep their state; every other name is refused. Both file
formats are read here, not by torch.load, which would hand some archives to readers that this unpickler does not guard.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from extract.schema import InputError

# Programs whose objects lie in the official files. Their code is never imported, nor needed.
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
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of the format before torch 1.6, as a pickled number


class StandIn:
    """An object of a class that is not loaded: its construction's `arguments`, `state` and `items` set after it."""

    arguments: tuple = ()
    state: object = None
    items: Mapping = MappingProxyType({})

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        self.items = self.items or {}  # its own from the first item on; the class's cannot be changed
        self.items[key] = value


class _Sealed:
    """A function that a pickle may call but not change (it may set attributes of whatever it is given)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError(f"it sets {name!r} of a function")


def _tensor(flat: torch.Tensor, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    """A tensor over a storage; one that is larger than its storage has no place in a file of weights."""
    if math.prod(size) > flat.numel():
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} lies in a storage of {flat.numel()} numbers")
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as latin-1 text; nothing else is asked of `_codecs.encode`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it names the codec {encoding!r}")
    return text.encode("latin1")


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("_codecs", "encode"): _Sealed(_encode),
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _Sealed(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Sealed(lambda data, *_: data),
    **{(package, "long"): int for package in ("builtins", "__builtin__")},
    **{
        (package, kind.__name__): kind
        for package in ("builtins", "__builtin__")
        for kind in (dict, list, set, int, float)
    },
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Rebuilds allowed names alone; `storage` gives the flat tensor of a (dtype, key, number of elements)."""

    def __init__(self, file: io.IOBase, storage: Callable[[torch.dtype, str, int], torch.Tensor] | None = None):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str):
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.partition(".")[0] in STAND_IN_PACKAGES:
            return type(name, (StandIn,), {"__module__": module})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong in a file of weights")

    def persistent_load(self, pid):
        if self._storage is None or pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or any(pid[5:]):
            raise pickle.UnpicklingError(f"it refers to {str(pid[0])!r}, which does not belong in a file of weights")
        return self._storage(pid[1], pid[2], pid[4])


def load_restricted(path: str | os.PathLike) -> object:
    """Loads a PyTorch file (zip, or the format before it) through the restricted unpickler.

    Returns:
      The stored object: tensors on the CPU, containers, numbers, text, and StandIn objects.

    Raises:
      InputError: the file is missing or damaged, or names a class that is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            zipped = zipfile.is_zipfile(file)
            file.seek(0)
            return _load_zip(file) if zipped else _load_legacy(file)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused to load: {error}") from None
    except Exception as error:  # a damaged or hostile file can make the readers raise anything
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(f"{path}: not a whole PyTorch file ({reason})") from error


def _load_zip(file: io.IOBase) -> object:
    """The object in `<name>/data.pkl`; its storages are the members `<name>/data/<key>`."""
    with zipfile.ZipFile(file) as archive:
        room = os.fstat(file.fileno()).st_size
        if sum(member.file_size for member in archive.infolist()) > room or any(map(_packed, archive.infolist())):
            raise pickle.UnpicklingError("its members are compressed or lie in one another, as PyTorch never puts them")
        (main,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        read: dict[str, torch.Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
            if key not in read:
                data = bytearray(archive.read(main.removesuffix(".pkl") + f"/{key}"))
                read[key] = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            return read[key]

        return _Unpickler(io.BytesIO(archive.read(main)), storage).load()


def _packed(member: zipfile.ZipInfo) -> bool:
    return member.compress_type != zipfile.ZIP_STORED


def _load_legacy(file: io.IOBase) -> object:
    """Pickles of a magic number, a version, the writer's machine, the object, its storages' keys; then their bytes."""
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError("no PyTorch file")
    for _ in ("version", "machine"):
        _Unpickler(file).load()
    room = os.fstat(file.fileno()).st_size
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        if not 0 <= count * dtype.itemsize <= room:
            raise ValueError(f"a storage of {count} numbers is larger than the file")
        return storages.setdefault(key, torch.empty(count, dtype=dtype))

    loaded = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        flat = storages[key]
        if int.from_bytes(file.read(8), "little") != flat.numel():
            raise ValueError("a storage has another size than its tensors say")
        data = bytearray(file.read(flat.nbytes))
        if flat.numel():
            flat.copy_(torch.frombuffer(data, dtype=flat.dtype, count=flat.numel()))
    return loaded


def plain(value: object) -> object:
    """Configurations as plain dictionaries and lists, whatever stood in the file for them.

    A dict, an omegaconf DictConfig (its state holds `_content`, whose leaves hold `_val`), an argparse Namespace (its
    state is its fields) and Lightning's AttributeDict (a dict of its own: it has items) of the same settings give
    equal results.
    """
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state.get("_content", state.get("_val", {**state, **value.items})))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
