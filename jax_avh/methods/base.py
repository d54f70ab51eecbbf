"""Base classes of detection methods: what a method reads, how it is trained, and how it scores. Higher = more fake.

Each method is one object of one of three classes, which implement its loaders, losses and scores: `FrameMethod`
(features, frame by frame), `ExampleMethod` (fixed-size pieces of clips), `ClipMethod` (whole clips, no network).

Letters: T frames, N clips, B or E examples, K outputs per frame or example.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int64, Key

from avh_shards import UserError
from avh_shards.paths import FilePath
from avh_shards.text import one_line
from jax_avh.config import Config
from jax_avh.data.batches import (
    ExampleBatch,
    ExampleBatches,
    Examples,
    FrameBatch,
    frame_batches,
    frame_streams,
    pass_order,
)
from jax_avh.data.loaders import GIGABYTE, Loaders, frame_loaders, measure_memory, stream_examples
from jax_avh.data.passes import example_pass, frame_pass, pass_frames, put_end_to_end
from jax_avh.data.source import Source
from jax_avh.models.alignment import HIDDEN_WIDTHS, NETWORKS, Folded, FrameNetwork
from jax_avh.models.weights import load_weights
from jax_avh.parallel import DATA_AXIS, compile_on_own_parts, on_own_part, put_copies

CLIPS_AT_ONCE = 4096  # clips whose examples are held in memory together

SplitNetwork = tuple[nnx.GraphDef, nnx.State, nnx.State]  # graph, trained parameters, other arrays


class BatchLoss(NamedTuple):
    """Loss of one batch."""

    total: Float[Array, ""]  # sum over the items of the batch, in nats
    fixed: nnx.State  # the network's other arrays after the step, with updated running statistics


class ScoringStep(NamedTuple):
    """A compiled function that computes the outputs of one batch, with its arguments."""

    program: Any  # as jax.jit returns it
    arguments: tuple
    items: int  # frames or examples of the batch


class Scores(NamedTuple):
    """Scores of a source's N clips, F frames in all; higher = more fake."""

    frame: Float[np.ndarray, " F"] | None  # None = a method without frame scores
    clip: Float[np.ndarray, " N"] | None  # None = the method's pooling of the frame scores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method(abc.ABC):
    """Base class of all detection methods."""

    name: str  # in flags and score files
    deviation: str = ""  # how it differs from the published system; shown wherever its numbers appear
    reads: tuple[str, ...] = ("features",)  # contents of the shards: features, waveform, crops
    real_only: bool = False  # whether training leaves out clips labelled fake
    trained: nnx.filterlib.Filter = nnx.Param  # parameters of its network that are trained
    trained_as: str = ""  # method whose weights it uses, if not its own
    pooling: str = ""  # pools its frame scores to its clip score; "" = it scores clips itself
    threshold: float | None = None  # clips with this score or more are called fake; None = no threshold

    unit = "frames"  # unit of its training's speed and progress

    trainable = True  # whether it is trained, and so needs weights

    @abc.abstractmethod
    def scorer(self, network: nnx.Module | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """Returns a function that scores the clips of a source; it is compiled once for any number of sources.

        Args:
          network: the network with its parameters; None = the method has none.
          batch_frames: frames of one step on each device; None = the backend's default.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainableMethod(Method):
    """Base class of methods that can have a network and be trained."""

    # (configuration, source of the training clips) -> the untrained network, drawn from the seed
    make_model: Callable[[Config, Source], Any]

    @abc.abstractmethod
    def load_model(self, path: FilePath, precision: str = "float32") -> Any:
        """Loads the network of a weight file.

        Args:
          path: the file.
          precision: precision of the matrix products, a key of layers.ARITHMETIC.

        Raises:
          UserError: the weights are damaged, or belong to another kind of network.
        """

    @abc.abstractmethod
    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """Builds the loaders of the training and the validation source.

        Raises:
          UserError: the settings do not fit the data, the devices or their memory.
        """

    @abc.abstractmethod
    def scoring_step(self, network: Any, source: Source, mesh: Mesh) -> ScoringStep:
        """Returns one step of what `scorer` does, on some devices.

        Args:
          network: the network.
          source: the clips; only their shapes matter.
          mesh: the devices, which this machine need not have.
        """

    @abc.abstractmethod
    def batch_loss(
        self, network: SplitNetwork, batch: Any, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """Returns the objective that a step minimises, and the loss of a batch.

        Args:
          network: the parts of the network.
          batch: a batch with a leading axis of chunks, as many on each device.
          key: key of dropout; None = evaluation: no dropout, and running statistics stay as they are.
          mesh: the devices.
          boundary: how the alignment window treats audio frames outside the clip.
        """


# --- methods on frames -----------------------------------------------------------------------------------------------

COMPILED_STEP = 3  # memory that is kept free for a step, in `step_bytes`; programs for GPUs need up to 2.6 in float32
PairScorer = Callable[[Array, Array], Array]  # scores of visual [T, D] and audio [T, D] frames: [T]


def make_frame_network(config: Config, source: Source) -> FrameNetwork:
    """Builds a randomly initialised network with the head and modality of the configuration."""
    network = NETWORKS[config.method.head]
    return network(
        source.width,
        rngs=nnx.Rngs(config.seed),
        modality=config.method.modality,
        normalised=config.model.normalise,
        precision=config.train.precision,
    )


def step_bytes(frames: int, tau: int, width: int) -> int:
    """Returns the memory of a batch's features, and of the hidden layers that the backward pass needs, in float32."""
    return 4 * frames * (2 * width + (2 * tau + 1) * sum(HIDDEN_WIDTHS[1:]))


def weighted_sum(
    losses: Float[Array, " T"], clip: Int[Array, " T"], label: Int[Array, " T"], weight: Float[Array, " T"]
) -> Float[Array, ""]:
    """Returns the sum of the losses, weighted frame by frame."""
    return (losses * weight.astype(losses.dtype)).sum()


@functools.partial(jax.jit, static_argnames="graph")
def fold(graph: nnx.GraphDef, params: nnx.State) -> Folded:
    """Folds the linear maps of a network into one."""
    return nnx.merge(graph, params).fold()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameMethod(TrainableMethod):
    """A method that scores frames by their features, and pools the frame scores to clip scores."""

    outputs: Callable[[Any, FrameBatch], Float[Array, "T K"]]  # (PairScorer of its network or None, frames)
    tau: int = 0  # audio frames needed on each side to score a frame
    # Outputs of whole clips and the clips' borders -> frame scores.
    frame_scores: Callable[[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]], Float[np.ndarray, " T"]] = (
        lambda outputs, border: outputs[:, 0]
    )
    make_model: Callable[[Config, Source], FrameNetwork] = make_frame_network
    # (network, chunks of frames, boundary of the window) -> a value per frame; None = the method is not trained
    loss: Callable[[FrameNetwork, FrameBatch, str], Float[Array, "C T"]] | None = None
    # (values, clip numbers, labels, weights of the frames of a batch) -> sum of the losses, in nats
    reduce: Callable[[Array, Array, Array, Array], Float[Array, ""]] = weighted_sum
    whole_clips: bool = False  # whether the loss sums over whole clips; otherwise it sums over frames

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] (a method without a loss)
        """See Method."""
        return self.loss is not None

    def load_model(self, path: FilePath, precision: str = "float32") -> FrameNetwork:
        """See TrainableMethod."""
        return load_weights(path, precision)

    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """See TrainableMethod."""
        frames, clips, streams = config.data.batch_frames, config.data.batch_clips, config.data.streams
        tau = 0 if self.whole_clips else config.model.tau
        if frames < mesh.size:
            raise UserError(
                f"--config.data.batch_frames={frames}: fewer than the {mesh.size} devices; give each at least one frame"
            )
        if streams > 1 and streams % mesh.size:
            raise UserError(
                f"--config.data.streams={streams}: not a multiple of the {mesh.size} devices; use a number of devices "
                "that divides it, or choose another for a new run"
            )
        for name, value in (("batch_frames", frames), ("batch_clips", clips)):
            if value % streams:
                raise UserError(
                    f"--config.data.{name}={value}: not a multiple of data.streams={streams}; choose one that is"
                )
        memory, needed = measure_memory(mesh).devices, step_bytes(frames, tau, train.width)
        if 0 < memory < needed:
            raise UserError(
                f"--config.data.batch_frames={frames}: a step takes about {needed / GIGABYTE:.3g} GB, "
                f"more than the {memory / GIGABYTE:.3g} GB of memory; choose a smaller batch"
            )
        reserved = COMPILED_STEP * needed
        return frame_loaders(config, mesh, train, val, tau=tau, whole_clips=self.whole_clips, step_bytes=reserved)

    def batch_loss(
        self, network: SplitNetwork, batch: FrameBatch, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """See TrainableMethod. A step minimises the sum, so the items of a short last batch count like any other."""
        graph, params, fixed = network
        assert self.loss is not None
        loss = self.loss

        def own_losses(params: nnx.State, chunks: FrameBatch) -> Float[Array, "C T"]:
            # Each device works on its own copy, so that gradients are summed over the devices only once, at the end.
            params = jax.tree.map(lambda p: jax.lax.pcast(p, DATA_AXIS, to="varying"), params)
            return loss(nnx.merge(graph, params, fixed), chunks, boundary)

        losses = on_own_part(mesh, own_losses)(params, batch)
        halo = (batch.audio.shape[1] - batch.visual.shape[1]) // 2
        clip = batch.clip[:, halo : halo + batch.visual.shape[1]]
        total = self.reduce(*(array.reshape(-1) for array in (losses, clip, batch.label, batch.weight)))
        return total, BatchLoss(total, fixed)

    def frame_outputs(
        self, graph: nnx.GraphDef | None, fixed: tuple[nnx.State, Folded] | None, frames: FrameBatch
    ) -> Float[Array, "T K"]:
        """Computes the outputs of frames; a method without a network takes None for `graph` and `fixed`.

        Args:
          graph: the network's graph.
          fixed: the network's parameters and its folded linear maps.
          frames: the frames.
        """
        if graph is None or fixed is None:
            return self.outputs(None, frames)
        params, folded = fixed
        merged = nnx.merge(graph, params)
        return self.outputs(lambda visual, audio: merged.score_folded(folded, visual, audio), frames)

    def scoring_step(self, network: FrameNetwork, source: Source, mesh: Mesh) -> ScoringStep:
        """See TrainableMethod."""
        graph, params = nnx.split(network)
        fixed = put_copies(mesh, (params, fold(graph, params)))
        frames = mesh.size * pass_frames()
        batch = frame_batches(frame_streams(source), frames, self.tau, chunks=mesh.size)[0]
        arguments = fixed, put_end_to_end(mesh, batch)
        return ScoringStep(compile_on_own_parts(mesh, self.frame_outputs, graph), arguments, frames)

    def scorer(self, network: FrameNetwork | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method."""
        # The parameters are the same for every batch, so their linear maps are folded only once.
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
    """A method with its own network on fixed-size pieces of clips: cuts, chunks, sequences."""

    model_of: Callable[[Mapping[str, str], str], nnx.Module]  # (notes of weights, precision) -> network
    examples: Callable[[Source, Any], Examples]  # (source, network)
    batch_size: int  # examples per device in a step of scoring
    # stored inputs -> inputs of the network, example by example; it has no trained parameters
    prepare: Callable[[dict[str, Array]], Any]
    # (network, inputs, labels, weights, key) -> mean loss in nats; no key = evaluation: see TrainableMethod
    loss: Callable[[Any, Any, Int[Array, " B"], Float[Array, " B"], Key[Array, ""] | None], Float[Array, ""]]
    outputs: Callable[[Any, Any], Float[Array, "B K"]]  # (network, inputs)
    # (outputs of a clip's examples, number of its frames) -> clip score, frame scores or None
    clip_score: Callable[[Float[np.ndarray, "E K"], int], tuple[float, Float[np.ndarray, " T"] | None]]

    unit = "examples"

    def load_model(self, path: FilePath, precision: str = "float32") -> nnx.Module:
        """See TrainableMethod."""

        def make(path: FilePath, shapes: object, notes: Mapping[str, str], precision: str) -> nnx.Module:
            try:
                return self.model_of(notes, precision)
            except (KeyError, ValueError, TypeError, ArithmeticError) as error:  # notes may hold anything
                reason = one_line(str(error)[:200])
                raise UserError(f"{path}: missing or invalid notes for {self.name} ({reason})") from error

        return load_weights(path, precision, make)

    def make_loaders(self, config: Config, mesh: Mesh, network: nnx.Module, train: Source, val: Source) -> Loaders:
        """See TrainableMethod. Training leaves out an incomplete last batch."""
        size = config.data.batch_examples
        if config.data.streams > 1:
            raise UserError(f"--config.data.streams: {self.name} takes examples, which are shuffled as a whole; use 1")
        if size % mesh.size:
            raise UserError(
                f"--config.data.batch_examples={size}: not a multiple of the {mesh.size} devices; choose one that is"
            )
        if config.data.placement == "device":
            raise UserError(f"--config.data.placement=device: {self.name} reads its examples ahead; use auto")
        train_examples, val_examples = (
            self.examples(source.in_memory() if source.local else source, network) for source in (train, val)
        )
        counts = len(train_examples.clip), len(val_examples.clip)
        if counts[0] < size:
            raise UserError(
                f"{train.path}: has {counts[0]} examples, fewer than one batch; lower "
                f"--config.data.batch_examples={size}"
            )
        loaders = stream_examples(train_examples, mesh, size, full_only=True), stream_examples(val_examples, mesh, size)
        return *loaders, f"examples: {counts[0]} to train on, {counts[1]} to validate on"

    def batch_loss(
        self, network: SplitNetwork, batch: ExampleBatch, key: Key[Array, ""] | None, mesh: Mesh, boundary: str
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """See TrainableMethod. A step minimises the mean; batch statistics are taken over all devices."""

        def prepared(_: tuple, chunks: dict[str, Array]) -> object:
            return self.prepare({name: chunk[0] for name, chunk in chunks.items()})  # each device has one chunk

        inputs = on_own_part(mesh, prepared)((), batch.inputs)
        model = nnx.merge(*network, copy=True)  # a copy, because its statistics change
        label, weight = batch.label.reshape(-1), batch.weight.reshape(-1)
        mean = self.loss(model, inputs, label, weight.astype(model.dtype), key)
        _, _, fixed = nnx.split(model, self.trained, ...)
        return mean, BatchLoss(mean * jnp.sum(weight).astype(mean.dtype), fixed)

    def example_outputs(self, graph: nnx.GraphDef, params: nnx.State, inputs: dict[str, Array]) -> Float[Array, "E K"]:
        """Computes the outputs of stored inputs with the network of a graph and parameters."""
        return self.outputs(nnx.merge(graph, params), self.prepare(inputs))

    def scoring_step(self, network: nnx.Module, source: Source, mesh: Mesh) -> ScoringStep:
        """See TrainableMethod."""
        graph, params = nnx.split(network)
        examples = self.examples(source, network)
        order = pass_order(len(examples.clip))
        batch = ExampleBatches(examples, order, self.batch_size * mesh.size, chunks=mesh.size)[0]
        arguments = put_copies(mesh, params), put_end_to_end(mesh, batch.inputs)
        return ScoringStep(compile_on_own_parts(mesh, self.example_outputs, graph), arguments, self.batch_size)

    def scorer(self, network: nnx.Module | None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method. It scores some thousands of clips at a time, to bound the memory that their examples take."""
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
    """A method that scores whole clips, without a network."""

    score: Callable[[Source, int], float]  # (source, clip) -> score

    trainable = False

    def scorer(self, network: nnx.Module | None = None, batch_frames: int | None = None) -> Callable[[Source], Scores]:
        """See Method."""

        def score(source: Source) -> Scores:
            clips = tqdm.tqdm(range(len(source.clips)), desc="score", unit=" clips", leave=False)
            return Scores(None, np.array([self.score(source, clip) for clip in clips]))

        return score
