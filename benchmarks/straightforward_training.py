"""Straightforward training in PyTorch: a window of audio for every frame, and every pair through all layers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

TAU = 15
WINDOW = 2 * TAU + 1


class Windows(torch.utils.data.IterableDataset):
    """A data set of visual frames with their windows of audio frames, clip by clip; zeros pad a clip's ends."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.glob("*.npz"))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file in self.files:
            with np.load(file, allow_pickle=False) as clip:
                visual, audio = (unit(clip[name]) for name in ("visual", "audio"))
            padded = np.pad(audio, ((TAU, TAU), (0, 0)))
            for t, frame in enumerate(visual):
                yield frame, padded[t : t + WINDOW]


class Network(nn.Module):
    """The alignment network with the official parameter names."""

    def __init__(self, width: int = 1024):
        super().__init__()
        self.visual_proj, self.audio_proj = nn.Linear(width, 512), nn.Linear(width, 512)
        layers, inputs = [], 1024
        for hidden in (512, 256, 128):
            layers += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            inputs = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Returns scores [B, W] of visual frames [B, D] with windows of audio frames [B, W, D]."""
        pairs = [self.visual_proj(visual[:, None].expand_as(audio)), self.audio_proj(audio)]
        return self.mlp(torch.cat(pairs, dim=-1))[..., 0]


def train(folder: Path, weights: Path, batch_frames: int, learning_rate: float, device: str) -> Iterator[float]:
    """Trains on a folder of npz clips (`visual`, `audio`), and yields each batch's mean loss before its step."""
    network = Network()
    network.load_state_dict(safetensors.torch.load_file(weights))
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for visual, audio in torch.utils.data.DataLoader(Windows(folder), batch_size=batch_frames):
        scores = network(visual.to(device), audio.to(device))
        losses = -torch.log_softmax(scores, dim=-1)[:, TAU]
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        yield losses.mean().item()


def unit(features: np.ndarray) -> np.ndarray:
    """Scales each frame to unit length."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)
