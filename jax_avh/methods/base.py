"""What a detection method is: what it reads, how it is trained if it is, and its scores. Higher = more fake.

A method is one object of one of three classes, which take its batches through loaders, losses and scores: `FrameMethod`
(features, frame by frame), `ExampleMethod` (fixed-size pieces of clips), `ClipMethod` (whole clips, no network).

Letters: T frames, N clips, B or E examples, K outputs of each.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int64, Key

from avh_shards import UserError
from avh_shards.text import one_line
from jax_avh.config import Config
from jax_avh.data.batches import ExampleBatch, Examples, FrameBatch
from jax_avh.data.loaders import GIGABYTE, Loaders, frame_loaders, measure_memory, stream_examples
from jax_avh.data.passes import example_pass, frame_pass
from jax_avh.data.source import Source
from jax_avh.models.alignment import HIDDEN_WIDTHS, NETWORKS, Folded, FrameNetwork
from jax_avh.models.weights import load_weights
from jax_avh.parallel import DATA_AXIS, on_own_part

CLIPS_AT_ONCE = 4096  # whose examples are held at once

SplitNetwork = tuple[nnx.GraphDef, nnx.State, nnx.State]  # its graph, its trained parameters, its other arrays


class BatchLoss(NamedTuple):
    """Loss of one batch."""

    total: Float[Array, ""]  # sum over its items, in nats
    fixed: nnx.State  # the network's other arrays afterwards: running statistics move


class Scores(NamedTuple):
    """Scores of a source's N clips, F frames in all; higher = more fake."""

    frame: Float[np.ndarray, " F"] | None  # None = a method without frame scores
    clip: Float[np.ndarray, " N"] | None  # None = the method's pooling of the frame scores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method(abc.ABC):
    """A detection method."""

    name: str  # in flags and score files
    deviation: str = ""  # what makes it another system than the published one; shown wherever its numbers appear
    reads: tuple[str, ...] = ("features",)  # contents of the shards: features, waveform, crops
    real_only: bool = False  # clips labelled fake are left out of its training
    trained: nnx.filterlib.Filter = nnx.Param  # what of its network is trained
    trained_as: str = ""  # method whose weights it takes, if not its own
    pooling: str = ""  # of its frame scores to its clip score; "" = it scores clips itself
    threshold: float | None = None  # clip score from which on a clip is called fake, if the method has one

    unit = "frames"  # what its training counts

    trainable = True  # whether it has weights

    @abc.abstractmethod
    def scorer(self, network: nnx.Module | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """Returns a function that scores the clips of a source; compiled once for any number of sources.

        Args:
          network: with its parameters; None = a method without one.
          batch_frames: frames of one step; None = what suits the backend.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainableMethod(Method):
    """A method with a network."""

    # (configuration, source of the training clips) -> the network before training, drawn from the seed
    make_model: Callable[[Config, Source], Any]

    @abc.abstractmethod
    def load_model(self, path: Path, precision: str = "float32") -> Any:
        """Loads the network of a file of weights.

        Raises:
          UserError: they are damaged, or of another kind of network.
        """

    @abc.abstractmethod
    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """Makes the loaders of both sources.

        Raises:
          UserError: settings that do not fit the data, the devices or their memory.
        """

    @abc.abstractmethod
    def batch_loss(
        self, network: SplitNetwork, batch: Any, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """Returns what a step lowers, and the loss of a batch.

        Args:
          network: in its parts.
          batch: a chunk for each device.
          key: of dropout; None = nothing is trained: no dropout, and running statistics rest.
          mesh: the devices.
          boundary: of the alignment window.
        """


# --- methods on frames -----------------------------------------------------------------------------------------------

PairScorer = Callable[[Array, Array], Array]  # scores of visual [T, D] and audio [T, D] frames: [T]


def make_frame_network(config: Config, source: Source) -> FrameNetwork:
    """Draws a network on frames of the configuration's head and modality."""
    network = NETWORKS[config.method.head]
    return network(
        source.width,
        rngs=nnx.Rngs(config.seed),
        modality=config.method.modality,
        normalised=config.model.normalise,
        precision=config.train.precision,
    )


def weighted_sum(
    losses: Float[Array, " T"], clip: Int[Array, " T"], label: Int[Array, " T"], weight: Float[Array, " T"]
) -> Float[Array, ""]:
    """Sums the losses of the frames that count."""
    return (losses * weight.astype(losses.dtype)).sum()


@functools.partial(jax.jit, static_argnames="graph")
def fold(graph: nnx.GraphDef, params: nnx.State) -> Folded:
    """Folds the linear maps of a network."""
    return nnx.merge(graph, params).fold()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameMethod(TrainableMethod):
    """Scores frames by their features; a pooling of them is the clip's score."""

    outputs: Callable[[Any, FrameBatch], Float[Array, "T K"]]  # (its network's PairScorer; None = it has none, frames)
    tau: int = 0  # audio frames on each side that a frame's score needs
    # Outputs of whole clips and the clips' borders -> frame scores.
    frame_scores: Callable[[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]], Float[np.ndarray, " T"]] = (
        lambda outputs, border: outputs[:, 0]
    )
    make_model: Callable[[Config, Source], FrameNetwork] = make_frame_network
    # (network, frames, boundary of the window) -> unreduced: a value of each frame; None = it is not trained
    loss: Callable[[FrameNetwork, FrameBatch, str], Float[Array, " T"]] | None = None
    # (values, clip numbers, labels, weights of the frames of a batch) -> sum of its losses, in nats
    reduce: Callable[[Array, Array, Array, Array], Float[Array, ""]] = weighted_sum
    whole_clips: bool = False  # the loss is a sum over whole clips; otherwise over frames

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] (a method without a loss)
        """See Method."""
        return self.loss is not None

    def load_model(self, path: Path, precision: str = "float32") -> FrameNetwork:
        """See TrainableMethod."""
        return load_weights(path, precision)

    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """See TrainableMethod."""
        frames = config.data.batch_frames
        tau = 0 if self.whole_clips else config.model.tau
        if frames < mesh.size:
            raise UserError(
                f"--config.data.batch_frames={frames}: fewer than the {mesh.size} devices, each of which needs a frame"
            )
        memory = measure_memory(mesh).devices
        # A batch's features, and the hidden layers that training keeps.
        needed = 4 * frames * (2 * train.width + (2 * tau + 1) * sum(HIDDEN_WIDTHS[1:]))
        if needed > memory:
            raise UserError(
                f"--config.data.batch_frames={frames}: a step takes about {needed / GIGABYTE:.3g} GB, "
                f"more than the {memory / GIGABYTE:.3g} GB of memory; lower it"
            )
        return frame_loaders(config, mesh, train, val, tau=tau, whole_clips=self.whole_clips)

    def batch_loss(
        self, network: SplitNetwork, batch: FrameBatch, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """See TrainableMethod. A step lowers the sum of losses: a short last batch weighs as its items do."""
        graph, params, fixed = network
        assert self.loss is not None
        loss = self.loss

        def own_losses(params: nnx.State, chunks: FrameBatch) -> Float[Array, " T"]:
            # Each device works on its own copy, so that gradients are summed over the devices once, at the very end.
            params = jax.tree.map(lambda p: jax.lax.pcast(p, DATA_AXIS, to="varying"), params)
            chunk = jax.tree.map(lambda array: array[0], chunks)  # a device has one
            return loss(nnx.merge(graph, params, fixed), chunk, boundary)

        losses = on_own_part(mesh, own_losses)(params, batch)
        halo = (batch.audio.shape[1] - batch.visual.shape[1]) // 2
        clip = batch.clip[:, halo : halo + batch.visual.shape[1]]
        total = self.reduce(losses, clip.reshape(-1), batch.label.reshape(-1), batch.weight.reshape(-1))
        return total, BatchLoss(total, fixed)

    def frame_outputs(
        self, graph: nnx.GraphDef | None, fixed: tuple[nnx.State, Folded] | None, frames: FrameBatch
    ) -> Float[Array, "T K"]:
        """Returns the outputs by a network's parameters and its folded linear maps; None = the method has none."""
        if graph is None or fixed is None:
            return self.outputs(None, frames)
        params, folded = fixed
        merged = nnx.merge(graph, params)
        return self.outputs(lambda visual, audio: merged.score_folded(folded, visual, audio), frames)

    def scorer(self, network: FrameNetwork | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method."""
        # The same for every batch: the network's parameters, its linear maps folded into one.
        graph, fixed = None, None
        if network is not None:
            graph, params = nnx.split(network)
            fixed = params, fold(graph, params)
        run = frame_pass(self.frame_outputs, graph, fixed, self.tau, batch_frames)

        def score(source: Source) -> Scores:
            return Scores(np.concatenate([self.frame_scores(*clips) for clips in run(source)]), None)

        return score


# --- methods on examples ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExampleMethod(TrainableMethod):
    """Has a network of its own on fixed-size pieces of clips: cuts, chunks, sequences."""

    model_of: Callable[[Mapping[str, str], str], nnx.Module]  # (notes of weights, precision) -> a network of that kind
    examples: Callable[[Source, Any], Examples]  # of a source, for a network
    batch_size: int  # examples of a step when scoring, on each device
    # (inputs as they are stored) -> (inputs of the network), each example on its own; nothing here is trained
    prepare: Callable[[dict[str, Array]], Any]
    # (network, inputs, labels, weights, key) -> mean loss in nats; no key = no dropout, and running statistics rest
    loss: Callable[[Any, Any, Int[Array, " B"], Float[Array, " B"], Key[Array, ""] | None], Float[Array, ""]]
    outputs: Callable[[Any, Any], Float[Array, "B K"]]  # (network, inputs)
    # (outputs of a clip's examples, its frames) -> its score and, if the method has them, its frames' scores
    clip_score: Callable[[Float[np.ndarray, "E K"], int], tuple[float, Float[np.ndarray, " T"] | None]]

    unit = "examples"

    def load_model(self, path: Path, precision: str = "float32") -> nnx.Module:
        """See TrainableMethod."""

        def make(path: Path, shapes: object, notes: Mapping[str, str], precision: str) -> nnx.Module:
            try:
                return self.model_of(notes, precision)
            except (KeyError, ValueError, TypeError, ArithmeticError) as error:  # notes may hold anything
                reason = one_line(str(error)[:200])
                raise UserError(f"{path}: does not say what {self.name} needs to know of it ({reason})") from error

        return load_weights(path, precision, make)

    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """See TrainableMethod. Of the first source, only full batches are trained on."""
        size = config.data.batch_examples
        if size % mesh.size:
            raise UserError(f"--config.data.batch_examples={size}: is no multiple of the {mesh.size} devices")
        if config.data.placement == "device":
            raise UserError(f"--config.data.placement=device: {self.name} reads its examples ahead; use auto")
        train_examples, val_examples = (
            self.examples(source.in_memory() if source.local else source, network) for source in (train, val)
        )
        counts = len(train_examples.clip), len(val_examples.clip)
        if counts[0] < size:
            raise UserError(
                f"{train.path}: gives {counts[0]} examples, fewer than one batch; lower "
                f"--config.data.batch_examples={size}"
            )
        loaders = stream_examples(train_examples, mesh, size, full_only=True), stream_examples(val_examples, mesh, size)
        return *loaders, f"examples: {counts[0]} to train on, {counts[1]} to validate on"

    def batch_loss(
        self, network: SplitNetwork, batch: ExampleBatch, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """See TrainableMethod. A step lowers the mean; statistics are those of the whole batch, over all devices."""

        def prepared(_: tuple, chunks: dict[str, Array]) -> object:
            return self.prepare({name: chunk[0] for name, chunk in chunks.items()})  # a device has one

        inputs = on_own_part(mesh, prepared)((), batch.inputs)
        model = nnx.merge(*network, copy=True)  # its statistics move
        label, weight = batch.label.reshape(-1), batch.weight.reshape(-1)
        mean = self.loss(model, inputs, label, weight.astype(model.dtype), key)
        _, _, fixed = nnx.split(model, self.trained, ...)
        return mean, BatchLoss(mean * jnp.sum(weight).astype(mean.dtype), fixed)

    def example_outputs(self, graph: nnx.GraphDef, params: nnx.State, inputs: dict[str, Array]) -> Float[Array, "E K"]:
        """Returns the outputs by a network's parameters, from inputs as they are stored."""
        return self.outputs(nnx.merge(graph, params), self.prepare(inputs))

    def scorer(self, network: nnx.Module | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method. It takes some thousands of clips at a time, so that any number of them will do."""
        graph, params = nnx.split(network)
        run = example_pass(self.example_outputs, graph, params, self.batch_size)

        def score(source: Source) -> Scores:
            scored = []
            for first in range(0, len(source.members), CLIPS_AT_ONCE):
                part = dataclasses.replace(source, members=source.members[first : first + CLIPS_AT_ONCE])
                examples = self.examples(part, network)
                outputs = run(examples)
                border = np.searchsorted(examples.clip, np.arange(len(part.members) + 1))
                scored += [
                    self.clip_score(outputs[start:stop], int(frames))
                    for start, stop, frames in zip(border[:-1], border[1:], part.lengths, strict=True)
                ]
            clip, frame = zip(*scored, strict=True)
            return Scores(None if frame[0] is None else np.concatenate(frame).astype(np.float32), np.array(clip))

        return score


# --- methods on clips ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipMethod(Method):
    """Scores whole clips, without a network."""

    score: Callable[[Source, int], float]  # of a clip of a source

    trainable = False

    def scorer(self, network: nnx.Module | None = None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method."""

        def score(source: Source) -> Scores:
            clips = tqdm.tqdm(range(len(source.clips)), desc="score", unit=" clips", leave=False)
            return Scores(None, np.array([self.score(source, clip) for clip in clips]))

        return score
