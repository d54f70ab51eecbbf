"""The verdict on a video and its page, which plays the video above its frame scores with a cursor that follows it."""

import base64
import dataclasses
import json
import math
import mimetypes
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from avh_shards import UserError
from avh_shards.clip import FRAME_RATE, track_numbers
from avh_shards.paths import FilePath, atomic_write
from avh_shards.text import one_line, printable
from jax_avh.reference import RATES, Judgement, Reference, stretches
from jax_avh.report.page import envelope, format_number, render_page

BOX_STEP = 5  # frames between two boxes of a face
FACE_COLOURS = 7  # of faces on the page, which repeat
SHOWN_SHOTS = 3  # shots named in one line
EMBEDDED_BYTES = 64 * 2**20  # larger videos are linked, not embedded
SETTINGS = re.compile(rb'<meta name="settings" content="(\w+)">')  # in a page's head
SETTINGS_BYTES = 1000  # of a page, which hold it
TIMELINE_WIDTH, TIMELINE_HEIGHT = 1000, 100  # size of the timeline in its own coordinates


@dataclasses.dataclass(frozen=True)
class FaceVerdict:
    """One face of a shot; times are in seconds of the video."""

    key: str  # its key in features that `extract --faces` stores: video.mp4#shot3.face2
    start: float
    end: float
    boxes: list[tuple[float, ...]]  # left, top, right, bottom at every BOX_STEPth frame, as shares of the frame's size
    speech: float  # share of its frames in which somebody speaks
    remark: str = ""  # why it has no scores
    speaker: bool = False  # whether it is the likely speaker of its shot; not decided if only the largest is scored
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # by pooling
    own_score: float = 0.0  # the method's own pooling
    worst_second: tuple[float, float] = (0.0, 0.0)
    frame_scores: list[float] = dataclasses.field(default_factory=list)  # from `start` on, 25 per second

    @property
    def name(self) -> str:
        """Its name on the page: "2.1" is the first face of the second shot."""
        return "{}.{}".format(*track_numbers(self.key))


@dataclasses.dataclass(frozen=True)
class ShotVerdict:
    """One shot, in seconds of the video."""

    start: float
    end: float
    faces: list[FaceVerdict]
    remark: str = ""  # why no face is its likely speaker


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Verdict on a video; higher scores = more fake, compared with real videos under the same weights.

    `seconds` is the length of the video; `caveat` warns of scores from random weights or simulated features.
    A video that could not be scored has only `path` and `error`.
    """

    path: str
    seconds: float = 0.0
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # by pooling
    worst_second: tuple[float, float] = (0.0, 0.0)  # start and end of the second whose frames score highest
    error: str = ""  # why the video has no score
    no_page: str = ""  # why a page could not be made
    passing: bool = False  # whether the cause of the error, or of the missing page, may go away
    caveat: str = ""
    method: str = ""
    own_score: float = 0.0  # the method's own pooling of its frame scores
    face_share: float | None = None  # share of frames in which a face was found
    several_faces: float | None = None  # share of frames in which several faces were found
    warning: str = ""  # why the faces make the scores doubtful
    reference: Judgement | None = None  # comparison with real clips; None = without a reference
    which_faces: str = ""  # the faces that are scored one by one, by --faces; "" = one is followed through the video
    shots: list[ShotVerdict] = dataclasses.field(default_factory=list)  # all of them, if faces are scored one by one

    @property
    def pooled_faces(self) -> list[FaceVerdict]:
        """The faces whose frames are pooled into the scores of the video."""
        speakers = self.which_faces == "speaker"
        return [face for shot in self.shots for face in shot.faces if face.scores and (face.speaker or not speakers)]

    def compared(
        self,
        frame: Float[np.ndarray, " T"],
        reference: Reference,
        two_sided: bool = False,
        rates: Sequence[float] = RATES,
    ) -> "Verdict":
        """Returns the verdict with its comparison with real clips; a failed video has none.

        Args:
          frame: frame scores of the video. If faces are scored one by one, those of all `pooled_faces` are taken
            instead, as in the reference.
          reference: scores of real clips, which fit the video's.
          two_sided: whether scores lower than those of real clips are suspicious, too.
          rates: false-alarm rates at which the video is suspicious or not.
        """
        if self.error:
            return self
        if not self.shots:
            return dataclasses.replace(self, reference=reference.judge(frame, two_sided, rates))
        scores = [np.array(face.frame_scores, np.float32) for face in self.pooled_faces]
        found = reference.judge(np.concatenate(scores), two_sided, rates)
        seen, above = np.zeros((2, round(FRAME_RATE * self.seconds)), bool)
        for face, own in zip(self.pooled_faces, scores, strict=True):
            part = slice(round(FRAME_RATE * face.start), round(FRAME_RATE * face.start) + len(own))
            seen[part] = True
            above[part] |= own > found.frame_limit
        unscored = int((~seen).sum()) / FRAME_RATE
        found = dataclasses.replace(found, stretches=stretches(above), unscored_seconds=unscored)
        return dataclasses.replace(self, reference=found)

    @property
    def faces(self) -> str:
        """Description of the shots and their faces, or of the shares of frames with faces; "" if unknown."""
        if self.shots:
            return _describe_shots(self.shots)
        if self.face_share is None or self.several_faces is None:
            return ""
        several = f", several faces in {self.several_faces:.0%}" if self.several_faces else ""
        return f"face in {self.face_share:.0%} of frames{several}".replace("%", " %")

    def line(self) -> str:
        """Returns the verdict in one line."""
        if self.error:
            shots = f"  {self.faces}" if self.shots else ""
            return f"{printable(self.path)}: FAILED: {one_line(self.error)}{shots}"
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        worst = "worst second {:.2f}-{:.2f} s".format(*self.worst_second)
        judged = self.reference.line() if self.reference else ""
        page = f"no page: {one_line(self.no_page)}" if self.no_page else ""
        remarks = [judged, self.faces, self.warning, page, self.caveat]
        return "  ".join([f"{printable(self.path)}: {scores}", worst, *filter(None, remarks)])


def _describe_shots(shots: Sequence[ShotVerdict]) -> str:
    """Returns the number of shots and faces, the likely speakers, and the shots that have none, the first ones each."""
    count = sum(len(shot.faces) for shot in shots)
    text = f"{len(shots)} shot{'s' * (len(shots) != 1)}, {count} face{'s' * (count != 1)}"
    speakers = [face.name for shot in shots for face in shot.faces if face.speaker]
    without = [f"{shot.start:.2f}-{shot.end:.2f} s ({shot.remark})" for shot in shots if shot.remark]
    for title, items in (("likely speaker", speakers), ("no likely speaker", without)):
        if items:
            more = f" and {len(items) - SHOWN_SHOTS} more" if len(items) > SHOWN_SHOTS else ""
            text += f"; {title}: {', '.join(items[:SHOWN_SHOTS])}{more}"
    return text


def write_video_page(
    path: str | os.PathLike,
    video: Path,
    verdict: Verdict,
    frame: Float[np.ndarray, " T"],
    segments: Sequence[tuple[float, float]] = (),
    settings: str = "",
) -> None:
    """Writes a video's page: one HTML file that embeds a video of up to 64 MiB and links to a larger one.

    Args:
      path: the HTML file.
      video: the media file.
      verdict: the verdict on the video.
      frame: frame scores of the video, 25 per second; higher = more fake.
      segments: segments known to be fake, in seconds.
      settings: what identifies the settings of the verdict, for `page_settings`; "" = not recorded.

    Raises:
      UserError: the video is missing, or the page cannot be written.
    """
    if not video.is_file():
        raise UserError(f"{video}: no such file; its page needs the video itself")
    embedded = video.stat().st_size <= EMBEDDED_BYTES
    seconds = len(frame) / FRAME_RATE
    relative = Path(os.path.relpath(video.resolve(), Path(path).resolve().parent)).as_posix()
    faces = [face for shot in verdict.shots for face in shot.faces]
    drawn = np.concatenate([frame[~np.isnan(frame)], *(np.array(face.frame_scores, np.float32) for face in faces)])
    levels = _ticks(float(drawn.min()), float(drawn.max()))
    text = render_page(
        "video.html.jinja",
        "video.js",
        verdict=verdict,
        source=_data(video) if embedded else urllib.parse.quote(relative),
        linked="" if embedded else relative,
        worst="{:.2f}-{:.2f} s".format(*verdict.worst_second),
        seconds=seconds,
        frame_rate=FRAME_RATE,
        step=1 / FRAME_RATE,
        width=TIMELINE_WIDTH,
        height=TIMELINE_HEIGHT,
        levels=levels,
        low=levels[0],
        high=levels[-1],
        ticks=[tick for tick in _ticks(0.0, seconds) if tick <= seconds],
        curve="" if faces else _curve(frame, levels, seconds),
        curves=[_curve(np.array(face.frame_scores), levels, seconds, face.start) for face in faces if face.scores],
        scores=",".join("" if math.isnan(score) else f"{score:.2f}" for score in frame.tolist()),
        faces=faces,
        solid=[bool(face.speaker or (verdict.which_faces == "largest" and face.scores)) for face in faces],
        followed=_follow(faces),
        colours=FACE_COLOURS,
        segments=segments,
        settings=settings,
        name=Path(verdict.path).name,
        number=format_number,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_settings(path: FilePath) -> str:
    """Returns what a video's page records of its settings; "" if it records nothing or does not exist."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        found = SETTINGS.search(file.read(SETTINGS_BYTES))
    return found[1].decode() if found else ""


def _data(video: Path) -> str:
    """Returns the video as a data: URI."""
    kind = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode()}"


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers that span an interval."""
    from matplotlib.ticker import MaxNLocator  # takes a third of a second to import, which only a page needs

    return np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)).tolist()


def _follow(faces: Sequence[FaceVerdict]) -> str:
    """Returns what the page's script draws over the video and reads out, in JSON."""
    shown = [
        {
            "name": face.name,
            "start": face.start,
            "end": face.end,
            "step": BOX_STEP / FRAME_RATE,
            "speaker": face.speaker,
            "boxes": face.boxes,
            "scores": [round(score, 2) for score in face.frame_scores],
        }
        for face in faces
    ]
    return json.dumps(shown, separators=(",", ":"))


def _curve(frame: Float[np.ndarray, " T"], levels: Sequence[float], seconds: float, start: float = 0.0) -> str:
    """Returns the SVG path of frame scores from `start` on, in the coordinates of a timeline of `seconds`."""
    time, score = envelope(frame)
    x = TIMELINE_WIDTH * (start + time) / seconds
    y = TIMELINE_HEIGHT * (levels[-1] - score) / (levels[-1] - levels[0])
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))
