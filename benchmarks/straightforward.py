"""A straightforward extraction of AV-HuBERT features with plain PyTorch, dlib and scikit-image, for comparison.

It processes one clip at a time in three passes, each starting from the pixels, with attention written out. The face
detector runs on every full frame with one upsampling, and each frame is warped onto the whole canvas. The computation
and its constants are the same as in `extract`.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from skimage.transform import SimilarityTransform, warp
from torch import Tensor

from extract.avhubert import AVHubert
from extract.avhubert.encoder import normalise_crops
from extract.face import detect_landmarks
from extract.face.mouth import CANVAS, CROP, MOUTH, REFERENCE, SMOOTHED_FRAMES, STABLE
from extract.media import iterate_video, read_audio
from extract.media.decode import to_grey
from extract.prepare import PreparedClip, filterbank_frames


def prepare(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the landmarks, mouth crops and filterbank frames of a clip."""
    frames = list(iterate_video(path))
    landmarks = detect_landmarks(frames)
    starts = [min(i, max(len(frames) - SMOOTHED_FRAMES, 0)) for i in range(len(frames))]
    smooth = [landmarks[start : start + SMOOTHED_FRAMES].mean(axis=0) for start in starts]
    crops = [_crop(frame, mean, own) for frame, mean, own in zip(frames, smooth, landmarks, strict=True)]
    return landmarks, np.stack(crops), filterbank_frames(read_audio(path))


def _crop(frame: np.ndarray, mean: np.ndarray, own: np.ndarray) -> np.ndarray:
    transform = SimilarityTransform.from_estimate(mean[list(STABLE)], REFERENCE)
    canvas = warp(frame, transform.inverse, output_shape=(CANVAS, CANVAS))
    x, y = np.clip(transform(own[MOUTH]).mean(axis=0), CROP / 2, CANVAS - CROP / 2).round().astype(int) - CROP // 2
    return to_grey((canvas[y : y + CROP, x : x + CROP] * 255).astype(np.uint8))


@torch.inference_mode()
def encode(network: AVHubert, clip: PreparedClip) -> list[Tensor]:
    """Returns the video-only, audio-only and joint features [T, D] of a clip, computed in three passes."""
    device = next(network.parameters()).device
    video = normalise_crops(torch.from_numpy(clip.crops).to(device))[None]
    audio = torch.from_numpy(clip.audio).to(device)[None]
    inputs = [(None, video), (audio, None), (audio, video)]
    return [_forward(network, sound, picture)[0].cpu() for sound, picture in inputs]


def _forward(network: AVHubert, audio: Tensor | None, video: Tensor | None) -> Tensor:
    seen = None if video is None else network.feature_extractor_video(video)
    heard = None if audio is None else network.feature_extractor_audio(audio)
    x = network.fuse(heard, seen)
    x = x + network.encoder.pos_conv(x)
    for layer in network.encoder.layers:
        x = x + _attend(layer.self_attn, layer.self_attn_layer_norm(x))
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    return network.encoder.layer_norm(x)


def _attend(attention: torch.nn.Module, x: Tensor) -> Tensor:
    q, k, v = (
        getattr(attention, name)(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
    return attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
