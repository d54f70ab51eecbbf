"""Feature shards as one long sequence of clips."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from extract.schema import REAL, ClipMeta, InputError, Shard, list_shards, open_shard

SET_ATTRIBUTES = ("width", "weights_sha256", "trimmed")  # equal in all shards that belong together


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Clips of one or more shards. Features stay on disk until they are asked for."""

    path: Path
    shards: tuple[Shard, ...]
    members: tuple[tuple[int, int], ...]  # clip -> (shard, clip within the shard)

    @property
    def clips(self) -> list[ClipMeta]:
        """What is known of each clip."""
        return [self.shards[shard].clips[clip] for shard, clip in self.members]

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.shards[0].width

    @property
    def dtype(self) -> np.dtype:
        """Of the stored features."""
        return np.result_type(*(shard.visual.dtype for shard in self.shards))

    @property
    def attributes(self) -> dict[str, object]:
        """Of the first shard: encoder, settings, ..."""
        return self.shards[0].attributes

    def lengths(self) -> Int[np.ndarray, " N"]:
        """Frames of each clip."""
        per_shard = [np.diff(shard.offset) for shard in self.shards]
        return np.array([per_shard[shard][clip] for shard, clip in self.members], dtype=np.int64)

    def features(self, modality: str, clip: int) -> Float[np.ndarray, "T D"]:
        """A clip's `visual` or `audio` features, as a view of the file."""
        shard, index = self.members[clip]
        start, stop = self.shards[shard].offset[index : index + 2]
        return getattr(self.shards[shard], modality)[start:stop]

    def real(self) -> "FeatureSource":
        """The clips labelled real.

        Raises:
          InputError: there is none.
        """
        members = [m for m, clip in zip(self.members, self.clips, strict=True) if clip.label == REAL]
        if not members:
            raise InputError(
                f"{self.path}: none of its {len(self.members)} clips is labelled real; training needs them"
            )
        return dataclasses.replace(self, members=tuple(members))

    def fingerprint(self) -> str:
        """Hash of which clips these are, how long, and what encoded them: equal for the same set at another place."""
        known = [[clip.path, int(length)] for clip, length in zip(self.clips, self.lengths(), strict=True)]
        made_by = [self.attributes.get(name) for name in SET_ATTRIBUTES]
        return hashlib.sha256(json.dumps([known, made_by, str(self.dtype)]).encode()).hexdigest()

    def check_finite(self) -> None:
        """Raises an InputError that names the first clip with NaN or infinity, if there is one."""
        for clip, (shard, _) in enumerate(self.members):
            if not all(np.isfinite(self.features(modality, clip)).all() for modality in ("visual", "audio")):
                where = self.shards[shard].path
                raise InputError(
                    f"{where}: the features of {self.clips[clip].path!r} hold NaN; extract this shard again"
                )


def open_source(path: str | os.PathLike) -> FeatureSource:
    """Opens a folder of shards, or one shard.

    Raises:
      InputError: there is no shard, one is damaged, or they do not belong together.
    """
    shards = tuple(open_shard(file) for file in list_shards(path))
    _check_together(shards)
    members = tuple((k, n) for k, shard in enumerate(shards) for n in range(len(shard.clips)))
    if not members:
        raise InputError(f"{path}: its shards hold no clip; see failures.jsonl there")
    return FeatureSource(Path(path), shards, members)


def _check_together(shards: Sequence[Shard]) -> None:
    first, seen = shards[0], {}
    for shard in shards:
        for name in SET_ATTRIBUTES:
            if shard.attributes.get(name) != first.attributes.get(name):
                raise InputError(f"{shard.path}: its {name} is another than that of {first.path}; they are not one set")
        for clip in shard.clips:
            if (other := seen.setdefault(clip.path, shard.path)) != shard.path:
                raise InputError(f"{shard.path}: clip {clip.path!r} is in {other} too")
