"""Sources: feature shards as one sequence of clips."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int16, Shaped, UInt8

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL
from avh_shards.format import ShardTable, list_shards, read_shard_table
from avh_shards.hdf5 import Extent, read_spans
from avh_shards.paths import AnyPath, FilePath, as_path, cached_files

SOURCE_ATTRIBUTES = ("width", "weights_sha256", "trimmed")  # must be equal in all shards of a source
PAIRED_FEATURES = ("visual", "audio")
OPENING_THREADS = 16  # shards of a source at a URL that are opened at the same time

Piece = tuple[str, int, int, int]  # `visual` or `audio` features of a clip's frames first:last

RowRange = tuple[ShardTable, str, int, int]  # rows first:last of a shard's features, waveforms or crops
Rows = Callable[[Sequence[RowRange]], Iterator[np.ndarray]]


def rows_of_file(ranges: Sequence[RowRange]) -> Iterator[Shaped[np.ndarray, "T ..."]]:
    """Yields ranges of rows: from local shards, each when it is due; from shards at a URL, many in few requests.

    It keeps no file open, so that the number of shards is not limited.

    Raises:
      UserError: the file has become shorter, or its file system fails.
    """
    extents = [shard.extent(content) for shard, content, *_ in ranges]
    spans = [
        (shard.path, *extent.span(first, last)) for (shard, _, first, last), extent in zip(ranges, extents, strict=True)
    ]
    return map(Extent.view, extents, read_spans(spans))


def rows_in_memory(shards: Sequence[ShardTable]) -> Rows:
    """Returns a function like `rows_of_file` that reads from host memory.

    Local shards are memory-mapped. Of remote shards, the features are read immediately; their other contents are still
    read by ranges of bytes, because training does not use them.

    Args:
      shards: the shards that the function can read.
    """
    arrays = dict(_mapped(shards) if isinstance(shards[0].path, Path) else _fetched(shards))

    def rows(ranges: Sequence[RowRange]) -> Iterator[Shaped[np.ndarray, "T ..."]]:
        for shard, content, first, last in ranges:
            held = arrays[shard.path]
            if content in held:
                yield held[content][first:last]
            else:
                yield from rows_of_file([(shard, content, first, last)])

    return rows


def _mapped(shards: Sequence[ShardTable]) -> Iterator[tuple[FilePath, dict[str, np.ndarray]]]:
    for shard in shards:
        assert isinstance(shard.path, Path)
        buffer = np.memmap(shard.path, np.uint8, "r")  # one map per file, because each costs a descriptor
        yield shard.path, {name: shard.extent(name).within(buffer) for name in (*shard.features, *shard.ragged)}


def _fetched(shards: Sequence[ShardTable]) -> Iterator[tuple[FilePath, dict[str, np.ndarray]]]:
    clips = {shard.path: [*itertools.pairwise(map(int, shard.offset))] for shard in shards}
    read = rows_of_file(
        [(shard, name, *rows) for shard in shards for name in PAIRED_FEATURES for rows in clips[shard.path]]
    )
    for path, rows in clips.items():
        yield path, {name: np.concatenate([*itertools.islice(read, len(rows))]) for name in PAIRED_FEATURES}


@dataclasses.dataclass(frozen=True)
class Source:
    """Clips of one or more shards, local or at a URL, whose contents are read on demand."""

    path: FilePath
    shards: tuple[ShardTable, ...]
    members: tuple[tuple[int, int], ...]  # clip -> (shard, clip within the shard)
    rows: Rows = rows_of_file
    longest: int | None = None  # most frames of a clip, which is cut to its first ones; None = all

    @functools.cached_property
    def clips(self) -> list[ClipMeta]:
        """Metadata of each clip."""
        return [self.shards[shard].clips[clip] for shard, clip in self.members]

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.shards[0].features["visual"].shape[1]

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Dtype of the stored features."""
        return np.result_type(
            *(shard.features[modality].dtype for shard in self.shards for modality in PAIRED_FEATURES)
        )

    @property
    def attributes(self) -> Mapping[str, object]:
        """Attributes of the first shard: encoder, settings, ..."""
        return self.shards[0].attributes

    @property
    def local(self) -> bool:
        """Whether the shards, or their copies, are files of this machine."""
        return isinstance(self.shards[0].path, Path)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Number of frames of each clip."""
        per_shard = [np.minimum(np.diff(shard.offset), self.longest or np.inf) for shard in self.shards]
        return np.array([per_shard[shard][clip] for shard, clip in self.members], dtype=np.int64)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Label of each clip: 0 real, 1 fake, -1 unknown."""
        return np.array([clip.label for clip in self.clips], dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Size of the clips' features in bytes."""
        return int(self.lengths.sum()) * self.width * self.dtype.itemsize * len(PAIRED_FEATURES)

    def features(self, modality: str, clip: int, first: int = 0, last: int | None = None) -> Float[np.ndarray, "T D"]:
        """Reads `visual` or `audio` features of a clip's frames first:last, by default all."""
        last = int(self.lengths[clip]) if last is None else last
        return next(self.features_of([(modality, clip, first, last)]))

    def features_of(self, pieces: Sequence[Piece]) -> Iterator[Float[np.ndarray, "T D"]]:
        """Yields the features of pieces of clips; from shards at a URL, many are read at once."""
        return self.rows([self._range(*piece) for piece in pieces])

    def crops(self, clip: int, first: int, last: int) -> UInt8[np.ndarray, "T 96 96"]:
        """Reads the grey mouth crops of a clip's frames first:last; requires `has("crops")`."""
        return next(self.rows([self._range("crops", clip, first, last)]))

    def waveform(self, clip: int, first: int = 0, last: int | None = None) -> Int16[np.ndarray, " S"]:
        """Reads the 16 kHz sound of a clip, full scale 32768; requires `has("waveform")`.

        Args:
          clip: index of the clip.
          first: first sample.
          last: sample after the last; None, or beyond the end = the end of the clip.
        """
        shard, index = self.members[clip]
        borders, _ = self.shards[shard].ragged["waveform"]
        start, stop = map(int, borders[index : index + 2])
        last = stop if last is None else min(start + last, stop)
        return next(self.rows([(self.shards[shard], "waveform", min(start + first, last), last)]))

    def has(self, content: str) -> bool:
        """Returns whether all shards hold a content: features (always held), waveform, crops or multimodal."""
        return self._first_without(content) is None

    def check_has(self, content: str) -> None:
        """Raises a UserError that names the first shard without a content, if any."""
        if shard := self._first_without(content):
            raise UserError(f"{shard.path}: its shards hold no {content}; extract them with --store={content}")

    def labelled(self, *labels: int) -> "Source":
        """Returns the clips with these labels: REAL, FAKE or both.

        Raises:
          UserError: no clip has one of the labels.
        """
        for label in labels:
            if label not in self.labels:
                kind = {REAL: "real", FAKE: "fake"}[label]
                raise UserError(
                    f"{self.path}: none of its {len(self.members)} clips is labelled {kind}; training needs them"
                )
        members = [member for member, label in zip(self.members, self.labels, strict=True) if label in labels]
        return dataclasses.replace(self, members=tuple(members))

    def sample(self, clips: int, seed: int) -> "Source":
        """Returns at most `clips` of the clips, drawn by the seed, in their own order."""
        if clips >= len(self.members):
            return self
        drawn = np.sort(np.random.default_rng((seed, len(self.members))).permutation(len(self.members))[:clips])
        return dataclasses.replace(self, members=tuple(self.members[clip] for clip in drawn))

    def of_shard(self, shard: int) -> "Source":
        """Returns all clips of a single shard."""
        table = self.shards[shard]
        return dataclasses.replace(self, shards=(table,), members=tuple((0, n) for n in range(len(table.clips))))

    def heads(self, frames: int) -> "Source":
        """Returns the same clips, each cut to at most its first `frames` frames."""
        return dataclasses.replace(self, longest=frames)

    def in_memory(self) -> "Source":
        """Returns the same clips with their features in host memory; see `rows_in_memory`."""
        return dataclasses.replace(self, rows=rows_in_memory(self.shards))

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the clips' paths, labels and lengths, their encoder and their dtype.

        It does not depend on where the shards are stored.
        """
        known = [[clip.path, clip.label, int(n)] for clip, n in zip(self.clips, self.lengths, strict=True)]
        made_by = [self.attributes.get(name) for name in SOURCE_ATTRIBUTES]
        return hashlib.sha256(json.dumps([known, made_by, str(self.dtype)]).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Raises a UserError if the size of a local shard has changed since it was opened.

        The shard may be memory-mapped, and touching a page beyond its new end would kill the process.
        """
        for shard in self.shards if self.local else ():
            size = shard.path.stat().st_size if shard.path.exists() else 0
            if size != shard.size:
                raise UserError(
                    f"{shard.path}: has {size} bytes, but had {shard.size} when it was opened; restart once it is whole"
                )

    def check_finite(self) -> None:
        """Raises a UserError that names a clip whose features hold NaN or infinity, if there is one."""
        pieces = [(name, clip, 0, int(last)) for name in PAIRED_FEATURES for clip, last in enumerate(self.lengths)]
        for (_, clip, _, _), features in zip(pieces, self.features_of(pieces), strict=True):
            if not np.isfinite(features).all():
                where = self.shards[self.members[clip][0]].path
                raise UserError(
                    f"{where}: the features of {self.clips[clip].path!r} hold NaN or infinity; extract this shard again"
                )

    def _range(self, content: str, clip: int, first: int, last: int) -> RowRange:
        """Returns the rows of a clip's frames first:last."""
        shard, index = self.members[clip]
        start = int(self.shards[shard].offset[index])
        return self.shards[shard], content, start + first, start + last

    def _first_without(self, content: str) -> ShardTable | None:
        always = {"features"}
        return next((shard for shard in self.shards if content not in {*always, *shard.features, *shard.ragged}), None)


def open_source(path: AnyPath, cache: AnyPath = "") -> Source:
    """Opens a folder of shards, or one shard.

    Args:
      path: the folder or shard, local or a URL.
      cache: local folder in which shards at a URL are copied first (see `cached_files`); "" = none.

    Raises:
      UserError: no shard is found, a shard is damaged or holds no clip, or the shards do not belong together.
    """
    files = list_shards(path)
    if cache and (remote := [file for file in files if not isinstance(file, Path)]):
        files = cached_files(remote, cache)
    with ThreadPoolExecutor(1 if isinstance(files[0], Path) else OPENING_THREADS) as threads:
        shards = tuple(threads.map(read_shard_table, files))
    _check_together(shards)
    members = tuple((k, n) for k, shard in enumerate(shards) for n in range(len(shard.clips)))
    if not members:
        raise UserError(f"{path}: its shards hold no clip; see failures.jsonl there")
    return Source(as_path(path), shards, members)


def source_of_clip(clip: ClipMeta, visual: Float[np.ndarray, "T D"], audio: Float[np.ndarray, "T D"]) -> Source:
    """Returns a source of one clip whose features are already in memory."""
    features = {"visual": visual, "audio": audio}
    extents = {name: Extent(0, array.dtype, array.shape) for name, array in features.items()}
    table = ShardTable(Path(clip.path), 0, (clip,), np.array([0, len(visual)]), {}, extents, {})

    def rows(ranges: Sequence[RowRange]) -> Iterator[Float[np.ndarray, "T D"]]:
        return (features[name][first:last] for _, name, first, last in ranges)

    return Source(table.path, (table,), ((0, 0),), rows)


def _check_together(shards: Sequence[ShardTable]) -> None:
    first, seen = shards[0], {}
    for shard in shards:
        for name in SOURCE_ATTRIBUTES:
            if shard.attributes.get(name) != first.attributes.get(name):
                found, wanted = (table.attributes.get(name) for table in (shard, first))
                raise UserError(
                    f"{shard.path}: its {name} is {found}, but that of {first.path} is {wanted}; "
                    "put them into separate folders"
                )
        for clip in shard.clips:
            if (other := seen.setdefault(clip.path, shard.path)) != shard.path:
                raise UserError(f"{shard.path}: clip {clip.path!r} is in {other} too")
