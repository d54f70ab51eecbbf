"""Which networks official files of weights hold, by ending, and the names and shapes of their parameters."""

import itertools
from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"  # of a PyTorch batch norm, beside its running statistics; nothing depends on it
WIDTH = 1024  # of the features of AV-HuBERT large, which alone AVH-Align's programs take
RAWNET2_WIDTHS = (20, 20, 20, 128, 128, 128, 128)  # channels into its blocks, and out of the last
# Position in MDS's audio stream -> kernel of the convolution there: [out, in, cepstra, time].
MDS_AUDIO = {0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3)}
MDS_AUDIO |= {14: (256, 256, 3, 3), 18: (512, 256, 5, 4)}
# Stages of MDS's visual stream: channels in and out, frames that a kernel sees.
MDS_VISUAL = ((64, 64, 1), (64, 128, 1), (128, 256, 3), (256, 256, 3))


class Network(NamedTuple):
    """A network of an official program."""

    name: str  # for sentences
    notes: dict[str, str]  # what its `.safetensors` says of it
    shapes: Shapes  # of parameters and running statistics, by their official names

    @property
    def method(self) -> str:
        """Name of the detector."""
        return self.notes["method"]


class Official(NamedTuple):
    """What the official files of an ending hold."""

    title: str  # for sentences
    networks: tuple[Network, ...]

    @property
    def methods(self) -> list[str]:
        """Names of the detectors, each once."""
        return list(dict.fromkeys(network.method for network in self.networks))


def affine(name: str, *shape: int) -> Shapes:
    """A layer with a weight [out, ...] and a bias [out]."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, width: int) -> Shapes:
    """A batch norm that keeps statistics."""
    return affine(name, width) | {f"{name}.running_{of}": (width,) for of in ("mean", "var")}


def mlp(modality: str) -> Shapes:
    """AVH-Align's network, or AVH-Align/sup's of one modality."""
    projections = {"visual_proj": 512, "audio_proj": 512} if modality == "both" else {"proj": 1024}
    shapes = {}
    for name, outputs in projections.items():
        shapes |= affine(name, outputs, WIDTH)
    for index, inputs, outputs in ((0, 1024, 512), (3, 512, 256), (6, 256, 128)):
        shapes |= affine(f"mlp.{index}", outputs, inputs) | affine(f"mlp.{index + 1}", outputs)
    return shapes | affine("mlp.9", 1, 128)


def linear(modality: str) -> Shapes:
    """AVH-Align/sup's ablation without hidden layers."""
    return affine("head", 1, 2 * WIDTH if modality == "both" else WIDTH)


def rawnet2() -> Shapes:
    """The baseline of ASVspoof 2021; its sinc filters are computed, not stored."""
    shapes = batch_norm("first_bn", RAWNET2_WIDTHS[0])
    for index, (inputs, outputs) in enumerate(itertools.pairwise(RAWNET2_WIDTHS)):
        block = f"block{index}.0"
        shapes |= batch_norm(f"{block}.bn1", inputs) if index else {}
        shapes |= affine(f"{block}.conv1", outputs, inputs, 3) | batch_norm(f"{block}.bn2", outputs)
        shapes |= affine(f"{block}.conv2", outputs, outputs, 3)
        shapes |= affine(f"{block}.conv_downsample", outputs, inputs, 1) if inputs != outputs else {}
        shapes |= affine(f"fc_attention{index}.0", outputs, outputs)
    shapes |= batch_norm("bn_before_gru", RAWNET2_WIDTHS[-1])
    for layer, inputs in enumerate((RAWNET2_WIDTHS[-1], 1024, 1024)):
        shapes |= {f"gru.weight_ih_l{layer}": (3072, inputs), f"gru.weight_hh_l{layer}": (3072, 1024)}
        shapes |= {f"gru.bias_{of}_l{layer}": (3072,) for of in ("ih", "hh")}
    return shapes | affine("fc1_gru", 1024, 1024) | affine("fc2_gru", 2, 1024)


def mds(image: int) -> Shapes:
    """MDS for frames of so many pixels in height and width."""
    shapes = mds_visual()
    for index, kernel in MDS_AUDIO.items():
        shapes |= affine(f"netcnnaud.{index}", *kernel) | batch_norm(f"netcnnaud.{index + 1}", kernel[0])
    for stream, inputs in (("lip", 256 * (image // 32) ** 2), ("aud", 512 * 21)):
        shapes |= affine(f"netfc{stream}.0", 4096, inputs) | batch_norm(f"netfc{stream}.1", 4096)
        shapes |= affine(f"netfc{stream}.3", 1024, 4096)
        shapes |= batch_norm(f"final_bn_{stream}", 1024) | affine(f"final_fc_{stream}.1", 2, 1024)
    return shapes


def mds_visual() -> Shapes:
    """MDS's visual stream up to its linear layers: kernels [out, in, time, height, width], norms without statistics."""
    shapes = {"conv1.weight": (64, 3, 1, 7, 7)} | affine("bn1", 64)
    for stage, (inputs, outputs, frames) in enumerate(MDS_VISUAL, start=1):
        for block, width in enumerate((inputs, outputs)):
            for index, channels in ((1, width), (2, outputs)):
                shapes[f"layer{stage}.{block}.conv{index}.weight"] = (outputs, channels, frames, 3, 3)
                shapes |= affine(f"layer{stage}.{block}.bn{index}", outputs)
        if stage > 1:
            shapes[f"layer{stage}.0.downsample.0.weight"] = (outputs, inputs, 1, 1, 1)
            shapes |= affine(f"layer{stage}.0.downsample.1", outputs)
    return {f"netcnnlip.{name}": shape for name, shape in shapes.items()}


def on_features(method: str, head: str, modality: str) -> Network:
    """A network on AV-HuBERT's features."""
    notes = {"method": method, "head": head, "modality": modality, "normalised": "true"}
    return Network(f"{head} of {modality}", notes, {"mlp": mlp, "linear": linear}[head](modality))


def on_frames(image: int) -> Network:
    """MDS for frames of so many pixels."""
    notes = {"method": "mds", "image": str(image), "width_multiplier": "1.0"}
    return Network(f"mds at {image} pixels", notes, mds(image))


SUPERVISED = itertools.product(("avh_sup",), ("mlp", "linear"), ("both", "audio", "video"))
RAWNET2 = Network("rawnet2", {"method": "rawnet2"}, rawnet2())
OFFICIAL = {
    ".pt": Official("an AVH-Align", (on_features("avh_align", "mlp", "both"),)),
    ".ckpt": Official("an AVH-Align", tuple(itertools.starmap(on_features, SUPERVISED))),
    ".pth": Official("a RawNet2 or MDS", (RAWNET2, on_frames(96), on_frames(224))),
}


def misfits(found: Shapes, network: Network) -> list[str]:
    """Parameters that are missing, too many, or of another shape than the network's: a phrase each, by name."""
    wanted = network.shapes
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'nothing')}" for name in wrong]


def counters(network: Network) -> list[str]:
    """Names of what the official network counts beside its running statistics."""
    means = (name for name in network.shapes if name.endswith(".running_mean"))
    return [name.removesuffix("running_mean") + COUNTER for name in means]
