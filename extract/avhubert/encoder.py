"""Encoding of prepared clips into features or failures, within the available memory.

The video front end, which is half of the work, processes the clips' frames end to end without padding, in windows of
FRONT_END_FRAMES. The Transformer processes one padded batch with all passes of several clips of similar length.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avh_shards import ClipMeta, UserError
from avh_shards.errors import ClipError, Failure
from avh_shards.format import RANDOM_WEIGHTS
from avh_shards.machine import local_rank
from avh_shards.paths import file_sha256
from avh_shards.text import one_line
from extract.avhubert.checkpoint import load_avhubert, random_avhubert
from extract.avhubert.model import AVHubert, AVHubertConfig
from extract.prepare import PreparedClip, PrepareSettings, prepare_clip
from extract.store.shard import ClipFeatures, check_features

CROP_MEAN, CROP_STD = 0.421, 0.165  # AV-HuBERT's normalisation of grey mouth crops in [0, 1]
CROP_MARGIN = 4  # pixels cut off each side of a 96x96 crop
BATCH_FRAMES = 1024  # per encoder batch, padding included: bounds memory
POOL_BATCHES = 16  # batches' worth of clips sorted by length together
FRONT_END_FRAMES = 256  # per call of the video front end: bounds its memory for any clip length
NEIGHBOURS = 2  # frames on either side in the receptive field of the first convolution; zeros beyond the clip's ends
CONTEXT = 250  # frames on either side of a piece that are encoded with it and dropped (10 s)
RANDOM_ENCODER = "random"  # used instead of a file: seeded random weights with the sizes of the official large model
ENCODER_PRECISIONS = ("float32", "bfloat16", "float16")
NO_MEMORY = (  # in messages of torch and of the libraries that it calls
    "allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no memory for a handle
    "unable to find an engine",  # no memory for the workspace of any convolution
)

Encoded = tuple[PreparedClip, ClipFeatures | Failure]


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
    """Settings of encoding; all of them affect at least the last digits."""

    precision: str = "float32"  # of weights and products; norms and residual sums stay float32
    batch_frames: int = BATCH_FRAMES  # per batch, padding included
    compile: bool = False  # torch.compile: pays off on a GPU after minutes of compilation


class Encoder:
    """AV-HuBERT on a device.

    Attributes:
      settings: encoding settings.
      pieces: frames per piece of each clip, by path, that was encoded in pieces for lack of memory.
      network: the AVHubert network on its device.
      digest: SHA-256 of the file in hexadecimal digits, or "random".
    """

    def __init__(
        self,
        avhubert: str | os.PathLike,
        settings: EncodeSettings = EncodeSettings(),
        device: torch.device | None = None,
    ):
        """Loads the weights, and turns off TF32 in cuDNN for the whole process.

        Args:
          avhubert: path of an official file, or "random" for seeded random weights, whose features are meaningless.
          settings: encoding settings.
          device: device that encodes; None = the GPU of this process, or the CPU if none is available.

        Raises:
          UserError: the file is missing, damaged or not an AV-HuBERT file, or the device has too little free memory.
        """
        self.settings = settings
        self.pieces: dict[str, int] = {}  # path of a clip that exceeded memory -> frames per piece
        if str(avhubert) == RANDOM_ENCODER:
            self.network = random_avhubert(AVHubertConfig.large())
            self.digest = RANDOM_WEIGHTS
        else:
            with ThreadPoolExecutor(1) as thread:  # a second core hashes the two gigabytes meanwhile
                digest = thread.submit(file_sha256, Path(avhubert))
                self.network = load_avhubert(avhubert)
                self.digest = digest.result()
        torch.backends.cudnn.allow_tf32 = False  # full float32, so that features agree between machines
        device = device or _device()
        try:
            self.network.hold(getattr(torch, settings.precision)).to(device)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"the encoder: does not fit into the free memory of {device}; end other programs there, or set "
                "CUDA_VISIBLE_DEVICES to another GPU or to nothing (CPU)"
            ) from error
        if settings.compile:
            self.network.project_video = torch.compile(self.network.project_video, dynamic=True)
            self.network.contextualise = torch.compile(self.network.contextualise, dynamic=True)

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.network.config.width

    @property
    def attributes(self) -> dict[str, object]:
        """Shard attributes that identify this encoder."""
        config = self.network.config
        kind = "random weights, " if self.digest == RANDOM_WEIGHTS else ""
        encoder = f"AV-HuBERT ({kind}{config.layers} layers, width {config.width})"
        return {"encoder": encoder, "weights_sha256": self.digest, "width": config.width}

    def encode(
        self, clips: Iterable[PreparedClip], dtype: str = "float32", multimodal: bool = False
    ) -> Iterator[Encoded]:
        """Encodes clips; a GPU computes the next batch while the caller consumes the current one.

        A batch that does not fit into memory is halved; a single clip that does not fit is encoded in pieces (see
        `start_encoding`).

        Args:
          clips: prepared clips, consumed lazily.
          dtype: dtype of the shard, "float16" or "float32", whose range the features must fit.
          multimodal: whether to run the pass with both modalities as well.

        Yields:
          Each clip with its features (float32 [T, D] at 25 Hz, not normalised) or failure, in no particular order.

        Raises:
          UserError: the encoder fails for a reason other than lack of memory.
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
            if not _is_out_of_memory(error):  # not the clips' fault, since they have the right shapes
                raise UserError(f"the encoder failed: {reason}") from error
        else:
            self.pieces |= {batch[0].meta.path: piece} if piece else {}
            return lambda: list(zip(batch, features(), strict=True))
        # Outside the handler, because the error's frames would keep the batch's tensors in memory.
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
    """Returns the centre of each crop, normalised, as float32."""
    return (crops[:, CROP_MARGIN:-CROP_MARGIN, CROP_MARGIN:-CROP_MARGIN].float() / 255 - CROP_MEAN) / CROP_STD


def encode_video(path: str | os.PathLike, encoder: Encoder, landmarks: str = PrepareSettings.landmarks) -> ClipFeatures:
    """Encodes one video file.

    Args:
      path: media file with picture and sound.
      encoder: the encoder.
      landmarks: the landmark finder, "dlib-tracked" or "dlib".

    Returns:
      float32 features [T, D] of both modalities at 25 Hz, of the whole clip and not normalised.

    Raises:
      UserError: the video cannot be prepared or encoded; the message gives the reason.
    """
    try:
        clip = prepare_clip(ClipMeta(Path(path).name), Path(path).parent, PrepareSettings(landmarks=landmarks))
    except ClipError as error:
        raise UserError(f"{path}: {error.reason}") from error
    ((_, features),) = encoder.encode([clip])
    if isinstance(features, Failure):
        raise UserError(f"{path}: {features.reason}")
    return features


def batches(clips: Iterable[PreparedClip], batch_frames: int = BATCH_FRAMES) -> Iterator[list[PreparedClip]]:
    """Groups clips of similar length into batches of at most `batch_frames` padded frames.

    A longer clip is a batch by itself. Which clips share a batch depends only on the clips and not on timing, so
    features are reproducible to the last bit. At most POOL_BATCHES batches' worth of frames plus one clip are held.

    Args:
      clips: prepared clips, consumed lazily.
      batch_frames: most frames per batch, padding included.
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
    """Starts encoding one batch of clips; a GPU computes it while the caller continues.

    Each modality is projected once, since the video front end is half of the work. The passes differ only in which
    projections are fused, so all of them form one batch of the Transformer.

    Args:
      network: the encoder, on any device, in any precision.
      clips: prepared clips.
      multimodal: whether to run the pass with both modalities as well.
      piece: if given, number of frames of the overlapping pieces in which the Transformer encodes the only clip. Each
        piece has CONTEXT more frames on either side, whose outputs are dropped; this limits the reach of attention.

    Returns:
      A function that waits for the batch and returns the float32 features of each clip, without padding.

    Raises:
      RuntimeError, MemoryError: from torch, for example if the batch does not fit into memory.
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
    """Projects the frames of each video.

    The videos are concatenated with NEIGHBOURS frames of zeros before, between and after them, so every frame has the
    same neighbours as in its own video. The result is split into windows that overlap by as many frames.
    """
    gap = torch.zeros(NEIGHBOURS, 96, 96, dtype=torch.uint8)
    line = torch.cat([gap, *(part for video in videos for part in (torch.from_numpy(video), gap))])
    real = torch.cat([gap[:, 0, 0], *(part for v in videos for part in (torch.ones(len(v)), gap[:, 0, 0]))]).bool()
    places = real[NEIGHBOURS:-NEIGHBOURS].nonzero().flatten()  # on the CPU; nonzero() would wait for a GPU
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
    """Encodes pieces of `piece` frames, each with up to CONTEXT more frames on either side."""
    encoded = []
    for start in range(0, fused.shape[1], piece):
        before = min(CONTEXT, start)
        output = contextualise(fused[:, start - before : start + piece + CONTEXT])
        encoded.append(output[:, before : before + piece])
    return torch.cat(encoded, dim=1)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor; to a GPU from pinned memory, so that the copy overlaps with computation."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _to_host(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Starts copying a tensor to the host; the returned function waits for the copy and returns it."""
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
    """Returns the GPU that a multi-process launcher assigns to this process, or the CPU without one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, _ = local_rank()
    return torch.device("cuda", rank % torch.cuda.device_count())


def _is_out_of_memory(error: Exception) -> bool:
    """Returns whether torch ran out of memory; on the CPU and in CUDA's libraries only the error message shows it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)
