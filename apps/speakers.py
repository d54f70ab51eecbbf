"""Verdicts on the faces of a video, one by one, and on the likely speaker of each shot."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE
from avh_shards.errors import Failure
from avh_shards.format import Variant, caveat
from extract.avhubert.encoder import Encoder
from extract.faces import Face, FacesOfShot, why_none
from extract.run.pool import Prepared
from extract.store.shard import ClipFeatures
from jax_avh.data.source import source_of_clip
from jax_avh.inference import Detector
from jax_avh.report.video import BOX_STEP, FaceVerdict, ShotVerdict, Verdict
from jax_avh.scores import nine_digits, pool_all, worst_second

SHIFTS = 19  # of the sound, with which the best of several faces is compared: each passes by chance in 1 of 20 cases
LEAST_SHIFT = 10  # frames: a smaller shift leaves the sound too similar
NO_SPEAKER = "no face fits the sound better than it fits other moments of it: dubbed, faked, or spoken out of sight"
NOT_LARGEST = "another face is larger"


class Scored(NamedTuple):
    """A face with its features and its frame scores."""

    clip: ClipMeta
    features: ClipFeatures
    frame: Float[np.ndarray, " T"]


def score_faces(
    video: str, prepared: Prepared, encoder: Encoder, detector: Detector, faces: str
) -> tuple[Verdict, Float[np.ndarray, " T"]]:
    """Scores the prepared faces of a video.

    The likely speaker of a shot is the face whose mean frame score is lowest. Of several faces, it must also fit the
    sound of its frames better than the same sound shifted in time; otherwise the shot may be dubbed. No speaker is
    named if only the largest face is scored.

    Args:
      video: path of the video in the verdict.
      prepared: the video, prepared with `PrepareSettings.faces` "all" or "largest".
      encoder: the encoder of the features that the detector was trained on.
      detector: a method that scores frames by their features, with a `method.pooling`.
      faces: the video's scores are pooled over all frames of "speaker": the likely speakers, and a shot without one is
        not scored; "all": all faces; "largest": the largest face of each shot.

    Returns:
      The verdict and the frame scores of the whole video, by the judged face of each shot that fits best, NaN where no
      face is judged. The verdict has an error if none is, and names all faces even then.
    """
    outcome = prepared.outcomes[Variant.UNTRIMMED]
    if isinstance(outcome, Failure) and not prepared.shots:
        return Verdict(video, error=outcome.reason, passing=outcome.passing, which_faces=faces), np.zeros(0, np.float32)
    scored: dict[str, Scored] = {}
    for clip, features in encoder.encode(() if isinstance(outcome, Failure) else outcome):
        if isinstance(features, Failure):  # as in extraction, all faces of a video are encoded, or it fails
            verdict = Verdict(video, error=features.reason, passing=features.passing, which_faces=faces)
            return verdict, np.zeros(0, np.float32)
        scored[clip.meta.path] = Scored(clip.meta, features, frame_scores(detector, clip.meta, *features[:2]))
    shots = []
    frame = np.full(_length(prepared.shots, scored), np.nan, np.float32)
    for shot in prepared.shots:
        speaker, remark = _speaker(shot, scored, detector)
        likely = speaker if not remark and faces != "largest" else ""
        verdicts = [_face(face, scored, detector, face.key == likely) for face in shot.faces]
        shots.append(ShotVerdict(shot.start / FRAME_RATE, shot.stop / FRAME_RATE, verdicts, remark))
        if speaker and (not remark or faces != "speaker"):
            start = next(face.start for face in shot.faces if face.key == speaker)
            frame[start : start + len(scored[speaker].frame)] = scored[speaker].frame
    verdict = Verdict(video, shots=shots, which_faces=faces)
    if not verdict.pooled_faces:
        reasons = collections.Counter(shot.remark for shot in shots)
        return dataclasses.replace(verdict, error="; ".join(reasons)), np.zeros(0, np.float32)
    scores = pooled(np.concatenate([scored[face.key].frame for face in verdict.pooled_faces]))
    worst = max(verdict.pooled_faces, key=lambda face: _worst_mean(scored[face.key].frame))
    left_out = ", which are not scored" if faces == "speaker" else ""
    unclear = sum(shot.remark == NO_SPEAKER for shot in shots)
    verdict = dataclasses.replace(
        verdict,
        seconds=len(frame) / FRAME_RATE,
        scores=scores,
        worst_second=worst.worst_second,
        caveat=caveat(encoder.attributes, detector.notes),
        method=detector.method.name,
        own_score=scores[detector.method.pooling],
        warning=f"no face clearly speaks in {unclear} of {len(shots)} shots{left_out}" if unclear else "",
    )
    return verdict, frame


def frame_scores(
    detector: Detector, clip: ClipMeta, visual: Float[np.ndarray, "T D"], audio: Float[np.ndarray, "T D"]
) -> Float[np.ndarray, " T"]:
    """Returns the score of each frame of a clip, by a method that has a pooling."""
    frame, _ = detector.score(source_of_clip(clip, visual, audio))
    assert frame is not None, "a method with a pooling returned no frame scores"
    return frame


def _speaker(shot: FacesOfShot, scored: Mapping[str, Scored], detector: Detector) -> tuple[str, str]:
    """Finds the likely speaker of a shot.

    Returns:
      The key of the scored face that fits the sound best, "" if no face is scored, and why it is not the likely
      speaker, "" if it is.
    """
    found = {face.key: scored[face.key] for face in shot.faces if face.key in scored}
    if not found:
        return "", why_none([shot])
    best = min(found, key=lambda key: float(found[key].frame.mean()))
    doubtful = len(found) > 1 and not fits_its_sound(found[best], detector)
    return best, NO_SPEAKER if doubtful else ""


def fits_its_sound(face: Scored, detector: Detector) -> bool:
    """Returns whether a face fits the sound better than it fits the same sound shifted in time by any of SHIFTS steps.

    The sound is shifted in a circle. A face that does not speak passes by chance in one case of 1 + SHIFTS; the best of
    K such faces in up to K.
    """
    frames = len(face.frame)
    shifts = np.unique(np.linspace(LEAST_SHIFT, frames - LEAST_SHIFT, SHIFTS).round().astype(int))
    others = (
        frame_scores(detector, face.clip, face.features.visual, np.roll(face.features.audio, shift, axis=0)).mean()
        for shift in shifts.tolist()
    )
    return all(float(face.frame.mean()) < float(other) for other in others)


def _face(face: Face, scored: Mapping[str, Scored], detector: Detector, speaker: bool) -> FaceVerdict:
    stop = face.start + len(face.boxes)
    boxes = [tuple(box) for box in face.boxes[::BOX_STEP].clip(0, 1).round(3).tolist()]
    verdict = FaceVerdict(face.key, face.start / FRAME_RATE, stop / FRAME_RATE, boxes, round(face.speech, 3))
    if face.key not in scored:
        return dataclasses.replace(verdict, remark=face.remark or NOT_LARGEST)
    frame = scored[face.key].frame
    scores = pooled(frame)
    start, end = worst_second(frame)
    return dataclasses.replace(
        verdict,
        speaker=speaker,
        scores=scores,
        own_score=scores[detector.method.pooling],
        worst_second=(face.start / FRAME_RATE + start, face.start / FRAME_RATE + end),
        frame_scores=nine_digits(frame),
    )


def _length(shots: Sequence[FacesOfShot], scored: Mapping[str, Scored]) -> int:
    """Returns the frames of a video: as many as it shows, or fewer if its sound ends before."""
    last = shots[-1]
    ends = [
        face.start + len(scored[face.key].frame)
        for face in last.faces
        if face.key in scored and face.start + len(face.boxes) == last.stop
    ]
    return min([last.stop, *ends])


def pooled(frame: Float[np.ndarray, " T"]) -> dict[str, float]:
    """Returns the clip scores of a verdict by pooling, rounded as in its JSON."""
    return {name: round(float(score), 6) for name, score in pool_all(frame).items()}


def _worst_mean(frame: Float[np.ndarray, " T"]) -> float:
    start, end = (round(FRAME_RATE * seconds) for seconds in worst_second(frame))
    return float(frame[start:end].mean())
