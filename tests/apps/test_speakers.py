"""Verdicts on the faces of a film, one by one, with rule-made substitutes for the encoder and the trained network.

The substitute for AV-HuBERT has the opening of the lips as visual and the loudness as audio features, and the one for a
trained network compares the two. So they find the speaker in real recordings, which random weights cannot.
"""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from apps.detect import check_comparable, score_video
from apps.speakers import NO_SPEAKER, NOT_LARGEST
from avh_shards import UserError
from avh_shards.clip import SAMPLES_PER_FRAME
from avh_shards.errors import Failure
from extract.avhubert.encoder import Encoder
from extract.faces import NO_FACE, NO_SPEECH
from extract.store.shard import ClipFeatures
from jax_avh.inference import Detector, load_detector
from jax_avh.methods import METHODS
from jax_avh.reference import Reference
from jax_avh.report.video import BOX_STEP, Verdict
from jax_avh.scores import pool_all
from tests.media import tone, write_media


def in_rhythm(signal: np.ndarray) -> np.ndarray:
    """Returns a signal [T, 1] without its slow changes, with variance 1."""
    signal = signal - cv2.blur(signal[None], (25, 1), borderType=cv2.BORDER_REPLICATE)[0]
    return (signal / signal.std()).astype(np.float32)[:, None]


class LipReader(Encoder):
    """The substitute for an encoder."""

    width = 1
    attributes = {"encoder": "lips and loudness", "weights_sha256": "0", "width": 1}  # noqa: RUF012

    def __init__(self):
        self.encoded: list[str] = []

    def encode(self, clips):
        for clip in clips:
            self.encoded.append(clip.meta.path)
            lips = np.linalg.norm(clip.points[:, 62] - clip.points[:, 66], axis=1).astype(np.float64)
            samples = np.zeros(len(lips) * SAMPLES_PER_FRAME)
            sound = clip.waveform[: len(samples)] / 2**15
            samples[: len(sound)] = sound
            power = np.square(samples.reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1)
            yield clip, ClipFeatures(in_rhythm(lips), in_rhythm(np.log(np.sqrt(power) + 1e-3)))


class Trained(Detector):
    """The substitute for a trained network."""

    def score(self, source):
        visual, audio = (source.features(modality, 0) for modality in ("visual", "audio"))
        return -(visual * audio)[:, 0], np.zeros(1, np.float32)


@pytest.fixture
def judge(cast, talk, tmp_path, monkeypatch):
    """Returns a function from who is heard in the film, and the flag, to its verdict and frame scores."""
    monkeypatch.setattr("extract.faces.find_tracks", lambda *_: talk.shots)  # found once for all tests

    def verdict(voice: str, faces: str, encoder: Encoder | None = None):
        film = cast.write(tmp_path / "talk.mp4", talk.frames, voice)
        return score_video(str(film), encoder or LipReader(), Trained(METHODS["avh_align"]), faces=faces)

    return verdict


def roles(verdict: Verdict) -> list[list[bool]]:
    """Returns which faces of each shot are likely speakers."""
    return [[face.speaker for face in shot.faces] for shot in verdict.shots]


@pytest.mark.parametrize(("voice", "speaker"), [("movie", 0), ("obama", 1)])
def test_the_likely_speaker_is_the_face_that_fits_the_sound_best(judge, voice, speaker):
    verdict, frame = judge(voice, "speaker")
    shots = verdict.shots
    assert roles(verdict) == [[speaker == 0, speaker == 1], [], [True]]
    assert [shot.remark for shot in shots] == ["", NO_FACE, ""]
    start, stop = (round(25 * time) for time in (shots[1].start, shots[1].end))
    assert np.isnan(frame).tolist() == [start <= index < stop for index in range(len(frame))]
    np.testing.assert_allclose(frame[:start], shots[0].faces[speaker].frame_scores, atol=1e-6)
    np.testing.assert_allclose(frame[stop:], shots[2].faces[0].frame_scores, atol=1e-6)
    pooled = pool_all(frame[~np.isnan(frame)])
    assert verdict.scores == {name: pytest.approx(float(score), abs=1e-6) for name, score in pooled.items()}
    assert verdict.own_score == verdict.scores["logsumexp"]
    means = [np.nanmean(frame[k : k + 25]) for k in range(len(frame) - 24) if not np.isnan(frame[k : k + 25]).any()]
    first, last = (round(25 * time) for time in verdict.worst_second)
    assert frame[first:last].mean() == pytest.approx(max(means))
    assert f"likely speaker: 1.{speaker + 1}, 3.1" in verdict.line()
    assert f"no likely speaker: {shots[1].start:.2f}-{shots[1].end:.2f} s ({NO_FACE})" in verdict.line()


def test_a_shot_dubbed_over_several_faces_is_named_instead_of_scored(judge):
    """A third person is heard, who falls silent before the last shot; `all` scores the face that fits best anyway."""
    verdict, frame = judge("jwp", "speaker")
    assert verdict.error == f"{NO_SPEAKER}; {NO_FACE}; {NO_SPEECH} while a face is visible"
    assert verdict.shots[0].remark == NO_SPEAKER
    assert roles(verdict) == [[False, False], [], [False]]
    assert len(frame) == 0
    assert all(face.scores for face in verdict.shots[0].faces)
    both, frame = judge("jwp", "all")
    assert [shot.faces for shot in both.shots] == [shot.faces for shot in verdict.shots]
    best = min(both.shots[0].faces, key=lambda face: face.scores["mean"])
    np.testing.assert_allclose(frame[: len(best.frame_scores)], best.frame_scores, atol=1e-6)
    assert np.isnan(frame[round(25 * both.shots[0].end) :]).all()
    assert both.warning == "no face clearly speaks in 1 of 3 shots"
    assert both.warning in both.line()


def test_the_largest_face_is_scored_by_itself(judge):
    encoder = LipReader()
    verdict, _ = judge("movie", "largest", encoder)
    assert len(encoder.encoded) == 2
    scored = [[bool(face.scores) for face in shot.faces] for shot in verdict.shots]
    assert sorted(scored[0]) == [False, True]
    assert [face.remark for face in verdict.shots[0].faces if not face.scores] == [NOT_LARGEST]
    assert roles(verdict) == [[False, False], [], [False]]  # the largest need not speak
    assert "likely speaker:" not in verdict.line().replace("no likely speaker", "")


def test_a_video_of_which_one_face_cannot_be_encoded_fails_whole(judge):
    """As in extraction: no reference holds videos without some of their faces."""

    class Failing(LipReader):
        def encode(self, clips):
            for clip, features in super().encode(clips):
                lost = clip.meta.path.endswith("shot1.face2")
                yield clip, Failure(clip.meta.path, "encode", "no memory", True) if lost else features

    verdict, frame = judge("movie", "all", Failing())
    assert (verdict.error, verdict.passing, verdict.scores, len(frame)) == ("no memory", True, {}, 0)


def test_what_nobody_says_is_not_scored(judge, monkeypatch):
    monkeypatch.setattr("extract.faces.speech_frames", lambda waveform: np.arange(len(waveform) // 640) > 90)
    verdict, frame = judge("movie", "all")
    assert [face.remark for face in verdict.shots[0].faces] == [NO_SPEECH, NO_SPEECH]
    assert verdict.shots[0].remark == f"{NO_SPEECH} while a face is visible"
    assert np.isnan(frame[:75]).all()
    monkeypatch.setattr("extract.faces.speech_frames", lambda waveform: np.zeros(len(waveform) // 640, bool))
    verdict, frame = judge("movie", "all")
    assert verdict.error == f"{NO_SPEECH} while a face is visible; {NO_FACE}"
    assert len(frame) == 0
    assert "3 shots, 3 faces" in verdict.line()


def test_boxes_follow_the_faces_and_stay_few(judge, talk):
    verdict, _ = judge("movie", "all")
    for shot, tracked in zip(verdict.shots, talk.shots, strict=True):
        for face, track in zip(shot.faces, tracked.tracks, strict=True):
            assert (face.start, face.end) == (track.start / 25, track.stop / 25)
            np.testing.assert_allclose(face.boxes, track.boxes[::BOX_STEP], atol=5e-4)
    text = json.dumps(dataclasses.asdict(verdict))
    assert len(text) < 1000 * verdict.seconds * 3  # a kilobyte per second and face


def test_one_face_without_a_cut_has_the_scores_of_the_whole_video(cast, tmp_path, tiny_checkpoint, narrow_weights):
    """Bit for bit, also where the sound is shorter than the picture."""
    frames = cast.pictures["movie"][:32]
    film = write_media(tmp_path / "one.mp4", frames, sound=cast.sound("movie", 29)[None])
    encoder, detector = Encoder(tiny_checkpoint), load_detector(narrow_weights)
    whole, frame = score_video(str(film), encoder, detector)
    verdict, same = score_video(str(film), encoder, detector, faces="speaker")
    np.testing.assert_array_equal(same, frame)
    for name in ("seconds", "scores", "own_score", "worst_second", "method"):
        assert getattr(verdict, name) == getattr(whole, name), name
    assert verdict.shots[0].faces[0].scores == whole.scores
    np.testing.assert_array_equal(np.array(verdict.shots[0].faces[0].frame_scores, np.float32), frame)


@pytest.mark.parametrize("folder", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_flag_of_the_command(cast, tmp_path, tiny_checkpoint, narrow_weights, launch, folder):
    """What cannot be scored is named with status 2, also among the videos of a folder."""
    (tmp_path / "films").mkdir()
    film = write_media(tmp_path / "films" / "tone.mp4", cast.pictures["movie"][:26], sound=tone(1.04))
    given = [film.parent, f"--results={tmp_path / 'v'}"] if folder else [film, f"--json={tmp_path / 'v'}"]
    flags = [f"--avhubert={tiny_checkpoint}", f"--weights={narrow_weights}", "--faces=all"]
    status, output = launch("detect", *map(str, given), *flags)
    assert status == 2
    assert f"tone.mp4: FAILED: {NO_SPEECH} while a face is visible  1 shot, 1 face" in output
    found = json.loads((tmp_path / "v").read_text())
    (verdict,) = [found] if folder else found
    assert verdict["which_faces"] == "all"
    assert verdict["shots"][0]["faces"][0]["key"] == "tone.mp4#shot1.face1"
    assert not folder or verdict["settings"]["faces"] == "all"


def test_faces_are_compared_with_faces(judge):
    """The judged ones together; a reference of whole videos, or of other faces, does not fit."""
    detector = Trained(METHODS["avh_align"])
    attributes = {"method": "avh_align", "weights_sha256": "0", "trimmed": False, "faces": "speaker"}
    score = {"logsumexp": np.linspace(0, 9, 300, dtype=np.float32)}
    reference = Reference(attributes, np.repeat([60, 200], 150), score, 1.0)
    check_comparable(reference, LipReader(), detector, "r.json", "speaker")
    for faces in ("", "all"):
        with pytest.raises(UserError, match=r"r\.json: differs in which faces are scored"):
            check_comparable(reference, LipReader(), detector, "r.json", faces)
    for faces in ("speaker", "all", "largest"):
        verdict, frame = judge("movie", faces)
        compared = verdict.compared(frame, reference, two_sided=True, rates=(0.02, 0.005))
        assert dataclasses.replace(compared, reference=None) == verdict
        judged = [face for shot in verdict.shots for face in shot.faces if face.scores]
        judged = [face for face in judged if face.speaker] if faces == "speaker" else judged
        assert len(judged) == (3 if faces == "all" else 2)
        scores = [np.array(face.frame_scores, np.float32) for face in judged]
        pooled = pool_all(np.concatenate(scores))
        assert verdict.scores == {name: pytest.approx(float(score), abs=1e-6) for name, score in pooled.items()}
        whole = reference.judge(np.concatenate(scores), True, (0.02, 0.005))
        marked = {
            face.start + n / 25 for face, own in zip(judged, scores, strict=True) for n in np.flatnonzero(own > 1)
        }
        held = [n / 25 for a, b in compared.reference.stretches for n in range(round(25 * a), round(25 * b))]
        assert held == pytest.approx(sorted(marked))  # each once, if several faces are visible
        empty = verdict.shots[1]
        assert compared.reference.unscored_seconds == pytest.approx(empty.end - empty.start)
        same = {"stretches": whole.stretches, "unscored_seconds": 0.0}
        assert dataclasses.replace(compared.reference, **same) == whole
        assert "real clips with 2.4-8.0 s of scored faces (p = " in compared.line()
        assert compared.reference.flagged["0.02"] or ", but 0.80 s were not scored" in compared.line()
    failed, nothing = judge("jwp", "speaker")
    assert failed.compared(nothing, reference) == failed
