"""The AV-HuBERT encoder for inference, with the official parameter names.

A mouth video and a log-filterbank sequence, both at 25 Hz, are projected to width D each, concatenated, fused to D and
passed through pre-norm Transformer blocks. The projected features of a missing modality are replaced by zeros.

Source: Shi et al., "Learning audio-visual speech representation by masked multimodal cluster prediction", ICLR 2022.
Letters: B clips, T frames, D width.
"""

import dataclasses
from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

AUDIO_WIDTH = 104  # 26 filters x 4 stacked frames
TRUNK_WIDTH = 512  # ResNet-18's output
POSITION_KERNEL, POSITION_GROUPS = 128, 16
STAGE_WIDTHS = (64, 128, 256, 512)
LARGEST_SIZES = (1 << 8, 1 << 14, 1 << 16, 1 << 10)  # layers, width, ffn_width, heads: far above AV-HuBERT large


@dataclasses.dataclass(frozen=True)
class AVHubertConfig:
    """Sizes of the Transformer; the size of the video front end is fixed.

    Attributes:
      layers: number of Transformer blocks.
      width: feature width D, a multiple of `heads` and of POSITION_GROUPS.
      ffn_width: hidden width of the feed-forward layers.
      heads: attention heads per block.

    Raises:
      ValueError: a size is not positive or exceeds LARGEST_SIZES, or `width` is not such a multiple.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if min(sizes) < 1 or any(size > largest for size, largest in zip(sizes, LARGEST_SIZES, strict=True)):
            raise ValueError(f"sizes are not positive or too large: {self}")
        if self.width % self.heads or self.width % POSITION_GROUPS:
            raise ValueError(
                f"width {self.width} is not divisible by both {self.heads} heads and {POSITION_GROUPS} groups"
            )

    @classmethod
    def tiny(cls) -> "AVHubertConfig":
        """Returns the sizes of a tiny model for tests."""
        return cls(layers=2, width=64, ffn_width=128, heads=4)

    @classmethod
    def base(cls) -> "AVHubertConfig":
        """Returns the sizes of AV-HuBERT base, 103 M parameters."""
        return cls(layers=12, width=768, ffn_width=3072, heads=12)

    @classmethod
    def large(cls) -> "AVHubertConfig":
        """Returns the sizes of AV-HuBERT large, 325 M parameters, whose features AVH-Align uses."""
        return cls(layers=24, width=1024, ffn_width=4096, heads=16)


class AVHubert(nn.Module):
    """The AV-HuBERT encoder, with the state-dict names of the official files.

    A new network has random float32 weights without gradients, and is in evaluation mode.

    Args:
      config: sizes of the Transformer.
    """

    def __init__(self, config: AVHubertConfig):
        super().__init__()
        self.config = config
        self.feature_extractor_audio = nn.Sequential(OrderedDict(proj=nn.Linear(AUDIO_WIDTH, config.width)))
        self.feature_extractor_video = nn.Sequential(
            OrderedDict(resnet=_ResNet(), proj=nn.Linear(TRUNK_WIDTH, config.width))
        )
        self.layer_norm = nn.LayerNorm(2 * config.width)
        self.post_extract_proj = nn.Linear(2 * config.width, config.width)
        self.encoder = _Encoder(config)
        self.requires_grad_(False).eval()

    def hold(self, dtype: torch.dtype) -> "AVHubert":
        """Converts convolutions, linear layers and PReLUs to `dtype`, in which they then compute.

        Norms, residual sums of the Transformer and its output stay float32, because sums over 24 layers would lose
        precision in bfloat16. The positional convolution also stays float32, because oneDNN's bfloat16 kernel for
        groups of few channels returns wrong sums (torch 2.13, CPU). The ResNet uses the channels-last layout, which is
        fastest for convolutions.

        Args:
          dtype: float32, bfloat16 or float16.

        Returns:
          The network itself.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.PReLU):
                module.to(dtype)
        # torch's type annotations of `to` lack an overload with only memory_format.
        resnet = cast(Any, self.feature_extractor_video.resnet)
        resnet.frontend3D.to(memory_format=torch.channels_last_3d)
        resnet.trunk.to(memory_format=torch.channels_last)
        return self

    def forward(
        self,
        audio: Float[Tensor, "B T 104"] | None = None,
        video: Float[Tensor, "B T 88 88"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Encodes a batch of clips.

        Args:
          audio: normalised filterbank frames (`prepare.filterbank_frames`); None for a video-only pass.
          video: normalised grey mouth crops (`encoder.normalise_crops`); None for an audio-only pass.
          lengths: number of frames of each clip; later frames are padding and do not affect the result of the clip.
            None if no clip is padded.

        Returns:
          The output of the last layer after the final layer norm, float32; undefined on padding.
        """
        assert audio is not None or video is not None, "at least one modality"
        projected_audio = None if audio is None else self.project_audio(audio)
        projected_video = None if video is None else self.project_video(video, lengths)
        return self.contextualise(self.fuse(projected_audio, projected_video), lengths)

    def project_audio(self, audio: Float[Tensor, "B T 104"]) -> Float[Tensor, "B T D"]:
        """Projects audio frames, each independently; the output has the dtype of the weights."""
        return _apply(self.feature_extractor_audio, audio)

    def project_video(
        self, video: Float[Tensor, "B T 88 88"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Projects video frames, each with two neighbours on either side (zeros beyond the clip's ends).

        Arguments are as for `forward`; the output has the dtype of the weights.
        """
        if lengths is not None:
            video = video * valid_frames(lengths, video.shape[1])[..., None, None]
        return self.feature_extractor_video(video)

    def fuse(
        self, audio: Float[Tensor, "B T D"] | None, video: Float[Tensor, "B T D"] | None
    ) -> Float[Tensor, "B T D"]:
        """Fuses projected modalities to float32; a missing one (None) is replaced by zeros before the layer norm."""
        if audio is None:
            assert video is not None, "at least one modality"
            audio = torch.zeros_like(video)
        video = torch.zeros_like(audio) if video is None else video
        joint = self.layer_norm(torch.cat([audio, video], dim=-1).float())
        return _apply(self.post_extract_proj, joint).float()

    def contextualise(
        self, fused: Float[Tensor, "B T D"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Applies the Transformer to fused frames; `lengths` and the output are as for `forward`."""
        return self.encoder(fused, None if lengths is None else valid_frames(lengths, fused.shape[1]))


def valid_frames(lengths: Int[Tensor, " B"], frames: int) -> Bool[Tensor, "B T"]:
    """Returns True where a frame belongs to its clip, False on padding."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def _apply(layers: nn.Module, x: Tensor) -> Tensor:
    """Applies layers to an input converted to the dtype of their weights."""
    return layers(x.to(next(layers.parameters()).dtype))


class _ResNet(nn.Module):
    """A 3D convolution over time and space followed by ResNet-18 on every frame: [B, T, 88, 88] -> [B, T, 512]."""

    def __init__(self):
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, 64, (5, 7, 7), stride=(1, 2, 2), padding=(2, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.PReLU(64),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.trunk = nn.Sequential()
        for stage, width in enumerate(STAGE_WIDTHS):
            inputs, stride = (width, 1) if stage == 0 else (STAGE_WIDTHS[stage - 1], 2)
            blocks = nn.Sequential(_ResidualBlock(inputs, width, stride), _ResidualBlock(width, width, 1))
            self.trunk.add_module(f"layer{stage + 1}", blocks)

    def forward(self, video: Tensor) -> Tensor:
        frames = _apply(self.frontend3D, video.unsqueeze(1)).transpose(1, 2)  # [B, T, 64, 22, 22]
        pooled = self.trunk(frames.flatten(0, 1)).mean(dim=(-2, -1))
        return pooled.unflatten(0, frames.shape[:2])


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.PReLU(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(hidden)) + shortcut)


class _Encoder(nn.Module):
    def __init__(self, config: AVHubertConfig):
        super().__init__()
        self.pos_conv = nn.Sequential(_PositionalConvolution(config.width))
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            x = x * valid[..., None]  # hides padding from the positional convolution
        x = x + self.pos_conv(x)
        keys = None if valid is None else valid[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys)
        return self.layer_norm(x)


class _PositionalConvolution(nn.Module):
    """A grouped convolution with weight v / |v| * g, where the norm is over all axes but the kernel's."""

    def __init__(self, width: int):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(width, width // POSITION_GROUPS, POSITION_KERNEL))
        self.weight_g = nn.Parameter(torch.empty(1, 1, POSITION_KERNEL))
        self.bias = nn.Parameter(torch.zeros(width))
        if not self.weight_v.is_meta:  # on the meta device the first random number costs two seconds of imports
            nn.init.normal_(self.weight_v, std=(4 / (POSITION_KERNEL * width)) ** 0.5)
            self.weight_g.data.copy_(self._norm())

    def _norm(self) -> Tensor:
        return self.weight_v.square().sum(dim=(0, 1), keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self._norm())
        x = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=POSITION_KERNEL // 2, groups=POSITION_GROUPS)
        return F.gelu(x[..., :-1]).transpose(1, 2)  # an even kernel returns one output too many


class _Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, config: AVHubertConfig):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = _Attention(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), keys)
        return x + self.fc2(F.gelu(_apply(self.fc1, self.final_layer_norm(x))))


class _Attention(nn.Module):
    def __init__(self, config: AVHubertConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        x = x.to(self.q_proj.weight.dtype)
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
