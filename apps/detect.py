"""Verdicts on videos: from the media file to its scores in one process."""

import collections
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from apps.playable import playable
from apps.speakers import frame_scores, pooled, score_faces
from avh_shards import ClipMeta, UserError
from avh_shards.clip import FRAME_RATE
from avh_shards.errors import Failure
from avh_shards.format import Variant, caveat, results_folder
from avh_shards.paths import HTML, AnyPath, FilePath, as_path, atomic_write, check_outputs
from extract.avhubert.encoder import Encoder
from extract.prepare import PrepareSettings
from extract.run.pool import Prepared, PrepareTask
from jax_avh.inference import Detector, load_detector
from jax_avh.reference import RATES, Reference, read_reference
from jax_avh.report.video import EMBEDDED_BYTES, Verdict, write_video_page
from jax_avh.scores import worst_second

MIN_FACE_SHARE = PrepareSettings.min_face_share  # a verdict warns below this share, where extraction rejects a clip
SEVERAL_FACES = 0.1  # a verdict warns above this share of frames with several faces; detectors err occasionally
NO_REFERENCE = (
    "these scores have no absolute meaning; make a reference of real videos of the same kind with launch.calibrate "
    "and give --reference"
)
NO_PROBABILITY = "a p-value compares a video with the reference's real clips; it is not the probability of a fake"
INDEX = "index.html"  # among the pages of many videos
VERDICTS = rb'\[\s*(\{\s*"path"|\])'  # start of their JSON file


@dataclasses.dataclass(frozen=True)
class DetectSettings:
    """How videos are scored and compared with real ones."""

    avhubert: str  # an official AV-HuBERT file, or "random"
    weights: str  # a method's weights (.safetensors), or the workdir of a training run
    landmarks: str = PrepareSettings.landmarks  # landmark finder, "dlib-tracked" or "dlib"
    faces: str = ""  # faces that are scored one by one, as for `score_video`
    reference: str | os.PathLike | None = None  # file of real clips' scores by the same weights; None = no comparison
    two_sided: bool = False  # whether scores lower than those of real clips are suspicious, too
    rates: Sequence[float] = RATES  # false-alarm rates at which a video is flagged or not

    @property
    def inputs(self) -> list[AnyPath]:
        """The files that are read, besides videos."""
        return [path for path in (self.avhubert, self.weights, self.reference) if path is not None]


class Models(NamedTuple):
    """What scores videos, and what their scores are compared with."""

    encoder: Encoder
    detector: Detector
    reference: Reference | None


def load_models(settings: DetectSettings) -> Models:
    """Loads what the settings name, the slowest last.

    Raises:
      UserError: a file is missing or damaged, they do not fit each other, or the method cannot score single videos.
    """
    reference = None if settings.reference is None else read_reference(settings.reference)
    detector = load_detector(settings.weights)
    encoder = Encoder(settings.avhubert)
    check_pair(encoder, detector)
    if reference is not None:
        check_comparable(reference, encoder, detector, f"--reference={settings.reference}", settings.faces)
    return Models(encoder, detector, reference)


def detect(
    videos: Sequence[str],
    settings: DetectSettings,
    output: str | os.PathLike | None = None,
    pages: str | os.PathLike | None = None,
) -> int:
    """Scores videos one after the other and prints one line for each.

    Args:
      videos: media files.
      settings: how they are scored.
      output: JSON file to write the verdicts to; None = none.
      pages: folder to write a page per video to; None = none.

    Returns:
      Exit status: 0, or 2 if a video could not be scored.

    Raises:
      UserError: as for `load_models`; or a video is given twice, or an output cannot be written or is an input.
    """
    written = {} if pages is None else _pages(videos, results_folder(pages))
    outputs: dict[AnyPath, bytes] = dict.fromkeys(written.values(), HTML)
    if output is not None:
        outputs[as_path(output)] = VERDICTS
    check_outputs(outputs, [*videos, *settings.inputs])
    encoder, detector, reference = load_models(settings)
    for path in map(as_path, outputs):  # if this run were killed, older results could be mistaken for its own
        path.unlink(missing_ok=True)
    verdicts = []
    try:
        for video in videos:
            verdict, frame = score_video(video, encoder, detector, settings.landmarks, settings.faces)
            if reference is not None:
                verdict = verdict.compared(frame, reference, settings.two_sided, settings.rates)
            verdicts.append(verdict)
            print(verdict.line(), flush=True)
            if written and not verdict.error:
                write_page(written[video], Path(video), verdict, frame)
    finally:  # keeps the verdicts even if a page could not be written
        if output is not None:
            with atomic_write(output) as temporary:
                temporary.write_text(json.dumps([dataclasses.asdict(v) for v in verdicts], indent=2) + "\n")
    if not all(verdict.error for verdict in verdicts):
        print(f"note: {NO_REFERENCE if reference is None else NO_PROBABILITY}", file=sys.stderr)
    return 2 if any(verdict.error for verdict in verdicts) else 0


def page_paths(videos: Sequence[PurePath]) -> list[PurePath]:
    """Returns the relative path of each video's page, in folders like those of the videos.

    The page of x.mp4 is x.html, or x.mp4.html where its folder holds another video with that stem, or the index would
    have that name.

    Args:
      videos: relative paths, each once.

    Raises:
      UserError: a video without a suffix has the name of the index, or a page or the index has that of a folder.
    """
    if (bare := PurePath(PurePath(INDEX).stem)) in videos:
        raise UserError(f"{bare}: its page would replace the index, {INDEX}; rename the video")
    stems = collections.Counter(video.parent / video.stem for video in videos)
    stems[PurePath(INDEX).with_suffix("")] += 1
    shared = {video.parent for video in videos if stems[video.parent / video.stem] > 1}
    pages = [video.parent / f"{video.name if video.parent in shared else video.stem}.html" for video in videos]
    if clash := {PurePath(INDEX), *pages} & {folder for page in pages for folder in page.parents}:
        raise UserError(f"{min(clash)}: would be both a page and the folder of others; rename the folder of the videos")
    return pages


def _pages(videos: Sequence[str], folder: FilePath) -> dict[str, FilePath]:
    """Returns the page of each video: in the folder itself, or in subfolders if two videos have the same name."""
    names = [PurePath(Path(video).stem + ".html") for video in videos]
    if len(set(names)) < len(names):
        files = [os.path.abspath(video) for video in videos]  # noqa: PTH100 (removes "..", too)
        common = os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120
        names = page_paths([PurePath(file).relative_to(common) for file in files])
    if len(set(names)) < len(names):
        raise UserError("--pages: one of the videos is given twice; name each video once")
    return {video: folder / name for video, name in zip(videos, names, strict=True)}


def write_page(
    path: AnyPath, video: Path, verdict: Verdict, frame: Float[np.ndarray, " T"], settings: str = ""
) -> None:
    """Writes the video's page, using a playable copy if browsers cannot play the video; see `write_video_page`."""
    with playable(video) as copy:
        lasting = copy if copy.stat().st_size <= EMBEDDED_BYTES else video  # a linked file must outlive this block
        write_video_page(str(path), lasting, verdict, frame, settings=settings)


def check_pair(encoder: Encoder, detector: Detector) -> None:
    """Checks that a detector scores single videos, and from the features of an encoder."""
    detector.check_fits(encoder.width, encoder.attributes, encoder.attributes["encoder"])
    if not detector.method.pooling:
        raise UserError(
            f"{detector.path}: {detector.method.name} cannot score single videos; extract shards and use launch.score"
        )


def check_comparable(reference: Reference, encoder: Encoder, detector: Detector, subject: str, faces: str = "") -> None:
    """Checks that scores of untrimmed videos, or of their faces, may be compared with a reference; see `check_fits`."""
    scores = {**encoder.attributes, **detector.attributes, "method": detector.method.name, "trimmed": False}
    scores |= {"faces": faces} if faces else {}
    reference.check_fits(scores, subject)
    if detector.method.pooling != reference.own or reference.frame_limit is None:
        raise UserError(f"{subject}: has no frame scores pooled by {detector.method.pooling}; make a new one")


def score_video(
    video: str, encoder: Encoder, detector: Detector, landmarks: str = PrepareSettings.landmarks, faces: str = ""
) -> tuple[Verdict, Float[np.ndarray, " T"]]:
    """Scores one video.

    Args:
      video: path of a media file.
      encoder: the encoder of the features that the detector was trained on.
      detector: a method that scores frames by their features, with a `method.pooling`.
      landmarks: the landmark finder, "dlib-tracked" or "dlib".
      faces: "" follows one face through the video; "speaker", "all" or "largest" cuts it into shots and scores faces
        one by one, see `score_faces`.

    Returns:
      The verdict (its `error` gives the reason if the video failed), and the score of each frame at 25 Hz, float32;
      higher means more fake, NaN that no face is scored. A failed video has no frame scores.

    Raises:
      UserError: the detector does not fit the encoder or cannot score single videos, the landmark model is not
        installed, the encoder fails for a reason other than lack of memory, or the scores are not finite.
    """
    check_pair(encoder, detector)
    prepared = preparation(Path(video).parent, landmarks, faces).prepare(ClipMeta(Path(video).name))
    return score_prepared(video, prepared, encoder, detector, faces)


def preparation(media: str | os.PathLike, landmarks: str, faces: str) -> PrepareTask:
    """Returns the preparation of the videos in a folder, before `score_prepared`; arguments as for `score_video`."""
    prepared = "all" if faces == "speaker" else faces  # a detector knows better than `extract --faces` who speaks
    # A video with few faces gets a warning.
    settings = PrepareSettings(landmarks=landmarks, min_face_share=0.0, faces=prepared)
    return PrepareTask(str(media), settings, (Variant.UNTRIMMED,))


def score_prepared(
    video: str, prepared: Prepared, encoder: Encoder, detector: Detector, faces: str = ""
) -> tuple[Verdict, Float[np.ndarray, " T"]]:
    """Scores a prepared video, or reports why its preparation failed: the second half of `score_video`.

    Args:
      video: path of the video in the verdict.
      prepared: the video, prepared by `preparation`.
      encoder: as for `score_video`.
      detector: as for `score_video`.
      faces: as for `score_video`.
    """
    if faces:
        return score_faces(video, prepared, encoder, detector, faces)
    outcome = prepared.outcomes[Variant.UNTRIMMED]
    if isinstance(outcome, Failure):
        return Verdict(video, error=outcome.reason, passing=outcome.passing), np.zeros(0, np.float32)
    (clip,) = outcome
    features = next(encoder.encode([clip]))[1]
    if isinstance(features, Failure):
        return Verdict(video, error=features.reason, passing=features.passing), np.zeros(0, np.float32)
    frame = frame_scores(detector, clip.meta, features.visual, features.audio)
    scores = pooled(frame)
    own = {"method": detector.method.name, "own_score": scores[detector.method.pooling]}
    own |= {"face_share": clip.meta.face_share, "several_faces": clip.meta.several_faces}
    own |= {"warning": _face_warning(clip.meta)}
    note = caveat(encoder.attributes, detector.notes)
    return Verdict(video, len(frame) / FRAME_RATE, scores, worst_second(frame), caveat=note, **own), frame


def _face_warning(clip: ClipMeta) -> str:
    """Returns why a clip's faces make its scores doubtful; "" if they do not."""
    warnings = []
    if clip.face_share < MIN_FACE_SHARE:
        few = "few frames show a face; in the others, the mouth's position is a guess"
        warnings.append(f"{few}; extraction by default rejects such clips, so references lack them")
    if clip.several_faces > SEVERAL_FACES:
        warnings.append("several faces: one of them is scored, which may not be the speaker's; score each with --faces")
    return "; ".join(warnings)
