"""Features on the devices, each holding a part: many steps run in one compiled loop, which gathers its own batches.

A batch is gathered by index: every device looks up the rows that it holds, and what travels between devices is of the
batch's size. (A slice of the sharded features would bring all of them to every device first.)
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from extract.schema import offsets
from jax_avh.data import FeatureSource, FrameStream, frame_stream
from jax_avh.models import FrameBatch
from jax_avh.models.windows import PADDING
from jax_avh.training.sharding import DATA_AXIS, by_device, on_own_part, put_copies

SEGMENT_STEPS = 100  # steps of one compiled loop: seconds at most between two looks at the losses


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["visual", "audio", "row", "place", "first"],
    meta_fields=["steps", "frames", "layout", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class ResidentSegment:
    """Consecutive steps of a pass."""

    visual: Float[Array, "F D"]  # sharded over the devices, in the source's order
    audio: Float[Array, "F D"]
    row: Int[Array, " S"]  # of the features, for each frame of the stream and the padding around; -1 = none
    place: Int[Array, " S"]  # of its clip in the stream
    first: Int[Array, ""]  # step
    steps: int
    frames: int  # of the stream
    layout: tuple[int, int, int]  # frames of a batch, of a chunk, of the halo
    mesh: Mesh

    def batch(self, index: Int[Array, ""]) -> FrameBatch:
        """The batch of a step, a chunk for each device."""
        batch_frames, size, tau = self.layout

        def own_chunk(stream: tuple[Array, Array, Array], part: tuple[Array, Array]) -> FrameBatch:
            row, place, start = stream
            rows, own = self._chunks(row, start), jax.lax.axis_index(DATA_AXIS)
            # One device has each row, all others zeros, so their sum is the row, bit for bit.
            found = jnp.concatenate([_own_rows(rows[:, tau : tau + size], part[0]), _own_rows(rows, part[1])], axis=1)
            features = jax.lax.psum_scatter(found, DATA_AXIS, tiled=True)
            frame = start + own * size + jnp.arange(size)
            counted = frame < jnp.minimum(start + batch_frames, self.frames)
            clip = self._chunks(place, start)[own]
            return FrameBatch(features[:, :size], features[:, size:], clip[None], counted.astype(jnp.float32)[None])

        stream = self.row, self.place, (self.first + index) * batch_frames
        return on_own_part(self.mesh, own_chunk)(stream, (self.visual, self.audio))

    def _chunks(self, stream: Int[Array, " S"], start: Int[Array, ""]) -> Int[Array, "C L"]:
        """A batch's part of the stream in chunks, each with its halo."""
        _, size, tau = self.layout
        part = jax.lax.dynamic_slice_in_dim(stream, start, self.mesh.size * size + 2 * tau)
        starts = range(0, self.mesh.size * size, size)
        return jnp.stack([part[begin : begin + size + 2 * tau] for begin in starts])


def _own_rows(row: Int[Array, "C T"], part: Float[Array, "F D"]) -> Float[Array, "C T D"]:
    """Rows of the sharded features that this device holds; zeros for all others."""
    local = row - jax.lax.axis_index(DATA_AXIS) * len(part)
    here = (local >= 0) & (local < len(part))
    return jnp.where(here[..., None], jnp.take(part, local, axis=0, mode="clip"), jnp.zeros((), part.dtype))


class Resident:
    """A source's steps, many at a time."""

    def __init__(self, source: FeatureSource, batch_frames: int, tau: int, mesh: Mesh, segment_steps: int):
        self.source, self.mesh, self.batch_frames, self.tau = source, mesh, batch_frames, tau
        self.frames = int(source.lengths.sum())
        assert self.frames < 2**31  # frames are numbered by int32
        self.steps = -(-self.frames // batch_frames)
        self.segment_steps = min(segment_steps, SEGMENT_STEPS)
        self.visual, self.audio = (_on_devices(frame_stream(source), name, mesh) for name in ("visual", "audio"))

    def segments(self, shuffle_seed: tuple[int, int] | None, first: int = 0) -> Iterator[tuple[int, ResidentSegment]]:
        """(steps done after it, segment) from step `first` of a pass on; ends at the same steps, wherever it starts."""
        size = -(-self.batch_frames // self.mesh.size)
        row, place = put_copies(self.mesh, self._index(frame_stream(self.source, shuffle_seed), size))
        layout = (self.batch_frames, size, self.tau)
        while first < self.steps:
            done = min(first - first % self.segment_steps + self.segment_steps, self.steps)
            start = put_copies(self.mesh, np.int32(first))
            features = self.visual, self.audio, row, place
            yield done, ResidentSegment(*features, start, done - first, self.frames, layout, self.mesh)
            first = done

    def _index(self, stream: FrameStream, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Row and place of every frame of a stream, and of the padding that the first and the last batch reach."""
        lengths = self.source.lengths[stream.order]
        begin = offsets(self.source.lengths)[stream.order]  # row of each clip's first frame
        row = np.arange(stream.frames) + np.repeat(begin - stream.border[:-1], lengths)
        place = np.repeat(np.arange(len(lengths)), lengths)
        end = (self.steps - 1) * self.batch_frames + self.mesh.size * size + self.tau
        padding = self.tau, end - self.frames
        return tuple(np.pad(x, padding, constant_values=PADDING).astype(np.int32) for x in (row, place))


def _on_devices(stream: FrameStream, modality: str, mesh: Mesh) -> Float[Array, "F D"]:
    """All features of a stream, sharded by rows; each process reads the rows of its own devices."""
    rows = -(-stream.frames // mesh.size)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start = index[0].start or 0
        return stream.features(modality, start, start + rows)

    shape = (rows * mesh.size, stream.source.width)
    return jax.make_array_from_callback(shape, by_device(mesh), part)
