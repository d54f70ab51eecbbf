"""The encoder at work: prepared clips -> features or failures, whatever memory there is."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import torch

from avh_shards import RANDOM_WEIGHTS, UserError, one_line
from avh_shards.clip_list import Failure
from extract.avhubert.checkpoint import load_avhubert, random_avhubert, sha256
from extract.avhubert.encode import BATCH_FRAMES, CONTEXT, batches, start_encoding
from extract.avhubert.model import AVHubertConfig
from extract.prepare import PreparedClip
from extract.store.shard import ClipFeatures, check_features

RANDOM_ENCODER = "random"  # in place of a file: seeded random weights, at the size of the official large model
PRECISIONS = ("float32", "bfloat16", "float16")

Encoded = tuple[PreparedClip, ClipFeatures | Failure]


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
    """Choices in encoding; all change (last) digits."""

    precision: str = "float32"  # of weights and products; norms and residual sums stay float32
    batch_frames: int = BATCH_FRAMES  # of one batch, padding included
    compile: bool = False  # torch.compile: pays on a GPU, after minutes of compiling


class Encoder:
    """AV-HuBERT on the fastest device here."""

    def __init__(self, avhubert: str | os.PathLike, settings: EncodeSettings = EncodeSettings()):
        """Opens an official file, or "random".

        Raises:
          UserError: the file is no AV-HuBERT file.
        """
        self.settings = settings
        self.pieces: dict[str, int] = {}  # by path of a clip that exceeded memory: frames of its pieces
        if str(avhubert) == RANDOM_ENCODER:
            self.network, self.digest = random_avhubert(AVHubertConfig.large()), RANDOM_WEIGHTS
        else:
            self.network, self.digest = load_avhubert(avhubert), sha256(avhubert)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: features agree between machines
        self.network.hold(getattr(torch, settings.precision)).to(_device())
        if settings.compile:
            self.network.project_video = torch.compile(self.network.project_video, dynamic=True)
            self.network.contextualise = torch.compile(self.network.contextualise, dynamic=True)

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.network.config.width

    @property
    def attributes(self) -> dict[str, object]:
        """The shard attributes that name this encoder."""
        config = self.network.config
        kind = "random weights, " if self.digest == RANDOM_WEIGHTS else ""
        encoder = f"AV-HuBERT ({kind}{config.layers} layers, width {config.width})"
        return {"encoder": encoder, "weights_sha256": self.digest, "width": config.width}

    def encode(
        self, clips: Iterable[PreparedClip], dtype: str = "float32", multimodal: bool = False
    ) -> Iterator[Encoded]:
        """Features of clips, in some order; a GPU works on the next batch while one is given out.

        Args:
          clips: prepared clips; they are taken as they are needed.
          dtype: of the shard that the features shall fit in.
          multimodal: whether to make the pass with both modalities too.

        Yields:
          Each clip with its features, or with why it has none. A batch that does not fit into memory is halved; a
          single clip goes through in pieces (`encode.start_encoding`).
        """
        waiting: Callable[[], list] = list
        for batch in batches(clips, self.settings.batch_frames):
            started = self._start(batch, multimodal)
            yield from self._checked(waiting(), dtype)
            waiting = started
        yield from self._checked(waiting(), dtype)

    def _start(
        self, batch: list[PreparedClip], multimodal: bool, piece: int | None = None
    ) -> Callable[[], list[Encoded]]:
        try:
            features = start_encoding(self.network, batch, multimodal, piece)
        except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
            reason = one_line(error)
            if not _is_out_of_memory(error):  # no clip's fault: they all have the right shapes
                raise UserError(f"the encoder fails: {reason}") from error
        else:
            self.pieces |= {batch[0].meta.path: piece} if piece else {}
            return lambda: list(zip(batch, features(), strict=True))
        # Outside the handler: the error's frames would keep the batch's tensors in memory.
        torch.cuda.empty_cache()
        if len(batch) > 1:
            halves = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            done = [outcome for half in halves for outcome in self._start(half, multimodal)()]
            return lambda: done
        piece = (piece or len(batch[0].audio)) // 2
        if piece >= CONTEXT:
            return self._start(batch, multimodal, piece)
        failure = Failure(batch[0].meta.path, "encode", f"cannot be encoded: {reason}", passing=True)
        return lambda: [(batch[0], failure)]

    def _checked(self, results: Iterable[Encoded], dtype: str) -> Iterator[Encoded]:
        for clip, result in results:
            reason = None if isinstance(result, Failure) else check_features(result, self.width, dtype)
            yield clip, Failure(clip.meta.path, "encode", reason) if reason else result


def _device() -> torch.device:
    """A GPU, where there is one: the one that a launcher of several processes means for this one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: on the CPU only its words tell."""
    words = ("allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
