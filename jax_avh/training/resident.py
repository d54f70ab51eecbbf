"""Features on the devices, each holding a part: many steps run in one compiled loop, which gathers its own batches.

A batch is gathered by index: every device looks up the rows that it holds, and what travels between devices is of the
batch's size. (A slice of the sharded features would bring all of them to every device first.)
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from avh_shards import offsets
from jax_avh.data import Batching, FeatureSource, FrameStream, frame_stream
from jax_avh.data.batches import Plan
from jax_avh.data.source import MODALITIES
from jax_avh.models import FrameBatch
from jax_avh.models.windows import PADDING
from jax_avh.parallel import DATA_AXIS, by_device, on_own_part, put_copies

SEGMENT_STEPS = 100  # steps of one compiled loop: seconds at most between two looks at the losses


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["visual", "audio", "row", "place", "label", "border"],
    meta_fields=["steps", "layout", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class ResidentSegment:
    """Consecutive steps of a pass."""

    visual: Float[Array, "F D"]  # sharded over the devices, in the source's order
    audio: Float[Array, "F D"]
    row: Int[Array, " S"]  # of the features, for each frame of the stream and the padding around; -1 = none
    place: Int[Array, " S"]  # of its clip in the stream
    label: Int[Array, " S"]
    border: Int[Array, " borders"]  # of its batches in the stream
    steps: int
    layout: tuple[int, int]  # frames of a chunk, of the halo
    mesh: Mesh

    def batch(self, index: Int[Array, ""]) -> FrameBatch:
        """The batch of a step, a chunk for each device."""
        size, tau = self.layout

        def own_chunk(stream: tuple[Array, ...], part: tuple[Array, Array]) -> FrameBatch:
            row, place, label, start, end = stream
            rows, own = self._chunks(row, start), jax.lax.axis_index(DATA_AXIS)
            # One device has each row, all others zeros, so their sum is the row, bit for bit.
            found = jnp.concatenate([_own_rows(rows[:, tau : tau + size], part[0]), _own_rows(rows, part[1])], axis=1)
            features = jax.lax.psum_scatter(found, DATA_AXIS, tiled=True)
            weight = (start + own * size + jnp.arange(size) < end).astype(jnp.float32)
            clip, label = (self._chunks(values, start)[own] for values in (place, label))
            return FrameBatch(
                features[:, :size], features[:, size:], clip[None], weight[None], label[None, tau : tau + size]
            )

        stream = self.row, self.place, self.label, self.border[index], self.border[index + 1]
        return on_own_part(self.mesh, own_chunk)(stream, (self.visual, self.audio))

    def _chunks(self, stream: Int[Array, " S"], start: Int[Array, ""]) -> Int[Array, "C L"]:
        """A batch's part of the stream in chunks, each with its halo."""
        size, tau = self.layout
        part = jax.lax.dynamic_slice_in_dim(stream, start, self.mesh.size * size + 2 * tau)
        starts = range(0, self.mesh.size * size, size)
        return jnp.stack([part[begin : begin + size + 2 * tau] for begin in starts])


def _own_rows(row: Int[Array, "C T"], part: Float[Array, "F D"]) -> Float[Array, "C T D"]:
    """Rows of the sharded features that this device holds; zeros for all others."""
    local = row - jax.lax.axis_index(DATA_AXIS) * len(part)
    here = (local >= 0) & (local < len(part))
    return jnp.where(here[..., None], jnp.take(part, local, axis=0, mode="clip"), jnp.zeros((), part.dtype))


class Resident:
    """Passes over a source, many steps at a time."""

    def __init__(self, source: FeatureSource, batching: Batching, tau: int, mesh: Mesh, segment_steps: int):
        self.source, self.batching, self.mesh, self.tau = source, batching, mesh, tau
        assert source.lengths.sum() < 2**31  # frames are numbered by int32
        self.segment_steps = min(segment_steps, SEGMENT_STEPS)
        self.visual, self.audio = (_on_devices(frame_stream(source), name, mesh) for name in MODALITIES)

    def one_pass(self, shuffle_seed: tuple[int, int] | None) -> "ResidentPass":
        """A pass, in the order of (seed, epoch); None = the source's own."""
        stream = frame_stream(self.source, shuffle_seed)
        return ResidentPass(self, stream, self.batching.plan(stream))


class ResidentPass(NamedTuple):
    """A pass over a source's features."""

    feed: Resident
    stream: FrameStream
    plan: Plan

    def segments(self, first: int = 0) -> Iterator[tuple[int, ResidentSegment]]:
        """(steps done after it, segment) from step `first` on; ends at the same steps, wherever it starts."""
        feed, mesh, steps = self.feed, self.feed.mesh, self.feed.segment_steps
        layout = (-(-self.plan.room // mesh.size), feed.tau)
        arrays = feed.visual, feed.audio, *put_copies(mesh, self._index(layout[0]))
        while first < len(self.plan.items):
            done = min(first - first % steps + steps, len(self.plan.items))
            if feed.batching.whole_clips and done - first < steps:
                done = first + 1  # the number of steps changes with the order: no new program for each
            border = put_copies(mesh, self.plan.border[first : done + 1].astype(np.int32))
            yield done, ResidentSegment(*arrays, border, done - first, layout, mesh)
            first = done

    def _index(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, place and label of every frame of a stream, and of the padding that a batch may reach on both sides.

        As long for every order of the clips: another length would be another program.
        """
        stream, lengths, tau = self.stream, self.feed.source.lengths, self.feed.tau
        begin = offsets(lengths)[stream.order]  # row of each clip's first frame
        row = np.arange(stream.frames) + np.repeat(begin - stream.border[:-1], lengths[stream.order])
        reach = self.feed.mesh.size * size + tau
        index = row, stream.places(0, stream.frames), stream.labels(0, stream.frames)
        return tuple(np.pad(x, (tau, reach), constant_values=PADDING).astype(np.int32) for x in index)


def _on_devices(stream: FrameStream, modality: str, mesh: Mesh) -> Float[Array, "F D"]:
    """All features of a stream, sharded by rows; each process reads the rows of its own devices."""
    rows = -(-stream.frames // mesh.size)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start = index[0].start or 0
        return stream.features(modality, start, start + rows)

    shape = (rows * mesh.size, stream.source.width)
    return jax.make_array_from_callback(shape, by_device(mesh), part)
