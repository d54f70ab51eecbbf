"""Reading official PyTorch files without running what is pickled in them.

A pickle may name any importable callable and have it called. Here only tensors and plain containers are rebuilt;
classes of the official programs become inert stand-ins that keep their state; every other name is refused.
"""

import collections
import os
import pickle
import tarfile
import types
import zipfile
from pathlib import Path

import torch

from extract.schema import InputError

# Programs whose objects lie in the official files. Their code is never imported, nor needed.
STAND_IN_PACKAGES = ("argparse", "fairseq", "omegaconf", "pytorch_lightning", "sentencepiece", "typing")

STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")


class StandIn:
    """An object of a class that is not loaded: `arguments` of its construction and `state` set after it."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, None

    def __setstate__(self, state):
        self.state = state


def _is_program(path: Path) -> bool:
    """Whether torch.load would hand the file to its TorchScript or tar reader, which this unpickler does not guard."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    return tarfile.is_tarfile(path)


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as latin-1 text; nothing else is asked of `_codecs.encode`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused codec {encoding!r}")
    return text.encode("latin1")


def _rebuild_parameter(data: torch.Tensor, *_) -> torch.Tensor:
    return data


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{(package, "long"): int for package in ("builtins", "__builtin__")},
    **{
        (package, kind.__name__): kind
        for package in ("builtins", "__builtin__")
        for kind in (dict, list, set, int, float)
    },
    **{("torch", f"{name}Storage"): getattr(torch, f"{name}Storage") for name in STORAGES},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.partition(".")[0] in STAND_IN_PACKAGES:
            return type(name, (StandIn,), {"__module__": module})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong in a file of weights")


def _load(file, **options):
    return _Unpickler(file, **options).load()


# What torch.load asks of a pickle module; the old non-zip format reads several pickles in a row with `load`.
_RESTRICTED = types.SimpleNamespace(__name__="restricted", Unpickler=_Unpickler, load=_load)


def load_restricted(path: str | os.PathLike) -> object:
    """Loads a PyTorch file (zip or the older format) through the restricted unpickler.

    Returns:
      The stored object: tensors on the CPU, containers, numbers, text, and StandIn objects.

    Raises:
      InputError: the file is missing or damaged, or names a class that is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if _is_program(path):
        raise InputError(f"{path}: refused to load: a TorchScript program or a tar archive, not a file of weights")
    try:  # torch takes a pickle module of one's own only where it is told not to use its own
        return torch.load(path, map_location="cpu", pickle_module=_RESTRICTED, weights_only=False)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused to load: {error}") from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise InputError(f"{path}: not a whole PyTorch file ({' '.join(str(error).split())})") from error


def plain(value: object) -> object:
    """Configurations as plain dictionaries and lists, whatever stood in the file for them.

    A dict, an omegaconf DictConfig (its state holds `_content`, whose leaves hold `_val`) and an argparse Namespace
    (its state is its fields) of the same settings give equal results.
    """
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state.get("_content", state.get("_val", state)))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
