"""One pass over all frames of a source, or all examples, on all devices.

Letters: T frames, E examples, K outputs of each.
"""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
import tqdm
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from jax_avh.data import Batching, FeatureSource, FrameBatches, frame_stream, prefetched
from jax_avh.data.examples import ExampleBatches, Examples, shuffled
from jax_avh.models import FrameBatch
from jax_avh.parallel import make_mesh, on_own_part, put_copies

BATCH_FRAMES = {"cpu": 2048}  # backend -> frames of a step: what stays in its caches
LARGE_BATCH_FRAMES = 16384  # of all other backends
Clips = tuple[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]]


def frame_outputs(
    source: FeatureSource,
    outputs: Callable[[object, FrameBatch], Float[Array, "T K"]],
    fixed: object = (),
    tau: int = 0,
    batch_frames: int | None = None,
) -> Iterator[Clips]:
    """Outputs of all frames, some whole clips at a time, with the clips' borders.

    Args:
      source: the clips.
      outputs: (fixed, frames) -> what is wanted of them.
      fixed: arrays that are the same for every batch: a network's parameters.
      tau: audio frames on each side that a frame needs.
      batch_frames: of one step; None = what suits the backend.
    """
    batch_frames = batch_frames or BATCH_FRAMES.get(jax.default_backend(), LARGE_BATCH_FRAMES)
    stream, mesh = frame_stream(source), make_mesh()
    batches = FrameBatches(stream, Batching(batch_frames).plan(stream), tau, mesh.size)
    compiled, fixed = jax.jit(on_own_part(mesh, outputs)), put_copies(mesh, fixed)
    bar = tqdm.tqdm(prefetched(batches), desc="score", total=len(batches), leave=False)
    # Chunks end to end: each device takes its own as it is; out of an axis of chunks it would have to be copied.
    found = (np.asarray(compiled(fixed, jax.tree.map(_end_to_end, batch)))[batch.weight.ravel() > 0] for batch in bar)
    yield from _whole_clips(found, stream.border)


def example_scorer(
    outputs: Callable[[nnx.Module, object], Float[Array, "E K"]],
    prepare: Callable[[dict[str, Array]], object],
    network: nnx.Module,
    batch_size: int,
) -> Callable[[Examples], Float[np.ndarray, "E K"]]:
    """A function: outputs of all examples, each on its own; compiled once for any number of them.

    Args:
      outputs: (network, prepared inputs) -> what is wanted of them.
      prepare: inputs as they are stored -> the network's.
      network: with its parameters.
      batch_size: examples of one step on each device.
    """
    mesh = make_mesh()
    compiled = batch_outputs(outputs, prepare, network, mesh)

    def score(examples: Examples) -> Float[np.ndarray, "E K"]:
        batches = ExampleBatches(examples, shuffled(examples), batch_size * mesh.size, chunks=mesh.size)
        bar = tqdm.tqdm(prefetched(batches), desc="score", total=len(batches), leave=False)
        found = (
            np.asarray(compiled(jax.tree.map(_end_to_end, batch.inputs)))[batch.weight.ravel() > 0] for batch in bar
        )
        return np.concatenate(list(found))

    return score


def batch_outputs(
    outputs: Callable[[nnx.Module, object], Float[Array, "E K"]],
    prepare: Callable[[dict[str, Array]], object],
    network: nnx.Module,
    mesh: Mesh,
) -> Callable[[dict[str, Array]], Float[Array, "E K"]]:
    """A compiled function: outputs of a batch's inputs, each device taking its own part; see example_scorer."""
    graph, params = nnx.split(network)

    def own_outputs(params: nnx.State, inputs: dict[str, Array]) -> Float[Array, "E K"]:
        return outputs(nnx.merge(graph, params), prepare(inputs))

    return functools.partial(jax.jit(on_own_part(mesh, own_outputs)), put_copies(mesh, params))


def _end_to_end(chunks: np.ndarray) -> np.ndarray:
    return chunks.reshape(-1, *chunks.shape[2:])


def _whole_clips(outputs: Iterable[Float[np.ndarray, "T K"]], border: Int64[np.ndarray, "borders"]) -> Iterator[Clips]:
    """Outputs of the clips that are complete, and their borders; holds back what the next batch goes on with."""
    waiting, clip, start = [], 0, 0
    for rows in outputs:
        waiting.append(rows)
        stop = start + sum(map(len, waiting))
        done = int(np.searchsorted(border, stop, side="right")) - 1
        if done > clip:
            whole = np.concatenate(waiting)
            cut = int(border[done]) - start
            yield whole[:cut], border[clip : done + 1] - border[clip]
            waiting, clip, start = [whole[cut:]], done, int(border[done])
