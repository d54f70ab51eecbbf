"""An extraction job: everything that its parts, on one machine or many, need to know, and the making of one shard."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import refuse_shared_names
from avh_shards.errors import Failure
from avh_shards.format import RAGGED
from avh_shards.lock import locked
from avh_shards.paths import as_path, reachable
from extract.avhubert.encoder import Encoder, EncodeSettings
from extract.prepare import FINDERS, PreparedClip, PrepareSettings
from extract.progress import Stopwatch
from extract.run.pool import Prepared, PrepareTask
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from extract.store.shard_set import CLIP_LIST, ShardSet, merge, task_lock

TRIMMED = {"false": (False,), "true": (True,), "both": (False, True)}  # --trimmed -> forms made of each clip
FORM_FOLDERS = {False: "untrimmed", True: "trimmed"}  # of the two sets of --trimmed=both


@dataclasses.dataclass(frozen=True)
class ExtractSettings:
    """Choices of an extraction run; all but the last three change numbers or their place."""

    prepare: PrepareSettings = dataclasses.field(default_factory=PrepareSettings)
    encode: EncodeSettings = dataclasses.field(default_factory=EncodeSettings)
    trimmed: str = "false"  # drop the leading silence from both modalities: false, true, or both (two sets)
    store: tuple[str, ...] = ()  # optional contents of the shards: of schema.OPTIONAL
    dtype: str = "float16"  # of the stored features
    clips_per_shard: int = 256
    processes: int = len(os.sched_getaffinity(0))  # that prepare clips
    clip_timeout: float = 600.0  # seconds after which a clip's preparation counts as hung
    retry_failed: str = "passing"  # failures of an earlier run that are tried again: of clips.RETRIED

    @property
    def forms(self) -> tuple[bool, ...]:
        """Trimmed or not: the forms that are made of each clip."""
        return TRIMMED[self.trimmed]


@dataclasses.dataclass(frozen=True)
class Job:
    """What to extract, from where, to where."""

    clips: Sequence[ClipMeta]
    media: str  # folder of the clips' files
    output: str  # folder or URL of the shards
    settings: ExtractSettings

    def check(self) -> None:
        """Rejects what cannot work, before any work is done.

        Raises:
          UserError: the folders do not exist, or two clips would be read from one file.
        """
        if not Path(self.media).is_dir():
            raise UserError(f"{self.media}: no such folder of media files")
        reachable(self.output)
        prepare = self.settings.prepare
        files = prepare.landmarks not in FINDERS
        if files and not Path(prepare.landmarks).exists():
            raise UserError(f"{prepare.landmarks}: no such folder of landmarks, and none of {', '.join(FINDERS)}")
        if files and Path(prepare.landmarks).is_file() and len(self.clips) > 1:
            raise UserError(f"{prepare.landmarks}: is the file of one clip; name the folder with one for each clip")
        if prepare.input == "roi" or files:
            refuse_shared_names(self.clips)

    @contextlib.contextmanager
    def locked(self, index: int, count: int) -> Iterator[None]:
        """Keeps other runs of a task from writing to its folders while the block lasts.

        Raises:
          UserError: there is another one.
        """
        with contextlib.ExitStack() as stack:
            for folder in self.folders().values():
                stack.enter_context(locked(folder, task_lock(folder, index, count)))
            yield

    @property
    def task(self) -> PrepareTask:
        """How every clip is prepared."""
        return PrepareTask(self.media, self.settings.prepare, self.settings.forms, self.settings.clip_timeout)

    def shard_sets(self, encoder: dict[str, object]) -> dict[bool, ShardSet]:
        """The sets to make, by form.

        Args:
          encoder: the attributes that name it.
        """
        return {
            form: ShardSet(writer, self.clips, self.settings.clips_per_shard)
            for form, writer in self._writers(encoder).items()
        }

    def folders(self) -> dict[bool, object]:
        """Where each form's set lies."""
        output, forms = as_path(self.output), self.settings.forms
        return {form: output / FORM_FOLDERS[form] if len(forms) > 1 else output for form in forms}

    def _writers(self, encoder: dict[str, object]) -> dict[bool, ShardWriter]:
        settings = self.settings
        numbers = dataclasses.asdict(settings.prepare) | dataclasses.asdict(settings.encode)
        if settings.prepare.input == "roi" or settings.prepare.min_face_share == 0:
            del numbers["min_face_share"]  # fails no clip, like sets made before there was such a setting
        numbers |= {"dtype": settings.dtype, "clips_per_shard": settings.clips_per_shard, "store": settings.store}
        text = json.dumps(numbers, sort_keys=True)
        return {
            form: ShardWriter(folder, settings.dtype, encoder | {"trimmed": form, "settings": text}, settings.store)
            for form, folder in self.folders().items()
        }


def merge_sets(output: str) -> list[dict[str, object]]:
    """What `extraction.json` says of the set, or the two sets, in a folder.

    Raises:
      UserError: the folder holds no set, or a shard is missing.
    """
    both = [reachable(output) / name for name in FORM_FOLDERS.values()]
    folders = both if any((folder / CLIP_LIST).exists() for folder in both) else [as_path(output)]
    summaries = [merge(folder) for folder in folders]
    if None in summaries:
        raise UserError(f"{folders[summaries.index(None)]}: shards are missing; run the tasks that make them first")
    return summaries


def make_shard(
    shard: int,
    listed: Sequence[ClipMeta],
    prepared: Iterable[Prepared],
    encoder: Encoder,
    writers: dict[bool, ShardWriter],
) -> None:
    """Encodes the clips of one shard and writes it, once for each form.

    Batches never span shards, and hold every form, even one that is not written: features are then the same bits
    whichever shards a killed run left behind.

    Args:
      shard: its number.
      listed: the clips that belong in it.
      prepared: what became of each of them.
      encoder: the encoder.
      writers: of the forms to write.
    """
    watch = Stopwatch()
    some = next(iter(writers.values()))
    outcomes: dict[bool, list[StoredClip | Failure]] = {form: [] for form in writers}

    def ready() -> Iterator[PreparedClip]:
        for clip in watch.waiting("wait", prepared):
            watch.add(clip.seconds)
            for form, outcome in clip.outcomes.items():
                if not isinstance(outcome, Failure):
                    yield outcome
                elif form in writers:
                    outcomes[form].append(outcome)

    encoded = encoder.encode(ready(), some.dtype, "multimodal" in some.store)
    for clip, result in watch.waiting("encode", encoded):
        if clip.trimmed in writers:
            outcomes[clip.trimmed].append(result if isinstance(result, Failure) else _stored(clip, result, some))
    watch.seconds["encode"] -= watch.seconds["wait"]
    seconds = {stage: spent / len(writers) for stage, spent in watch.seconds.items()}  # the forms share the work
    pieces = {clip.path: encoder.pieces[clip.path] for clip in listed if clip.path in encoder.pieces}
    for form, writer in writers.items():
        writer.write(shard, listed, outcomes[form], seconds, {"pieces": json.dumps(pieces)} if pieces else {})


def _stored(clip: PreparedClip, features: ClipFeatures, writer: ShardWriter) -> StoredClip:
    """What the writer stores of a clip, and no more: a shard's clips are held until it is written."""
    arrays = (None if array is None else array.astype(writer.dtype) for array in features)
    ragged = {name: getattr(clip, name) for name in RAGGED if name in writer.store}
    return StoredClip(clip.meta, ClipFeatures(*arrays), **ragged)
