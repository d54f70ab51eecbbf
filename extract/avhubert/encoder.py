"""The encoder at work: prepared clips -> features or failures, whatever memory there is.

The video front end, half of the work, sees the clips' frames laid end to end, without padding, some hundred at a time.
The Transformer sees one padded batch that holds every pass of every clip, of clips of similar length.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avh_shards import UserError
from avh_shards.errors import Failure
from avh_shards.format import RANDOM_WEIGHTS
from avh_shards.paths import file_sha256
from avh_shards.text import one_line
from extract.avhubert.checkpoint import load_avhubert, random_avhubert
from extract.avhubert.model import AVHubert, AVHubertConfig
from extract.prepare import PreparedClip
from extract.store.shard import ClipFeatures, check_features

CROP_MEAN, CROP_STD = 0.421, 0.165  # of grey mouth crops in [0, 1], AV-HuBERT's normalisation
CROP_MARGIN = 4  # pixels cut off each side of a 96x96 crop
BATCH_FRAMES = 1024  # of one encoder batch, padding included: bounds memory
POOL_BATCHES = 16  # batches' worth of clips that are sorted by length together
FRONT_END_FRAMES = 256  # that the video front end sees at once: bounds its memory, whatever the clip's length
NEIGHBOURS = 2  # frames on either side that the first convolution of a frame sees; zeros beyond the clip's ends
CONTEXT = 250  # frames on either side of a piece that are encoded with it and dropped (10 s)
RANDOM_ENCODER = "random"  # in place of a file: seeded random weights, at the size of the official large model
ENCODER_PRECISIONS = ("float32", "bfloat16", "float16")

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
          UserError: the file is not an AV-HuBERT file.
        """
        self.settings = settings
        self.pieces: dict[str, int] = {}  # by path of a clip that exceeded memory: frames of its pieces
        if str(avhubert) == RANDOM_ENCODER:
            self.network = random_avhubert(AVHubertConfig.large())
            self.digest = RANDOM_WEIGHTS
        else:
            self.network = load_avhubert(avhubert)
            self.digest = file_sha256(Path(avhubert))
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
          single clip goes through in pieces (`start_encoding`).
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


def normalise_crops(crops: UInt8[Tensor, "T 96 96"]) -> Float[Tensor, "T 88 88"]:
    """Centre of each crop, normalised: float32."""
    return (crops[:, CROP_MARGIN:-CROP_MARGIN, CROP_MARGIN:-CROP_MARGIN].float() / 255 - CROP_MEAN) / CROP_STD


def batches(clips: Iterable[PreparedClip], batch_frames: int = BATCH_FRAMES) -> Iterator[list[PreparedClip]]:
    """Groups clips of similar length so that no padded batch exceeds `batch_frames` (a longer clip goes alone).

    Which clips share a batch depends on the clips alone, not on when they come: features are then reproducible to the
    last bit. At most POOL_BATCHES batches' worth of frames, and one clip more, are held.
    """
    pool, frames = [], 0
    for clip in clips:
        pool.append(clip)
        frames += len(clip.audio)
        if frames >= POOL_BATCHES * batch_frames:
            yield from _by_length(pool, batch_frames)
            pool, frames = [], 0
    yield from _by_length(pool, batch_frames)


@torch.inference_mode()
def start_encoding(
    network: AVHubert, clips: Sequence[PreparedClip], multimodal: bool = False, piece: int | None = None
) -> Callable[[], list[ClipFeatures]]:
    """Sends one batch of clips to the encoder; a GPU works on it while the caller goes on.

    Each modality is projected once (the video front end is half of the work); every pass then differs only in which
    projection the fusion sees, so all passes are one batch of the Transformer.

    Args:
      network: the encoder, on any device, in any precision.
      clips: prepared clips.
      multimodal: whether to make the pass with both modalities too.
      piece: if given, the one clip goes through the Transformer in overlapping pieces of so many frames: each sees
        CONTEXT frames more on either side, whose outputs are dropped. Attention then reaches no further than that.

    Returns:
      A function that waits for the batch and gives the float32 features of each clip, its own length.

    Raises:
      RuntimeError, MemoryError: as torch raises them; a batch that does not fit into memory is one.
    """
    device = next(network.parameters()).device
    lengths = [len(clip.audio) for clip in clips]
    sounds = pad_sequence([torch.from_numpy(clip.audio) for clip in clips], batch_first=True)
    audio = network.project_audio(_to(sounds, device))
    video = pad_sequence(_project_videos(network, [clip.crops for clip in clips], device), batch_first=True)
    passes = [network.fuse(None, video), network.fuse(audio, None)]
    if multimodal:
        passes.append(network.fuse(audio, video))
    fused = torch.cat(passes)
    if piece is None:
        padding = _to(torch.tensor(lengths * len(passes)), device) if len(set(lengths)) > 1 else None
        encoded = network.contextualise(fused, padding)
    else:
        assert len(clips) == 1
        encoded = _in_pieces(network.contextualise, fused, piece)
    arrived = _to_host(encoded.unflatten(0, (len(passes), -1)))

    def features() -> list[ClipFeatures]:
        by_pass = arrived()
        return [ClipFeatures(*(each[n, :length] for each in by_pass)) for n, length in enumerate(lengths)]

    return features


def _by_length(clips: list[PreparedClip], batch_frames: int) -> Iterator[list[PreparedClip]]:
    batch: list[PreparedClip] = []
    for clip in sorted(clips, key=lambda clip: len(clip.audio)):  # the newcomer is the longest
        if batch and len(clip.audio) * (len(batch) + 1) > batch_frames:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _project_videos(
    network: AVHubert, videos: Sequence[UInt8[np.ndarray, "_ 96 96"]], device: torch.device
) -> list[Float[Tensor, "_ D"]]:
    """Projected frames of each video.

    The videos stand in one line with NEIGHBOURS frames of zeros before, between and after, so every frame sees what it
    would see alone; the line is cut into windows that overlap by as much.
    """
    gap = torch.zeros(NEIGHBOURS, 96, 96, dtype=torch.uint8)
    line = torch.cat([gap, *(part for video in videos for part in (torch.from_numpy(video), gap))])
    real = torch.cat([gap[:, 0, 0], *(part for v in videos for part in (torch.ones(len(v)), gap[:, 0, 0]))]).bool()
    places = real[NEIGHBOURS:-NEIGHBOURS].nonzero().flatten()  # found here: a GPU would have to be waited for
    line, real, places = (_to(tensor, device) for tensor in (line, real, places))
    projected = []
    for start in range(NEIGHBOURS, len(line) - NEIGHBOURS, FRONT_END_FRAMES):
        window = slice(start - NEIGHBOURS, start + FRONT_END_FRAMES + NEIGHBOURS)
        frames = normalise_crops(line[window]) * real[window, None, None]
        projected.append(network.project_video(frames[None])[0, NEIGHBOURS:-NEIGHBOURS])
    return list(torch.cat(projected).index_select(0, places).split([len(video) for video in videos]))


def _in_pieces(
    contextualise: Callable[[Tensor], Tensor], fused: Float[Tensor, "P T D"], piece: int
) -> Float[Tensor, "P T D"]:
    """Encodes stretches of `piece` frames, each with CONTEXT frames on either side where the clip has them."""
    encoded = []
    for start in range(0, fused.shape[1], piece):
        before = min(CONTEXT, start)
        output = contextualise(fused[:, start - before : start + piece + CONTEXT])
        encoded.append(output[:, before : before + piece])
    return torch.cat(encoded, dim=1)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor; to a GPU from pinned memory, so that the copy runs beside the work that goes on there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _to_host(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Starts a tensor's copy to the host; the function waits for it."""
    if tensor.device.type != "cuda":
        return tensor.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _device() -> torch.device:
    """A GPU, where there is one: the one that a launcher of several processes means for this one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: on the CPU only its words tell."""
    words = ("allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
