"""Batches of prepared clips become features: audio-only and video-only passes in one Transformer batch."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from extract.avhubert.network import AVHubert
from extract.prepare.clip import PreparedClip
from extract.shards import ClipFeatures

MEAN, STD = 0.421, 0.165  # of grey mouth crops in [0, 1], AV-HuBERT's normalisation
MARGIN = 4  # pixels cut off each side of a 96x96 crop
BATCH_FRAMES = 1024  # of one encoder batch, padding included: bounds memory


def normalise_crops(crops: UInt8[np.ndarray, "T 96 96"]) -> Float[np.ndarray, "T 88 88"]:
    """Centre of each crop, normalised: float32."""
    centre = crops[:, MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.float32)
    return (centre / np.float32(255) - np.float32(MEAN)) / np.float32(STD)


def batches(clips: Iterable[PreparedClip], batch_frames: int = BATCH_FRAMES) -> Iterator[list[PreparedClip]]:
    """Groups clips, in order, so that no padded batch exceeds `batch_frames` (a longer clip goes alone)."""
    batch: list[PreparedClip] = []
    for clip in clips:
        longest = max(len(member.audio) for member in [*batch, clip])
        if batch and longest * (len(batch) + 1) > batch_frames:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


@torch.inference_mode()
def encode_clips(network: AVHubert, clips: Sequence[PreparedClip], multimodal: bool = False) -> list[ClipFeatures]:
    """Encodes one batch of clips.

    Each modality is projected once (the video front end is most of the work); every pass then differs only in which
    projection the fusion sees, so all passes are one batch of the Transformer.

    Args:
      network: the encoder, on any device.
      clips: prepared clips; padded here to the longest.
      multimodal: whether to make the pass with both modalities too.

    Returns:
      float32 features of each clip, its own length.
    """
    device = next(network.parameters()).device
    lengths = torch.tensor([len(clip.audio) for clip in clips], device=device)
    audio = network.project_audio(_padded([clip.audio for clip in clips]).to(device))
    video = network.project_video(_padded([normalise_crops(clip.crops) for clip in clips]).to(device), lengths)
    passes = [network.fuse(None, video), network.fuse(audio, None)]
    if multimodal:
        passes.append(network.fuse(audio, video))
    encoded = network.contextualise(torch.cat(passes), lengths.repeat(len(passes)))
    by_pass = encoded.unflatten(0, (len(passes), -1)).float().cpu().numpy()
    return [ClipFeatures(*(features[n, : len(clip.audio)] for features in by_pass)) for n, clip in enumerate(clips)]


def _padded(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stacks sequences of different lengths, zeros behind."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)
