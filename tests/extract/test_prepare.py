"""Landmarks, mouth crops, filterbank frames and trimming: parity with official outputs, and properties."""

import itertools
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from avh_shards import ClipMeta, leading_silence
from avh_shards.errors import ClipError
from avh_shards.format import Variant
from avh_shards.silence import first_sound, frames_of_silence
from extract import prepare as clip_module
from extract.avhubert.encoder import normalise_crops
from extract.face import crop_mouths, detect_landmarks
from extract.face.landmarks import CountingFinder, fill_gaps
from extract.face.mouth import similarity
from extract.prepare import PrepareSettings, filterbank_frames, prepare_clip
from tests.conftest import TESTDATA
from tests.media import ramp, read_frames, tone, write_media


@pytest.mark.parametrize("count", [40, pytest.param(None, marks=pytest.mark.slow)])
def test_real_clip_equals_the_official_landmarks_and_crops(shared, real_clips, count):
    """Compares the first frames, or all; crops but for the last of some frames, which depend on those after them."""
    official = np.load(shared("preprocess/jwpIntro.npz"))
    frames = read_frames(real_clips["jwpIntro"], fps_policy="native")[:count]
    landmarks = detect_landmarks(frames)
    assert np.median(np.abs(landmarks - official["landmarks"][:count])) == 0
    crops = crop_mouths(frames, landmarks).crops[: count and count - 12]
    difference = np.abs(crops.astype(int) - official["crops_gray"][: len(crops)])
    assert (difference <= 2).mean() >= 0.99


def test_of_two_faces_the_most_confident_is_followed(real_clips):
    frames = read_frames(real_clips["obama_speech"])[:12]
    centre = detect_landmarks(frames).mean(axis=1)
    assert np.ptp(centre, axis=0).max() < 20  # one face throughout ...
    assert (np.abs(centre - (201, 57)) < 25).all()  # ... at 180..223, 36..79


@hypothesis.given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(0, 99))
def test_gaps_are_interpolated_and_ends_held(known, seed):
    points = np.random.default_rng(seed).uniform(0, 100, (len(known), 68, 2))
    gappy = np.where(np.array(known)[:, None, None], points, np.nan)
    filled, places = fill_gaps(gappy), np.flatnonzero(known)
    np.testing.assert_array_equal(filled[known], points[known])
    np.testing.assert_array_equal(filled[: places[0]], np.broadcast_to(points[places[0]], (places[0], 68, 2)))
    for before, after in itertools.pairwise(places):
        for t in range(before, after):
            part = (t - before) / (after - before)
            np.testing.assert_allclose(filled[t], (1 - part) * points[before] + part * points[after])


def test_no_face_anywhere_is_a_failure():
    with pytest.raises(ClipError, match="no face found"):
        detect_landmarks(np.zeros((3, 100, 100, 3), np.uint8))


@hypothesis.given(
    st.floats(-3, 3), st.floats(0.1, 10), st.tuples(st.floats(-99, 99), st.floats(-99, 99)), st.integers(0, 99)
)
def test_similarity_recovers_a_similarity(angle, scale, shift, seed):
    source = np.random.default_rng(seed).uniform(-50, 50, (5, 2))
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    true = np.array([[c, -s, shift[0]], [s, c, shift[1]]])
    found = similarity(source, source @ true[:, :2].T + true[:, 2])
    np.testing.assert_allclose(found, true, atol=1e-8)


def test_crops_follow_the_head():
    """A face that moves across the picture always has the same crop."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)
    landmark = rng.uniform(30, 90, (68, 2))
    landmark[[33, 36, 39, 42, 45]] = np.array([(60, 66), (40, 45), (50, 45), (68, 45), (79, 44)])
    frames, landmarks = [], []
    for shift in range(30):
        frame = np.zeros((150, 300, 3), np.uint8)
        frame[10 : 10 + 120, 3 * shift : 3 * shift + 120] = picture
        frames.append(frame)
        landmarks.append(landmark + np.array([3 * shift, 10]))
    # With constant motion and a forward mean, all crops except the last ones lag by a constant shift.
    crops = crop_mouths(np.stack(frames), np.stack(landmarks)).crops
    assert np.abs(crops[1:18].astype(int) - crops[:17]).mean() < 3
    assert crops.std() > 20


@pytest.mark.parametrize("name", ["s4", "st48", "trim"])
def test_network_inputs_equal_the_official_ones(name):
    official = np.load(TESTDATA / f"inputs_{name}.npz")
    settings = PrepareSettings(input="roi")
    prepared = prepare_clip(
        ClipMeta(f"{name}.mp4"), TESTDATA, settings, Variant.TRIMMED if name == "trim" else Variant.UNTRIMMED
    )
    video = normalise_crops(torch.from_numpy(prepared.crops)).numpy()
    assert prepared.meta.leading_silence == official["leading_silence_s"]
    np.testing.assert_allclose(prepared.audio, official["audio_in"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(video[0], official["video_in_first"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(video.mean(axis=(1, 2)), official["video_in_mean_T"], rtol=0, atol=1e-6)


@hypothesis.given(st.integers(0, 4000), st.integers(1, 4000))
def test_leading_silence_is_counted_in_samples(silent, loud):
    wave = np.concatenate([np.full(silent, 0.0005), np.full(loud, 0.3)]).astype(np.float32)
    assert leading_silence(wave) == silent / 16000
    trimmed = frames_of_silence(first_sound(wave))
    assert trimmed == (silent // 640 + 1 if silent else 0)
    assert leading_silence(wave[640 * trimmed :]) == 0  # no silence is left


def test_all_silent_is_as_long_as_it_is():
    assert leading_silence(np.zeros(8000, np.float32)) == 0.5


@hypothesis.given(st.integers(1, 5000))
def test_filterbank_frames_are_normalised_and_of_the_right_number(samples):
    frames = filterbank_frames(np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32))
    rows = 1 + max(0, -(-(samples - 400) // 160))
    assert frames.shape == (-(-rows // 4), 104)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=1), 1, atol=1e-3)


def test_segments_move_with_the_trimming():
    segments = ((0.1, 0.3), (0.5, 0.8), (1.0, 2.0))  # in a clip that loses 16 frames = 0.64 s
    clip = ClipMeta("trim.mp4", segments=segments)
    untrimmed, trimmed = (
        prepare_clip(clip, TESTDATA, PrepareSettings(input="roi"), variant).meta for variant in Variant
    )
    assert untrimmed.segments == segments
    assert trimmed.trimmed_frames == 16
    np.testing.assert_allclose(trimmed.segments, [(0, 0.16), (0.36, 1.36)])


@pytest.fixture
def faces(monkeypatch):
    """Replaces the landmark detector, because these files show no faces."""

    def find() -> CountingFinder:
        counts = []

        def look(frame):
            counts.append(1)
            return np.full((68, 2), 20.0)

        return CountingFinder(look, counts)

    monkeypatch.setitem(clip_module.FINDERS, "dlib-tracked", find)


@pytest.mark.parametrize(
    ("frames", "sound", "trimmed", "reason"),
    [
        (1, tone(1), False, "shorter than 2 frames"),
        (50, tone(0.03), False, "shorter than 2 frames"),
        (50, tone(2, silence=1.97), True, "shorter than 2 frames after trimming"),
        (50, np.zeros((1, 32000), np.float32), False, "silent audio"),
        (50, None, False, "no audio stream"),
        (0, tone(1), False, "no video stream"),
    ],
)
def test_clips_that_cannot_be_used(tmp_path, faces, frames, sound, trimmed, reason):
    write_media(tmp_path / "x.mkv", ramp([0] * frames) or None, sound=sound, audio_codec="pcm_s16le")
    with pytest.raises(ClipError, match=reason):
        prepare_clip(ClipMeta("x.mkv"), tmp_path, PrepareSettings(), Variant.TRIMMED if trimmed else Variant.UNTRIMMED)


def test_both_modalities_are_cut_to_the_shorter(tmp_path, faces):
    write_media(tmp_path / "x.mkv", ramp([0] * 50), sound=tone(1), audio_codec="pcm_s16le")
    prepared = prepare_clip(ClipMeta("x.mkv"), tmp_path, PrepareSettings())
    assert len(prepared.crops) == len(prepared.audio) == 25


def test_shares_of_faces_are_those_of_the_whole_clip(tmp_path, monkeypatch):
    """The share includes the silent start without faces, even where it is trimmed."""
    counts = [0] * 10 + [1] * 10 + [2] * 5
    points = iter([None if not count else np.full((68, 2), 20.0) for count in counts])
    finder = CountingFinder(lambda _: next(points), counts)
    monkeypatch.setitem(clip_module.FINDERS, "dlib-tracked", lambda: finder)
    write_media(
        tmp_path / "x.mkv", ramp([k / 25 for k in range(25)]), sound=tone(1, silence=0.3), audio_codec="pcm_s16le"
    )
    prepared = prepare_clip(ClipMeta("x.mkv"), tmp_path, PrepareSettings(min_face_share=0.6), Variant.TRIMMED)
    assert prepared.meta.trimmed_frames == 8
    assert (prepared.meta.face_share, prepared.meta.several_faces) == (0.6, 0.2)


def test_mouth_crops_that_exist_know_no_shares_and_need_none():
    meta = prepare_clip(ClipMeta("s4.mp4"), TESTDATA, PrepareSettings(input="roi", min_face_share=1.0)).meta
    assert math.isnan(meta.face_share)
    assert math.isnan(meta.several_faces)


def test_a_large_picture_without_a_face_names_the_finder_of_small_ones(tmp_path):
    wide = [np.hstack([frame, frame]) for frame in ramp([0] * 3)]  # 2048 pixels
    write_media(tmp_path / "x.mkv", wide, sound=tone(1), audio_codec="pcm_s16le")
    for landmarks, reason in {"dlib-tracked": "^no face found; .*--landmarks=dlib ", "dlib": "^no face found$"}.items():
        with pytest.raises(ClipError, match=reason):
            prepare_clip(ClipMeta("x.mkv"), tmp_path, PrepareSettings(landmarks=landmarks))


def test_crops_of_another_size_are_refused(tmp_path):
    write_media(tmp_path / "x_roi.mp4", ramp([0] * 50))
    write_media(tmp_path / "x.wav", sound=tone(1), audio_codec="pcm_s16le")
    with pytest.raises(ClipError, match="1024x16, not 96x96"):
        prepare_clip(ClipMeta("x.mp4"), tmp_path, PrepareSettings(input="roi"))
