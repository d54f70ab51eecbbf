"""What a detector says of itself: what it reads, how it learns if it does, and its scores. Higher = more fake.

Letters: T frames, N clips, B or E examples, K outputs of each.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int64, Key

from avh_shards import UserError, one_line
from jax_avh.config import Config
from jax_avh.data.examples import Examples
from jax_avh.data.source import FeatureSource
from jax_avh.models import HEADS, FrameBatch, FrameNetwork, load_weights

PairScorer = Callable[[Array, Array], Array]  # scores of visual [T, D] and audio [T, D] frames: [T]


class Training(NamedTuple):
    """How a method learns: a value for each frame, and the loss of a batch of them."""

    real_only: bool  # clips labelled fake are left out
    whole_clips: bool  # the loss is a sum over whole clips; otherwise over frames
    frame_values: Callable[[FrameNetwork, FrameBatch, str], Float[Array, " T"]]  # (network, frames, boundary)
    # (values, clip numbers, labels, weights of the frames) -> sum of the batch's losses, in nats
    loss: Callable[[Float[Array, " T"], Int[Array, " T"], Int[Array, " T"], Float[Array, " T"]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class FrameMethod:
    """A detector that scores frames by their features; a pooling of them is the clip's score."""

    name: str
    outputs: Callable[[PairScorer | None, FrameBatch], Float[Array, "T K"]]  # by its network, if it has one
    pooling: str  # of the frame scores: the method's own clip score
    tau: int = 0  # audio frames on each side that a frame needs
    # Outputs of whole clips and the clips' borders -> frame scores, and what of them the clip score pools.
    frame_scores: Callable[[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]], Float[np.ndarray, " T"]] = (
        lambda outputs, border: outputs[:, 0]
    )
    training: Training | None = None
    threshold: float | None = None  # clip score from which on a clip is called fake, if the method has one

    # In common with the methods below: it reads features alone, and all of its network is trained, as itself.
    needs, features, trained, trained_as = (), True, nnx.Param, ""

    @property
    def learns(self) -> bool:
        """Whether it has weights."""
        return self.training is not None

    @property
    def real_only(self) -> bool:
        """Whether clips labelled fake are left out of its training."""
        return self.training.real_only

    def build(self, config: Config, source: FeatureSource) -> FrameNetwork:
        """The network before training, drawn from the seed."""
        kind = {"modality": config.method.modality, "normalised": config.model.normalise}
        head = HEADS[config.method.head]
        return head(source.width, rngs=nnx.Rngs(config.seed), precision=config.train.precision, **kind)

    def load(self, path: Path, precision: str = "float32") -> FrameNetwork:
        """The network of a file of weights.

        Raises:
          UserError: they are damaged, or of another kind of network.
        """
        return load_weights(path, precision)


@dataclasses.dataclass(frozen=True)
class ExampleMethod:
    """A detector with a network of its own on fixed-size pieces of clips: cuts, chunks, sequences."""

    name: str
    needs: tuple[str, ...]  # optional contents of the shards that it reads
    features: bool  # whether it reads features: those of its training's encoder
    real_only: bool  # clips labelled fake are left out of its training
    build: Callable[[Config, FeatureSource], nnx.Module]  # the network before training
    rebuild: Callable[[Mapping[str, str], str], nnx.Module]  # the one that weights say they are of, in a precision
    examples: Callable[[FeatureSource, Any], Examples]  # Any: the method's own network
    batch_size: int  # examples of a step when scoring, on each device
    # (inputs as they are stored) -> (inputs of the network), each example on its own; nothing here is learnt
    prepare: Callable[[dict[str, jax.Array]], Any]
    # (network, inputs, labels, weights, key) -> mean loss in nats; no key = no dropout, and running statistics rest
    loss: Callable[[Any, Any, Int[Array, " B"], Float[Array, " B"], Key[Array, ""] | None], Float[Array, ""]]
    outputs: Callable[[Any, Any], Float[Array, "B K"]]  # (network, inputs)
    # (outputs of a clip's examples, its frames) -> its score and, if the method has them, its frames' scores
    clip_score: Callable[[Float[np.ndarray, "E K"], int], tuple[float, Float[np.ndarray, " T"] | None]]
    trained: nnx.filterlib.Filter = nnx.Param  # what of the network is
    trained_as: str = ""  # method whose weights it takes, if not its own
    deviation: str = ""  # what makes it another system than the published one; said wherever its numbers appear

    learns = True

    def load(self, path: Path, precision: str = "float32") -> nnx.Module:
        """The network of a file of weights.

        Raises:
          UserError: they are damaged, or of another kind of network.
        """

        def make(path: Path, shapes: object, notes: Mapping[str, str], precision: str) -> nnx.Module:
            try:
                return self.rebuild(notes, precision)
            except (KeyError, ValueError, TypeError, ArithmeticError) as error:  # notes may hold anything
                reason = one_line(str(error)[:200])
                raise UserError(f"{path}: does not say what {self.name} needs to know of it ({reason})") from error

        return load_weights(path, precision, make)


@dataclasses.dataclass(frozen=True)
class ClipMethod:
    """A detector that scores clips alone."""

    name: str
    score: Callable[[FeatureSource, int], float]  # of a clip of a source
    needs: tuple[str, ...] = ()  # optional contents of the shards that it reads

    learns = False
