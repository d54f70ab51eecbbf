"""What two sets of clips share: speakers, and the clips themselves."""

import re
from collections.abc import Iterable, Sequence

from avh_shards import ClipMeta

SPEAKER = re.compile("(?:^|/)(id[0-9]+)/")  # VoxCeleb2's folder of a speaker

Shared = dict[str, int | float | None]


def overlap(clips: Sequence[ClipMeta], others: Sequence[ClipMeta]) -> dict[str, Shared]:
    """Identities and clips of one set that another has too.

    Args:
      clips: of the set that is asked about, e.g. test.
      others: of the set that it should have nothing in common with, e.g. train.

    Returns:
      For `identities` and `clips` (told by their paths): `shared`, how many both sets have; `of` and `among`, how many
      the first and the second has in all; `share`, shared / of, None where the first has none.
    """
    return {
        "identities": _shared(map(identity, clips), map(identity, others)),
        "clips": _shared((clip.path for clip in clips), (clip.path for clip in others)),
    }


def identity(clip: ClipMeta) -> str:
    """The speaker: as the data set tells, else the leading idNNNNN folder of the path, else ""."""
    found = SPEAKER.search(clip.path)
    return clip.identity or (found.group(1) if found else "")


def _shared(names: Iterable[str], others: Iterable[str]) -> Shared:
    own, among = set(names) - {""}, set(others) - {""}
    shared = len(own & among)
    return {
        "shared": shared,
        "of": len(own),
        "among": len(among),
        "share": shared / len(own) if own else None,
    }


def overlap_in_words(pair: dict[str, object]) -> list[str]:
    """Sentences about an overlap; `source` and `other` in it name the two sets."""
    name, other = pair["source"], pair["other"]
    return [_in_words(what, pair[what], name, other) for what in ("identities", "clips")]


def _in_words(what: str, found: Shared, name: str, other: str) -> str:
    if not found["of"] or not found["among"]:
        return f"{name}, {other}: whether they share {what} is not known: {other if found['of'] else name} names none"
    shared = f"{found['shared']:,}" if found["shared"] else "none"
    return f"{shared} of the {found['of']:,} {name} {what} are in {other}{' too' * bool(found['shared'])}"
