"""Clips laid end to end as one stream of frames, read in pieces of any size."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from avh_shards import UNKNOWN, offsets
from jax_avh.data.source import FeatureSource
from jax_avh.models.windows import PADDING


@dataclasses.dataclass(frozen=True)
class FrameStream:
    """The frames of a source's clips, in an order of the clips."""

    source: FeatureSource
    order: Int[np.ndarray, " N"]  # clip that stands at each place of the stream
    border: Int[np.ndarray, " borders"]  # of the places: place n is frames border[n]:border[n+1] of the stream

    @property
    def frames(self) -> int:
        """Length of the stream."""
        return int(self.border[-1])

    def features(self, modality: str, start: int, stop: int) -> Float[np.ndarray, "T D"]:
        """Features of the frames start:stop; zeros where that reaches beyond the stream."""
        frames = np.zeros((stop - start, self.source.width), self.source.dtype)
        for place, first, last in self._pieces(start, stop):
            begin, clip = int(self.border[place]), int(self.order[place])
            rows = self.source.features(modality, clip, first - begin, last - begin)
            frames[first - start : last - start] = rows
        return frames

    def places(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """FilePath of the clip that each of the frames start:stop belongs to; PADDING beyond the stream."""
        places = np.full(stop - start, PADDING, np.int32)
        for place, first, last in self._pieces(start, stop):
            places[first - start : last - start] = place
        return places

    def labels(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """Label of the clip that each of the frames start:stop belongs to; UNKNOWN beyond the stream."""
        places = self.places(start, stop)
        return np.where(places == PADDING, UNKNOWN, self.source.labels[self.order[places]]).astype(np.int32)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(place, first, last) of the clips that meet start:stop."""
        place = max(int(np.searchsorted(self.border, start, side="right")) - 1, 0)
        while place < len(self.order) and self.border[place] < stop:
            yield place, max(start, int(self.border[place])), min(stop, int(self.border[place + 1]))
            place += 1


def frame_stream(source: FeatureSource, shuffle_seed: tuple[int, int] | None = None) -> FrameStream:
    """The stream of a source's clips.

    Args:
      source: the clips.
      shuffle_seed: (seed, epoch): the order of the clips is a function of both; None = the source's own order.
    """
    clips = len(source.members)
    order = np.arange(clips) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(clips)
    return FrameStream(source, order, offsets(source.lengths[order]))
