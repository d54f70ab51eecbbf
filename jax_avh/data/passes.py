"""Passes over all frames or examples of a source, on all devices of this process, for scoring.

Letters: T frames, E examples, K outputs per frame or example.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from jax_avh.data.batches import ExampleBatches, Examples, frame_batches, frame_streams, pass_order, prefetched
from jax_avh.data.source import Source
from jax_avh.parallel import compile_on_own_parts, make_mesh, put_copies, put_rows, target_platform

# Frames of a step on each device: the same for any number of devices, so that the scores are the same to the last bit.
PASS_FRAMES = {"cpu": 2048}  # backend -> frames, chosen to stay in its caches
LARGE_BATCH_FRAMES = 16384  # frames on all other backends
LEAST_FRAMES = 256  # a shorter source takes a step of the next power of two, of at least as many frames
Clips = tuple[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]]


def pass_frames() -> int:
    """Returns the frames of a step on each device, for the platform that programs are compiled for."""
    return PASS_FRAMES.get(target_platform(), LARGE_BATCH_FRAMES)


def frame_pass(
    outputs: Callable[..., Float[Array, "T K"]],
    graph: Hashable,
    fixed: object,
    tau: int = 0,
    batch_frames: int | None = None,
) -> Callable[[Source], Iterator[Clips]]:
    """Builds a pass over frames; passes with equal outputs and graphs share their compiled program.

    Args:
      outputs: (graph, fixed, frames) -> outputs of these frames; each device calls it with its own frames.
      graph: graph of a network; a constant of the program.
      fixed: arrays that are the same for every batch, such as a network's parameters.
      tau: audio frames needed on each side of a frame.
      batch_frames: frames of one step on each device; None = the backend's default, or fewer for a short source.

    Returns:
      A function that yields the outputs of a source's frames, several whole clips at a time, with the clips' borders.
    """
    mesh = make_mesh(jax.local_devices())
    compiled = functools.partial(compile_on_own_parts(mesh, outputs, graph), put_copies(mesh, fixed))

    def run(source: Source) -> Iterator[Clips]:
        streams = frame_streams(source)
        enough = max(LEAST_FRAMES, 1 << (streams[0].frames - 1).bit_length())
        frames = batch_frames or min(pass_frames(), enough)
        batches = frame_batches(streams, mesh.size * frames, tau, chunks=mesh.size)
        read = prefetched(batches, source.local)
        bar = tqdm.tqdm(read, desc="score", total=len(batches), leave=False, disable=len(batches) < 2)
        found = (np.asarray(compiled(jax.tree.map(_end_to_end, batch)))[batch.weight.ravel() > 0] for batch in bar)
        yield from _whole_clips(found, streams[0].border)

    return run


def example_pass(
    outputs: Callable[..., Float[Array, "E K"]], graph: Hashable, fixed: object, batch_size: int
) -> Callable[[Examples], Float[np.ndarray, "E K"]]:
    """Builds a pass over examples; passes with equal outputs and graphs share their compiled program.

    Args:
      outputs: (graph, fixed, stored inputs) -> outputs of these examples; each device calls it with its own examples.
      graph: graph of a network; a constant of the program.
      fixed: arrays that are the same for every batch, such as a network's parameters.
      batch_size: examples of one step on each device.

    Returns:
      A function that returns the outputs of all examples.
    """
    mesh = make_mesh(jax.local_devices())
    compiled = functools.partial(compile_on_own_parts(mesh, outputs, graph), put_copies(mesh, fixed))

    def run(examples: Examples) -> Float[np.ndarray, "E K"]:
        batches = ExampleBatches(examples, pass_order(len(examples.clip)), batch_size * mesh.size, chunks=mesh.size)
        bar = tqdm.tqdm(prefetched(batches, examples.source.local), desc="score", total=len(batches), leave=False)
        found = (
            np.asarray(compiled(jax.tree.map(_end_to_end, batch.inputs)))[batch.weight.ravel() > 0] for batch in bar
        )
        return np.concatenate(list(found))

    return run


def put_end_to_end(mesh: Mesh, batch: Any) -> Any:
    """Puts a batch on the devices in the form that the compiled programs take: without an axis of chunks."""

    def put(chunks: np.ndarray) -> Any:
        rows = _end_to_end(chunks)
        return put_rows(mesh, rows.shape, rows.dtype, lambda first, last: rows[first:last])

    return jax.tree.map(put, batch)


def _end_to_end(chunks: np.ndarray) -> np.ndarray:
    """Concatenates chunks, so that each device takes its own without the copy that indexing an axis of chunks makes."""
    return chunks.reshape(-1, *chunks.shape[2:])


def _whole_clips(outputs: Iterable[Float[np.ndarray, "T K"]], border: Int64[np.ndarray, "borders"]) -> Iterator[Clips]:
    """Yields the outputs of complete clips and their borders; holds back a clip that the next batch continues."""
    waiting = []
    clip = start = 0
    for rows in outputs:
        waiting.append(rows)
        stop = start + sum(map(len, waiting))
        done = int(np.searchsorted(border, stop, side="right")) - 1
        if done > clip:
            whole = np.concatenate(waiting)
            cut = int(border[done]) - start
            yield whole[:cut], border[clip : done + 1] - border[clip]
            waiting, clip, start = [whole[cut:]], done, int(border[done])
