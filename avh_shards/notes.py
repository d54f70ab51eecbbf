"""Notes in a file of weights: what they were trained as, kept in the metadata of `.safetensors` files."""

import json
from collections.abc import Mapping

from avh_shards.text import one_line

NOTES = "avh-align"  # key of the metadata


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
