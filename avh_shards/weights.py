"""Files of weights (.safetensors), which anyone may have written: opening them, and the notes in their metadata."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors

from avh_shards.errors import UserError
from avh_shards.kinds import PYTORCH_FILE, SAFETENSORS_FILE, file_kind
from avh_shards.text import one_line

NOTES = "avh-align"  # key of the metadata that holds our notes: what the weights were trained as
MOST_DETAILS = 8  # parameters that do not fit, named in a message
MOST_HEADER = 1 << 22  # bytes of names and shapes; our weights have a few thousand


@contextlib.contextmanager
def open_safetensors(path: Path, framework: str) -> Iterator[safetensors.safe_open]:
    """Opens a file of weights; reads no array yet.

    Args:
      path: the file.
      framework: of the arrays that are read from it: "numpy" or "pt".

    Raises:
      UserError: the file is missing, damaged or of another kind, or reading it inside the block fails.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        kind = file_kind(path)
        if kind not in (SAFETENSORS_FILE, None):
            way = "; convert it with launch.convert" if kind == PYTORCH_FILE else ""
            raise UserError(f"{path}: {kind}, but .safetensors weights are expected{way}")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            size = file.seek(0, 2)
        if header > min(MOST_HEADER, size - 8):
            raise ValueError("it does not begin with a header of names and shapes")
        with safetensors.safe_open(path, framework) as weights:
            yield weights
    except UserError:
        raise
    except (OSError, safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({one_line(str(error)[:500])})") from error


def pack_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file with these notes."""
    # One text, since safetensors writes several in any order, and equal weights shall be equal files.
    return {NOTES: json.dumps(dict(notes))}


def unpack_notes(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the notes in a file's metadata: `method`, `head`, `modality`, ...; each on one line, none if it has none.

    Raises:
      ValueError: they are not a JSON object, or one nested too deep.
    """
    try:
        notes = json.loads((metadata or {}).get(NOTES, "{}"))
        return {name: one_line(text) for name, text in notes.items()}
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"its metadata `{NOTES}` is not a JSON object") from None


def misfits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns the parameters that are missing, too many or of another shape than wanted: a phrase each, by name."""
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'nothing')}" for name in wrong]
