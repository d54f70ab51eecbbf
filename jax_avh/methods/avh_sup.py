"""AVH-Align/sup: the same features and network, trained on clips labelled real and fake. It learns shortcuts gladly.

Source: AVH-Align, section 3 and table 5.
"""

import dataclasses

from jaxtyping import Array, Float

from jax_avh.config import MethodConfig, one_of, rules
from jax_avh.methods.interface import FrameMethod, PairScorer, Training
from jax_avh.models import HEADS, MODALITIES, FrameBatch, FrameNetwork, clip_cross_entropy


@dataclasses.dataclass
class AVHSupConfig(MethodConfig):
    """AVH-Align/sup, on clips of both labels."""

    name: str = "avh_sup"
    head: str = rules("mlp", one_of(HEADS))  # "mlp", or "linear" for the ablation of the paper's table 5
    modality: str = rules("both", one_of(MODALITIES))  # "both", or only "audio" or "video"


def frame_logits(network: FrameNetwork, batch: FrameBatch, boundary: str) -> Float[Array, " T"]:
    """Fakeness of every frame, padding included."""
    del boundary  # no frame looks at its neighbours
    return network(batch.visual, batch.audio)


def outputs(score: PairScorer, batch: FrameBatch) -> Float[Array, "T 1"]:
    """Fakeness of each frame."""
    return score(batch.visual, batch.audio)[:, None]


METHOD = FrameMethod(
    "avh_sup",
    outputs,
    pooling="logsumexp",
    training=Training(real_only=False, whole_clips=True, frame_values=frame_logits, loss=clip_cross_entropy),
    threshold=0.0,  # P(fake) = sigmoid(2 s) = 1/2
)
