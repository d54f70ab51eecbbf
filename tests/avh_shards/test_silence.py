"""Tests of leading silence and initial loudness for int16 and float waveforms, against plain definitions."""

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from avh_shards import leading_silence
from avh_shards.clip import FULL_SCALE
from avh_shards.silence import SILENCE, first_sound, leading_amplitude, leading_amplitudes, leading_silences

sounds = hypothesis.extra.numpy.arrays(
    np.int16,
    st.integers(0, 60),
    elements=st.sampled_from([0, 0, 0, 1, -1, 15, 16, -16, 17, -17, 300, 32767, -32768]),
)


@hypothesis.given(sounds)
def test_floats_give_the_numbers_of_integers(waveform):
    floats = waveform.astype(np.float32) / FULL_SCALE
    assert leading_silence(waveform) == leading_silence(floats)
    assert leading_amplitude(waveform, 0.002) == leading_amplitude(floats, 0.002)


steps = np.float32([0, 0, 4.9e-4, SILENCE, np.nextafter(np.float32(SILENCE), np.float32(1)), -6e-4, 0.3, np.nan])


@hypothesis.given(st.lists(st.sampled_from(steps.tolist()), max_size=20))
def test_silence_of_floats_equals_its_definition(samples):
    waveform = np.array(samples, np.float32)  # float32 comparison: the threshold itself is silent; NaN is silent
    loud = np.abs(waveform) > SILENCE
    assert first_sound(waveform) == (int(loud.argmax()) if loud.any() else len(waveform))
    assert leading_silence(waveform) == first_sound(waveform) / 16000


@hypothesis.given(sounds, st.lists(st.floats(0, 1.5), max_size=5))
def test_silences_at_many_thresholds_equal_their_definition(waveform, thresholds):
    thresholds = np.array([*thresholds, 17 / FULL_SCALE, 1.0])  # a sample on the threshold is silent
    found = leading_silences(waveform, thresholds)
    for threshold, seconds in zip(thresholds, found, strict=True):
        loud = [n for n, x in enumerate(waveform.tolist()) if abs(x) / 32768 > threshold]
        assert seconds == (loud[0] if loud else len(waveform)) / 16000
        assert seconds == leading_silence(waveform, float(threshold))


@hypothesis.given(sounds, st.lists(st.integers(0, 80), max_size=5))
def test_amplitudes_of_many_moments_equal_their_definition(waveform, counts):
    deltas = np.array(counts, np.float64) / 16000
    found = leading_amplitudes(waveform, deltas)
    for count, delta, amplitude in zip(counts, deltas, found, strict=True):
        assert amplitude == max([abs(x) for x in waveform.tolist()[:count]], default=0) / 32768
        assert amplitude == leading_amplitude(waveform, float(delta))


def test_the_lowest_sample_is_the_loudest():
    waveform = np.array([0] * 479 + [-32768, 0], np.int16)
    assert leading_silence(waveform) == pytest.approx(479 / 16000)
    assert leading_amplitude(waveform) == 1.0  # the 480th sample is the last of 30 ms
    assert leading_amplitude(waveform, 479 / 16000) == 0.0
