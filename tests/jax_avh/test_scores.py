"""Poolings: each clip is pooled independently, whatever its length and the size of its scores."""

import hypothesis
import numpy as np
import pytest
import scipy.special
from hypothesis import strategies as st

from avh_shards.clip import offsets
from jax_avh.scores import POOLINGS, pool_all

DEFINITIONS = {
    "logsumexp": scipy.special.logsumexp,
    "mean": np.mean,
    "max": np.max,
    "logmeanexp": lambda x: scipy.special.logsumexp(x) - np.log(len(x)),
    "topk": lambda x: np.sort(x)[-max(1, len(x) // 10) :].mean(),
    "percentile": lambda x: np.percentile(x, 97),
    "softmax": lambda x: scipy.special.softmax(x) @ x,
}

lengths_st = st.lists(st.integers(1, 40) | st.sampled_from([1, 100, 101, 235]), min_size=1, max_size=8)
scale_st = st.sampled_from([0.5, 1.0, 30.0, 1e4])


def draw_frames(lengths, seed, scale):
    """Returns scores with many ties, as float32."""
    frame = np.random.default_rng(seed).standard_normal(sum(lengths)).round(1)
    return (scale * frame).astype(np.float32)


@hypothesis.given(lengths_st, st.integers(0, 99), scale_st)
def test_packed_pooling_equals_each_clip_alone(lengths, seed, scale):
    frame, offset = draw_frames(lengths, seed, scale), offsets(lengths)
    before = frame.copy()
    assert POOLINGS.keys() == DEFINITIONS.keys()
    for name, pool in POOLINGS.items():
        packed = pool(frame, offset)
        assert packed.shape == (len(lengths),)
        for n, value in enumerate(packed):
            single = frame[offset[n] : offset[n + 1]]
            np.testing.assert_allclose(value, DEFINITIONS[name](single.astype(np.float64)), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(value, pool(single), rtol=1e-12, atol=1e-12 * scale)
            assert np.ndim(pool(single)) == 0
    np.testing.assert_array_equal(frame, before)


@hypothesis.given(lengths_st, st.integers(0, 99), scale_st)
def test_all_at_once_equal_one_by_one(lengths, seed, scale):
    frame, offset = draw_frames(lengths, seed, scale), offsets(lengths)
    for clips in (offset, None):
        together = pool_all(frame, clips)
        assert list(together) == list(POOLINGS)
        for name, pool in POOLINGS.items():
            np.testing.assert_array_equal(together[name], pool(frame, clips))


@pytest.mark.parametrize("most", [1, 7, 50, 1000])
def test_poolings_do_not_depend_on_the_pieces(monkeypatch, most):
    lengths = [3, 50, 1, 1, 20, 7, 100]
    frame, border = draw_frames(lengths, 0, 3.0), offsets(lengths)
    whole = pool_all(frame, border)
    monkeypatch.setattr("jax_avh.scores.POOLED_FRAMES", most)
    for name, pooled in pool_all(frame, border).items():
        np.testing.assert_array_equal(pooled, whole[name])


@hypothesis.given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60))
def test_poolings_stand_in_their_order(frame):
    found = pool_all(np.array(frame))
    rising = [found[name] for name in ("mean", "softmax", "max", "logsumexp")]
    assert (np.diff(rising) >= -1e-9).all()
    assert found["mean"] - 1e-9 <= found["topk"] <= found["max"] + 1e-9
    assert found["mean"] - 1e-9 <= found["logmeanexp"] <= found["max"] + 1e-9


@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
def test_equal_frames_are_the_score(value):
    for frames in (1, 7, 250):
        found = pool_all(np.full(frames, value, np.float32))
        assert found.pop("logsumexp") == pytest.approx(value + np.log(frames))
        assert list(found.values()) == pytest.approx([value] * len(found))


def test_no_clips_give_no_scores():
    for pooled in pool_all(np.zeros(0, np.float32), offsets([])).values():
        assert pooled.shape == (0,)


def test_a_clip_without_frames_is_refused():
    with pytest.raises(AssertionError, match="without frames"):
        POOLINGS["mean"](np.ones(3), np.array([0, 3, 3]))
