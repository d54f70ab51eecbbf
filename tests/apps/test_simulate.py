"""Simulated clips: reproducible, in step if real, and different only in their synchrony and their silence."""

import csv

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from apps import simulate
from apps.simulate import (
    FAKE_KINDS,
    HALF_WIDTH,
    LOUDNESS,
    OPEN,
    PATH_MEMORY,
    PITCH,
    QUIET,
    SHUT,
    STEEPNESS,
    WANDER,
    Corpus,
    draw_crops,
    draw_sound,
    opening,
    simulate_clip,
    simulate_corpus,
)
from avh_shards import read_clip_list
from extract.convert.npz import import_features

DARK = 60  # grey level: lips are lighter, the mouth's inside is darker


def test_simulated_corpus_is_reproducible_and_importable(tmp_path):
    corpus = Corpus(train=3, val=1, test=6, frames=(20, 30), width=16)
    for name in ("a", "b"):
        simulate_corpus(tmp_path / name, corpus)
    for file in sorted((tmp_path / "a").rglob("*.npz")):
        twin = np.load(tmp_path / "b" / file.relative_to(tmp_path / "a"))
        for key, array in np.load(file).items():
            np.testing.assert_array_equal(array, twin[key])
    clips = read_clip_list(tmp_path / "a" / "test.csv")
    summary = import_features(clips, tmp_path / "a", tmp_path / "shards", width=16)
    assert summary.stored == 6
    assert [clip.label for clip in clips] == [0, 1] * 3
    with (tmp_path / "a" / "train.csv").open() as file:
        assert all(row["label"] == "0" for row in csv.DictReader(file))


def match(visual, audio):
    """Returns how much better audio frames fit than those 10 frames later, by linear regression; mean over frames."""
    half = len(visual) // 2
    mixing = np.linalg.lstsq(visual[:half], audio[:half], rcond=1e-2)[0]
    guess = visual[half:] @ mixing
    own = (guess * audio[half:]).sum(axis=1)
    other = (guess * np.roll(audio[half:], 10, axis=0)).sum(axis=1)
    return float((own - other).mean())


def test_simulated_real_clips_are_in_step_and_fakes_are_not():
    corpus = Corpus(frames=(400, 400), width=64, noise=0.5, silence=0.0)
    clips = {kind: simulate_clip("x", kind, corpus) for kind in ("real", *FAKE_KINDS)}
    real = match(clips["real"].visual, clips["real"].audio)
    assert real > 10
    for kind in FAKE_KINDS[1:]:
        assert match(clips[kind].visual, clips[kind].audio) < 0.7 * real
        assert clips[kind].segments == ((0, 16),)
    (start, stop), length = (round(25 * t) for t in clips["local"].segments[0]), len(clips["real"].audio)
    changed = (clips["local"].audio != clips["real"].audio).any(axis=1)
    assert changed[start:stop].all()
    assert not clips["real"].segments
    assert stop - start == round(length / 3)


def test_simulated_clips_start_with_silence_in_features_and_sound():
    """Checks the durations of silence, and that without it the clip is otherwise the same."""
    corpus = Corpus(width=256, frames=(20, 30))
    lengths = {}
    for kind in ("real", "local"):
        clips = [simulate_clip(f"c{n}", kind, corpus) for n in range(200)]
        lengths[kind] = np.array([np.argmax(clip.waveform != 0) for clip in clips]) / 16
        assert all(len(clip.waveform) == 640 * len(clip.audio) for clip in clips)
    assert lengths["local"].mean() == pytest.approx(27, abs=1)
    assert lengths["real"].mean() == pytest.approx(1, abs=0.3)
    first = np.stack([clip.audio[0] for clip in clips])
    unlike = np.stack([clip.audio[1] for clip in clips])
    assert np.corrcoef(first)[np.triu_indices(200, 1)].mean() > 0.5
    assert abs(np.corrcoef(unlike)[np.triu_indices(200, 1)].mean()) < 0.1
    silent, heard = (simulate_clip("c", "local", Corpus(width=16, silence=silence)) for silence in (0.027, 0.0))
    np.testing.assert_array_equal(silent.audio[2:], heard.audio[2:])
    assert (heard.waveform[:160] != 0).sum() > 150


# First feature of the first visual and audio frame, and of the audio frame a quarter into the clip (c0, width 16,
# seed 0).
FEATURES = {
    "real": (-1.0208353, 0.4819251, 0.80144477),
    "local": (-0.47426835, 0.6643586, 0.8586191),
    "shifted": (-1.0208353, 0.1108292, 0.5683201),
    "swapped": (0.46833247, 0.0072436, -0.15188792),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_features_are_those_that_recorded_results_were_made_of(kind):
    clip = simulate_clip("c0", kind, Corpus(width=16))
    found = (clip.visual[0, 0], clip.audio[0, 0], clip.audio[len(clip.audio) // 4, 0])
    np.testing.assert_allclose(found, FEATURES[kind], rtol=1e-5)


def level(waveform):
    """Returns the root mean square of each frame of 40 ms."""
    return np.sqrt(np.square(waveform.reshape(-1, 640).astype(float)).mean(axis=1))


def pitch(waveform):
    """Returns the frequency, in Hz, of the strongest autocorrelation within the range of a voice."""
    power = np.square(np.abs(np.fft.rfft(waveform.astype(float), 2 * len(waveform))))
    periods = np.arange(*(int(16000 / hz) for hz in (1.1 * PITCH[1], 0.9 * PITCH[0])))
    return 16000 / periods[np.argmax(np.fft.irfft(power)[periods])]


def mouth(crops):
    """Counts the pixels inside the mouth in each frame."""
    return (crops < DARK).sum(axis=(1, 2))


def test_the_mouth_opens_with_the_sound_but_not_in_a_fake():
    corpus = Corpus(width=8, frames=(120, 140), stretch=0.5)
    correlations = {}
    for kind in ("real", *FAKE_KINDS):
        clips = [simulate_clip(f"c{n}", kind, corpus) for n in range(20)]
        correlations[kind] = np.zeros(20)
        for n, clip in enumerate(clips):
            start, stop = (round(25 * t) for t in clip.segments[0]) if clip.segments else (0, None)
            within = slice(start + (kind != "real"), stop)  # a fake's first frame may be silence
            correlations[kind][n] = np.corrcoef(mouth(clip.crops)[within], level(clip.waveform)[within])[0, 1]
    assert correlations["real"].min() > 0.95  # with sound half a frame late, it would be 0.9
    for kind in ("local", "swapped"):
        assert abs(correlations[kind].mean()) < 0.2
    assert correlations["shifted"].mean() < PATH_MEMORY**6 + 0.2  # a path's correlation with itself six frames later


def test_before_its_stretch_and_long_after_a_local_fake_sounds_and_looks_like_the_real_clip():
    corpus = Corpus(width=8, frames=(140, 140), silence=0.0)
    real, fake = (simulate_clip("c", kind, corpus) for kind in ("real", "local"))
    start, stop = (round(25 * t) * 640 for t in fake.segments[0])
    np.testing.assert_array_equal(fake.waveform[: start - 320], real.waveform[: start - 320])
    np.testing.assert_allclose(fake.waveform[stop + 50 * 640 :], real.waveform[stop + 50 * 640 :], atol=1)
    assert np.abs(fake.waveform - real.waveform)[start:stop].max() > 100
    for kind in FAKE_KINDS:
        np.testing.assert_array_equal(simulate_clip("c", kind, corpus).crops, real.crops)


def test_what_sound_is_drawn_from_is_distributed_alike_in_all_kinds(monkeypatch):
    """Checks that steps are normal and independent, also at a segment's borders, and that the generator is the same."""
    drawn = {}
    monkeypatch.setattr(simulate, "draw_crops", lambda opened, rng: np.zeros((len(opened), 96, 96), np.uint8))
    for kind in ("real", *FAKE_KINDS):
        found = drawn[kind] = []

        def record(opened, silence, rng, found=found):
            found.append((-np.log(1 / opened - 1) / STEEPNESS, rng.random()))
            return np.zeros(1, np.int16)

        monkeypatch.setattr(simulate, "draw_sound", record)
        for n in range(400):
            simulate_clip(f"c{n}", kind, Corpus(width=2, frames=(40, 40)))
        path = np.stack([path for path, _ in found])
        steps = (path[:, 1:] - PATH_MEMORY * path[:, :-1]) / np.sqrt(1 - PATH_MEMORY**2)
        assert kstest(path[:, 0], "norm").pvalue > 0.01
        for t in (9, 22):  # from the frame before a local stretch into it, and out of it
            assert kstest(steps[:, t], "norm").pvalue > 0.01
        lagged = [np.corrcoef(steps[:, :-lag].ravel(), steps[:, lag:].ravel())[0, 1] for lag in range(1, 14)]
        assert np.abs(lagged).max() < 0.04
    assert len({tuple(number for _, number in found) for found in drawn.values()}) == 1


def test_trimmed_sounds_do_not_reveal_the_class():
    corpus = Corpus(width=2, frames=(40, 40), kinds=("local",), fakes=True)
    traits = {"level": [], "spread": [], "jump": [], "pitch": [], "start": []}
    for kind in ("real", "local"):
        for n in range(200):
            sound = simulate_clip(f"{kind}{n}", kind, corpus).waveform[1280:]
            loud = level(sound)
            traits["level"].append(loud.mean())
            traits["spread"].append(loud.std())
            traits["jump"].append(np.abs(np.diff(loud)).max())
            traits["pitch"].append(pitch(sound))
            traits["start"].append(np.abs(sound[:480]).max())
    for name, values in traits.items():
        assert abs(roc_auc_score(np.repeat([0, 1], 200), values) - 0.5) < 0.07, name


def test_leading_silence_is_of_exact_zeros_and_changes_nothing_else():
    for n in range(20):
        silent, heard = (
            simulate_clip(f"c{n}", "local", Corpus(width=2, frames=(20, 30), silence=silence))
            for silence in (0.027, 0.0)
        )
        length = int(np.argmax(silent.waveform != 0))
        assert 160 < length < 800
        np.testing.assert_array_equal(silent.waveform[length:], heard.waveform[length:])
        assert np.abs(heard.waveform[:16]).max() > 16  # louder than silence from the start
        np.testing.assert_array_equal(silent.crops, heard.crops)


def test_sound_is_as_loud_as_the_mouth_is_open_and_of_the_pitch_of_a_voice():
    rng = np.random.default_rng(0)
    pitches = []
    for opened in (0.0, 0.5, 1.0):
        for _ in range(5):
            sound = draw_sound(np.full(50, opened), 0.0, rng)
            wanted = LOUDNESS * (QUIET + (1 - QUIET) * opened)
            assert np.sqrt(np.square(sound / 2**15).mean()) == pytest.approx(wanted, rel=0.05)
            pitches.append(pitch(sound))
    assert PITCH[0] * (1 - WANDER) <= min(pitches) < 130 < 180 < max(pitches) <= PITCH[1] * (1 + WANDER)


def test_the_mouth_is_an_ellipse_as_high_as_it_is_open():
    rng = np.random.default_rng(0)
    opened = np.linspace(0.3, 1, 8)
    widths = []
    for _ in range(10):
        crops = draw_crops(opened, rng)
        assert crops.dtype == np.uint8
        widths.append(mouth(crops) / (np.pi * (SHUT + (OPEN - SHUT) * opened)))
        columns = np.flatnonzero((crops[-1] < DARK).any(axis=0))
        assert columns.mean() == pytest.approx(47.5, abs=1)
    spread = np.ptp(widths, axis=1) / np.mean(widths, axis=1)
    assert spread.max() < 0.1  # `widths` holds half the mouth's width, which is constant within a clip
    assert HALF_WIDTH[0] - 1.5 < np.min(widths) < 20 < 22 < np.max(widths) < HALF_WIDTH[1] + 1.5


def test_opening_follows_one_coordinate_and_stays_within_its_bounds():
    path = np.zeros((5, 3))
    path[:, 0] = [-30, -1, 0, 1, 30]
    opened = opening(path)
    np.testing.assert_allclose(opened + opened[::-1], 1)
    assert (np.diff(opened) > 0).all()
    path[:, 1:] = 7
    np.testing.assert_array_equal(opening(path), opened)
