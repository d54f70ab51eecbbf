"""Frame stream and batches: no frame lost or repeated, and the same for any number of devices."""

import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError
from avh_shards.clip import REAL, offsets
from avh_shards.errors import Failure
from avh_shards.format import ShardTable
from avh_shards.hdf5 import Extent
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from extract.store.shard_set import ShardSet
from jax_avh.data.batches import FrameStream, frame_batches, frame_streams, prefetched, read_parts
from jax_avh.data.source import Source, open_source

WIDTH = 4


def make_source(folder, lengths, per_shard=3, labels=None, name="c", **attributes):
    """Returns a source whose features hold their clip and frame: visual[t] = (clip, t, ...), audio = -visual."""
    clips = [ClipMeta(f"{name}{n}.mp4", label=0 if labels is None else labels[n]) for n in range(len(lengths))]
    fixed = {"encoder": "test", "weights_sha256": "0", "width": WIDTH, "trimmed": False, "settings": "{}"}
    attributes = fixed | attributes
    shards = ShardSet(ShardWriter(folder, "float32", attributes), clips, per_shard)
    for shard in range(shards.count):
        stored = []
        for clip in shards.clips_of(shard):
            n = clips.index(clip)
            frames = np.zeros((lengths[n], WIDTH), np.float32)
            frames[:, 0], frames[:, 1] = n + 1, np.arange(lengths[n]) + 1
            stored.append(StoredClip(clip, ClipFeatures(frames, -frames)))
        shards.writer.write(shard, shards.clips_of(shard), stored)
    return open_source(folder)


def held_source(lengths):
    """Returns a source of the same features in memory, for many examples."""
    border = offsets(lengths)
    clips = tuple(ClipMeta(f"c{n}.mp4", label=0) for n in range(len(lengths)))
    frames = np.zeros((border[-1], WIDTH), np.float32)
    frames[:, 0] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    frames[:, 1] = np.arange(border[-1]) - np.repeat(border[:-1], lengths) + 1
    held = {"visual": frames, "audio": -frames}
    extents = {name: Extent(0, rows.dtype, rows.shape) for name, rows in held.items()}
    table = ShardTable(Path("held"), 0, clips, border, {"width": WIDTH}, extents, {})

    def rows(ranges):
        return (held[name][first:last] for _, name, first, last in ranges)

    return Source(table.path, (table,), tuple((0, n) for n in range(len(clips))), rows)


def frame_stream(source, seed=None) -> FrameStream:
    """Returns all clips of a source as a single stream."""
    (stream,) = frame_streams(source, seed)
    return stream


def features(stream, name, start, stop):
    """Returns the `visual` or `audio` features of the frames start:stop of a stream, with zeros beyond it."""
    frames = np.zeros((stop - start, stream.source.width), stream.source.dtype)
    read_parts([(stream, name, start, frames)])
    return frames


def make_batches(stream, size, tau=0, chunks=1, own=None):
    return frame_batches((stream,), size, tau, chunks=chunks, own=own)


lengths_st = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@hypothesis.given(lengths_st, st.integers(-5, 60), st.integers(0, 30), st.none() | st.integers(0, 99))
def test_any_piece_of_the_stream_equals_the_clips_end_to_end(lengths, start, size, epoch):
    source = held_source(lengths)
    stream = frame_stream(source, None if epoch is None else (0, epoch))
    whole = np.concatenate([source.features("visual", clip) for clip in stream.order.tolist()])
    places = np.repeat(np.arange(len(lengths)), np.array(lengths)[stream.order])
    assert stream.frames == sum(lengths)
    rows = np.arange(start, start + size)
    inside = (rows >= 0) & (rows < stream.frames)
    wanted = np.where(inside[:, None], whole[rows.clip(0, stream.frames - 1)], 0)
    np.testing.assert_array_equal(features(stream, "visual", start, start + size), wanted)
    np.testing.assert_array_equal(features(stream, "audio", start, start + size), -wanted)
    np.testing.assert_array_equal(
        stream.places(start, start + size), np.where(inside, places[rows.clip(0, stream.frames - 1)], -1)
    )


@hypothesis.given(lengths_st, st.integers(1, 20), st.integers(0, 4), st.integers(1, 3))
def test_batches_hold_every_frame_once_in_order(lengths, size, tau, chunks):
    stream = frame_stream(held_source(lengths), (0, 0))
    batches = list(make_batches(stream, size, tau, chunks))
    assert len(batches) == -(-stream.frames // size)
    per_chunk = -(-size // chunks)
    for batch in batches:
        assert batch.visual.shape == (chunks, per_chunk, WIDTH)
        assert batch.audio.shape == (chunks, per_chunk + 2 * tau, WIDTH)
        assert batch.clip.shape == (chunks, per_chunk + 2 * tau)
        # The middle of the audio belongs to the visual frames.
        own = batch.audio[:, tau : tau + per_chunk]
        np.testing.assert_array_equal(own, -batch.visual)
    counted = np.concatenate([batch.visual[batch.weight > 0] for batch in batches])
    np.testing.assert_array_equal(counted, features(stream, "visual", 0, stream.frames))


@hypothesis.given(lengths_st, st.integers(1, 4), st.none() | st.integers(0, 9))
def test_streams_divide_the_clips_evenly_and_alike_in_every_epoch(lengths, count, epoch):
    source = held_source(lengths)
    streams = frame_streams(source, None if epoch is None else (0, epoch), count)
    assert len(streams) == count
    assert sorted(np.concatenate([stream.order for stream in streams])) == list(range(len(lengths)))
    assert all(abs(stream.frames - sum(lengths) / count) <= max(lengths) for stream in streams)
    for stream, other in zip(streams, frame_streams(source, (1, 1), count), strict=True):
        assert stream.frames == other.frames
        assert (
            sorted(stream.order)
            == sorted(other.order)
            == list(range(stream.first_place, stream.first_place + len(stream.order)))
        )
    places = np.concatenate([stream.places(0, stream.frames) for stream in streams])
    assert (
        np.bincount(places, minlength=len(lengths)).tolist()
        == np.concatenate([source.lengths[stream.order] for stream in streams]).tolist()
    )


@hypothesis.given(lengths_st, st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_a_batch_has_a_chunk_of_every_stream(lengths, share, count, tau, whole_clips):
    source = held_source(lengths)
    streams = frame_streams(source, (0, 0), count)
    batches = frame_batches(streams, share * count, tau, whole_clips=whole_clips, chunks=count)
    found = list(batches)
    assert batches.sizes.tolist() == [batch.weight.sum() for batch in found]
    assert batches.sizes.sum() == sum(lengths)
    assert batches.items.sum() == (len(lengths) if whole_clips else sum(lengths))
    for number, stream in enumerate(streams):
        counted = [batch.visual[number][batch.weight[number] > 0] for batch in found]
        np.testing.assert_array_equal(np.concatenate(counted), features(stream, "visual", 0, stream.frames))
    clips = [set(batch.clip[:, tau : tau + batches.chunk_frames][batch.weight > 0]) for batch in found]
    if whole_clips:
        assert sum(map(len, clips)) == len(lengths)  # none is cut
        assert [len(set_) for set_ in clips] == batches.items.tolist()


def test_order_is_a_function_of_seed_and_epoch(tmp_path):
    source = make_source(tmp_path, [2] * 20)
    orders = [frame_stream(source, key).order.tolist() for key in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert frame_stream(source).order.tolist() == list(range(20))


def test_reading_ahead_changes_nothing(tmp_path):
    batches = make_batches(frame_stream(make_source(tmp_path, [7, 9, 5])), 4, 2, 2)
    for first in (0, 3):
        for found, wanted in zip(prefetched(batches, True, first), list(batches)[first:], strict=True):
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_single_batch_is_read_without_grain(tmp_path, monkeypatch):
    """Importing grain takes half a second."""
    monkeypatch.setitem(sys.modules, "grain", None)
    batches = make_batches(frame_stream(make_source(tmp_path, [7, 9, 5])), 4, 2, 2)
    (found,) = prefetched(batches, True, len(batches) - 1)
    np.testing.assert_array_equal(found.visual, batches[len(batches) - 1].visual)
    with pytest.raises(ImportError):
        next(prefetched(batches, True))


def test_only_clips_labelled_real_are_trained_on(tmp_path):
    source = make_source(tmp_path, [2, 3, 4, 5], labels=[0, 1, -1, 0])
    assert [clip.path for clip in source.labelled(REAL).clips] == ["c0.mp4", "c3.mp4"]
    assert source.labelled(REAL).lengths.tolist() == [2, 5]


def test_no_real_clip_is_told(tmp_path):
    with pytest.raises(UserError, match="none of its 2 clips is labelled real"):
        make_source(tmp_path, [2, 3], labels=[1, -1]).labelled(REAL)


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    make_source(tmp_path / "a", [2])
    make_source(tmp_path / "b", [3], name="d")
    (tmp_path / "b" / "features-00000.h5").rename(tmp_path / "a" / "features-00001.h5")
    assert len(open_source(tmp_path / "a").members) == 2
    make_source(tmp_path / "c", [3])
    (tmp_path / "c" / "features-00000.h5").rename(tmp_path / "a" / "features-00001.h5")
    with pytest.raises(UserError, match=r"c0\.mp4' is in .*features-00000\.h5 too"):
        open_source(tmp_path / "a")


def test_a_set_without_clips_is_told(tmp_path):
    make_source(tmp_path, [1])
    writer = ShardWriter(tmp_path / "e", "float32", {"width": WIDTH, "encoder": "x"})
    writer.write(0, [ClipMeta("a")], [Failure("a", "x", "y")])
    with pytest.raises(UserError, match="hold no clip"):
        open_source(tmp_path / "e")
