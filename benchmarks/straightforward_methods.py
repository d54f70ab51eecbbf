"""Straightforward PyTorch versions of RawNet2, MDS and AVAD's decoder with the official parameter names.

Each network has `outputs`, which returns scores (higher = more fake), and `loss`. Labels are 0 for real and 1 for fake.
Letters: B examples.
"""

# ruff: noqa: D102 - each class describes what its `forward` returns

import itertools
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class RawNet2(nn.Module):
    """RawNet2: log-probabilities [B, 2] of fake and real for cuts [B, S] of sound in [-1, 1]."""

    def __init__(self, widths: tuple[int, ...] = (20, 20, 20, 128, 128, 128, 128)):
        super().__init__()
        self.register_buffer("bank", sinc_bank(), persistent=False)
        self.first_bn = nn.BatchNorm1d(widths[0])
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            setattr(self, f"block{index}", nn.Sequential(SoundBlock(inputs, outputs, index == 0)))
            setattr(self, f"fc_attention{index}", nn.Sequential(nn.Linear(outputs, outputs)))
        self.blocks, self.bn_before_gru = len(widths) - 1, nn.BatchNorm1d(widths[-1])
        self.gru = nn.GRU(widths[-1], 1024, 3, batch_first=True)
        self.fc1_gru, self.fc2_gru = nn.Linear(1024, 1024), nn.Linear(1024, 2)

    def forward(self, sound: Tensor) -> Tensor:
        loud = functional.max_pool1d(functional.conv1d(sound[:, None], self.bank).abs(), 3)
        hidden = functional.selu(self.first_bn(loud))
        for index in range(self.blocks):
            hidden = getattr(self, f"block{index}")(hidden)
            gate = torch.sigmoid(getattr(self, f"fc_attention{index}")(hidden.mean(dim=2)))[..., None]
            hidden = hidden * gate + gate
        states, _ = self.gru(functional.selu(self.bn_before_gru(hidden)).transpose(1, 2))
        return functional.log_softmax(self.fc2_gru(self.fc1_gru(states[:, -1])), dim=1)

    def outputs(self, sound: Tensor) -> Tensor:
        return -self(sound)[:, 1:]

    def loss(self, label: Tensor, sound: Tensor) -> Tensor:
        return functional.nll_loss(self(sound), 1 - label, sound.new_tensor([0.1, 0.9]))


class SoundBlock(nn.Module):
    """A residual block; as in the official program, the output of `bn1` is computed but not used."""

    def __init__(self, inputs: int, outputs: int, first: bool):
        super().__init__()
        self.bn1 = None if first else nn.BatchNorm1d(inputs)
        self.conv1, self.bn2 = nn.Conv1d(inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.conv_downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and self.bn1 is not None:
            with torch.no_grad():
                self.bn1(inputs)
        hidden = self.conv2(functional.leaky_relu(self.bn2(self.conv1(inputs)), 0.3))
        skip = inputs if self.conv_downsample is None else self.conv_downsample(inputs)
        return functional.max_pool1d(hidden + skip, 3)


def sinc_bank(filters: int = 20, taps: int = 1025, rate: int = 16000) -> Tensor:
    """Returns adjacent band-pass filters [F, 1, taps] of equal width on the mel scale."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), filters + 1)
    cutoff = 2 * 700 * (10 ** (mel / 2595) - 1)[:, None] / rate
    low_passes = cutoff * np.sinc(cutoff * (np.arange(taps) - taps // 2))
    return torch.tensor(np.diff(low_passes, axis=0) * np.hamming(taps), dtype=torch.float32)[:, None]


class MDS(nn.Module):
    """MDS: embeddings of frames [B, 3, 30, S, S] and cepstra [B, 1, 13, 99], with logits of fake and real for each."""

    def __init__(self, image: int = 96):
        super().__init__()
        self.netcnnaud, self.netfcaud = sound_layers(), embedding_layers(512 * 21)
        self.netcnnlip, self.netfclip = backbone(), embedding_layers(256 * (image // 32) ** 2)
        self.final_bn_lip, self.final_bn_aud = nn.BatchNorm1d(1024), nn.BatchNorm1d(1024)
        self.final_fc_lip, self.final_fc_aud = (nn.Sequential(nn.Dropout(0.5), nn.Linear(1024, 2)) for _ in range(2))

    def forward(self, frames: Tensor, cepstra: Tensor) -> tuple[Tensor, Tensor]:
        seen, heard = self.netcnnlip(frames).mean(dim=2), self.netcnnaud(cepstra)
        return self.netfclip(seen.flatten(1)), self.netfcaud(heard.flatten(1))

    def outputs(self, frames: Tensor, cepstra: Tensor) -> Tensor:
        return torch.sub(*self(frames, cepstra)).norm(dim=1, keepdim=True)

    def loss(self, label: Tensor, frames: Tensor, cepstra: Tensor) -> Tensor:
        of_picture, of_sound = self(frames, cepstra)
        distance = (of_picture - of_sound).norm(dim=1)
        contrastive = torch.where(label == 0, distance**2, (0.99 - distance).clamp(min=0) ** 2).mean()
        logits = self.final_fc_lip(self.final_bn_lip(of_picture)), self.final_fc_aud(self.final_bn_aud(of_sound))
        return contrastive + sum(functional.cross_entropy(each, 1 - label) for each in logits)


class ChunkNorm(nn.BatchNorm3d):
    """Batch norm without running statistics; scoring normalises each chunk, which is a separate batch officially."""

    def __init__(self, channels: int):
        super().__init__(channels, track_running_stats=False)

    def forward(self, inputs: Tensor) -> Tensor:
        whole = super().forward
        return whole(inputs) if self.training else functional.instance_norm(inputs, weight=self.weight, bias=self.bias)


class PictureBlock(nn.Module):
    """A residual block over time, height and width."""

    def __init__(self, inputs: int, outputs: int, steps: int, stride: tuple[int, int, int], last: bool):
        super().__init__()
        size, padding = (steps, 3, 3), (steps // 2, 1, 1)
        self.conv1, self.bn1 = nn.Conv3d(inputs, outputs, size, stride, padding, bias=False), ChunkNorm(outputs)
        self.conv2, self.bn2 = nn.Conv3d(outputs, outputs, size, 1, padding, bias=False), ChunkNorm(outputs)
        resizes, skip = inputs != outputs or stride != (1, 1, 1), nn.Conv3d(inputs, outputs, 1, stride, bias=False)
        self.downsample = nn.Sequential(skip, ChunkNorm(outputs)) if resizes else None
        self.last = last  # no ReLU follows

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(inputs)))))
        hidden = hidden + (inputs if self.downsample is None else self.downsample(inputs))
        return hidden if self.last else functional.relu(hidden)


def backbone() -> nn.Sequential:
    """Builds a ResNet-18 from frames to maps [B, 256, T, S / 32, S / 32], whose last two stages convolve over time."""
    layers = OrderedDict(conv1=nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), bn1=ChunkNorm(64))
    layers |= {"relu": nn.ReLU(), "maxpool": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))}
    stages = (64, 64, 1, (1, 1, 1)), (64, 128, 1, (1, 2, 2)), (128, 256, 3, (2, 2, 2)), (256, 256, 3, (2, 2, 2))
    for index, (inputs, outputs, steps, stride) in enumerate(stages, start=1):
        first = PictureBlock(inputs, outputs, steps, stride, last=False)
        second = PictureBlock(outputs, outputs, steps, (1, 1, 1), last=index == len(stages))
        layers[f"layer{index}"] = nn.Sequential(first, second)
    return nn.Sequential(layers)


def sound_layers() -> nn.Sequential:
    """Builds the layers from cepstra to maps [B, 512, 1, 21]."""

    def block(inputs: int, outputs: int, size: int | tuple[int, int] = 3, padding: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]

    first = *block(1, 64), nn.MaxPool2d(1), *block(64, 192), nn.MaxPool2d(3, (1, 2))
    then = *block(192, 384), *block(384, 256), *block(256, 256), nn.MaxPool2d(3, 2)
    return nn.Sequential(*first, *then, *block(256, 512, (5, 4), 0))


def embedding_layers(inputs: int) -> nn.Sequential:
    """Builds the layers from flattened maps to embeddings [B, 1024]."""
    return nn.Sequential(nn.Linear(inputs, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Linear(4096, 1024))


class AVAD(nn.Module):
    """AVAD's decoder: logits [B, N, W] of every window but the first, from the delay scores [B, N + 1, W] of all."""

    def __init__(self, windows: int = 50, delays: int = 31, width: int = 256):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(delays, width), nn.Linear(width, delays)
        self.pos_embedding = nn.Parameter(torch.randn(1, windows - 1, width))
        self.decoder1, self.decoder2 = DecoderBlock(width), DecoderBlock(width)

    def forward(self, scores: Tensor) -> Tensor:
        hidden = functional.relu(self.lin1(scores[:, :-1])) + self.pos_embedding
        return self.lin2(self.decoder2(self.decoder1(hidden)))

    def outputs(self, scores: Tensor) -> Tensor:
        found, wanted = (functional.log_softmax(logits, dim=-1) for logits in (self(scores), scores[:, 1:]))
        return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=-1)

    def loss(self, label: Tensor, scores: Tensor) -> Tensor:
        wanted = functional.softmax(scores[:, 1:], dim=-1)
        return functional.cross_entropy(self(scores).flatten(0, 1), wanted.flatten(0, 1))


class DecoderBlock(nn.Module):
    """Attention followed by two linear layers, with a shared norm."""

    def __init__(self, width: int):
        super().__init__()
        self.docoder, self.norm, self.dropout = Attention(width), Norm(width), nn.Dropout(0.1)
        first, last = nn.Linear(width, width), nn.Linear(width, width)
        self.ff = nn.Sequential(OrderedDict(w_1=first, relu=nn.ReLU(), dropout=nn.Dropout(0.1), w_2=last))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.dropout(self.norm(hidden + self.docoder(hidden)))
        return self.dropout(self.norm(hidden + self.ff(hidden)))


class Attention(nn.Module):
    """Causal attention with a trainable key and value that every step attends to."""

    def __init__(self, width: int, heads: int = 16):
        super().__init__()
        self.null_k, self.null_v = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.heads, self.scale, self.dropout = heads, width**-0.5, nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        queries, keys, values = self.to_qkv(hidden).chunk(3, dim=-1)
        keys = torch.cat([self.null_k.expand(len(hidden), -1, -1), keys], dim=1)
        values = torch.cat([self.null_v.expand(len(hidden), -1, -1), values], dim=1)
        queries, keys, values = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        logits = queries @ keys.transpose(2, 3) * self.scale
        hidden_keys = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).triu(2)
        weights = self.dropout(logits.masked_fill(hidden_keys, -torch.inf).softmax(dim=-1))
        return self.to_out((weights @ values).transpose(1, 2).flatten(2))


class Norm(nn.Module):
    """Layer norm with the unbiased standard deviation."""

    def __init__(self, width: int):
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        centred = hidden - hidden.mean(dim=-1, keepdim=True)
        return self.a_2 * centred / (hidden.std(dim=-1, keepdim=True) + 1e-6) + self.b_2
