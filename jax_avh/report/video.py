"""The verdict on a video and its page, which plays the video above its frame scores with a cursor that follows it."""

import base64
import dataclasses
import mimetypes
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from avh_shards import UserError
from avh_shards.clip import FRAME_RATE
from avh_shards.paths import atomic_write
from avh_shards.text import one_line, printable
from jax_avh.reference import Judgement
from jax_avh.report.page import envelope, format_number, render_page

EMBEDDED_BYTES = 64 * 2**20  # larger videos are linked, not embedded
TIMELINE_WIDTH, TIMELINE_HEIGHT = 1000, 100  # size of the timeline in its own coordinates


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
    passing: bool = False  # whether the cause of the error may go away
    caveat: str = ""
    method: str = ""
    own_score: float = 0.0  # the method's own pooling of its frame scores
    face_share: float | None = None  # share of frames in which a face was found
    several_faces: float | None = None  # share of frames in which several faces were found
    warning: str = ""  # why the faces make the scores doubtful
    reference: Judgement | None = None  # comparison with real clips; None = without a reference

    @property
    def faces(self) -> str:
        """Description of both shares of faces; "" if unknown."""
        if self.face_share is None or self.several_faces is None:
            return ""
        several = f", several faces in {self.several_faces:.0%}" if self.several_faces else ""
        return f"face in {self.face_share:.0%} of frames{several}".replace("%", " %")

    def line(self) -> str:
        """Returns the verdict in one line."""
        if self.error:
            return f"{printable(self.path)}: FAILED: {one_line(self.error)}"
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        worst = "worst second {:.2f}-{:.2f} s".format(*self.worst_second)
        judged = self.reference.line() if self.reference else ""
        remarks = [judged, self.faces, self.warning, self.caveat]
        return "  ".join([f"{printable(self.path)}: {scores}", worst, *filter(None, remarks)])


def write_video_page(
    path: str | os.PathLike,
    video: Path,
    verdict: Verdict,
    frame: Float[np.ndarray, " T"],
    segments: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes a video's page: one HTML file that embeds a video of up to 64 MiB and links to a larger one.

    Args:
      path: the HTML file.
      video: the media file.
      verdict: the verdict on the video.
      frame: frame scores of the video, 25 per second; higher = more fake.
      segments: segments known to be fake, in seconds.

    Raises:
      UserError: the video is missing, or the page cannot be written.
    """
    if not video.is_file():
        raise UserError(f"{video}: no such file; its page needs the video itself")
    embedded = video.stat().st_size <= EMBEDDED_BYTES
    seconds = len(frame) / FRAME_RATE
    relative = Path(os.path.relpath(video.resolve(), Path(path).resolve().parent)).as_posix()
    levels = _ticks(float(frame.min()), float(frame.max()))
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
        curve=_curve(frame, levels),
        scores=",".join(f"{score:.2f}" for score in frame.tolist()),
        segments=segments,
        name=Path(verdict.path).name,
        number=format_number,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data(video: Path) -> str:
    """Returns the video as a data: URI."""
    kind = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode()}"


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers that span an interval."""
    from matplotlib.ticker import MaxNLocator  # takes a third of a second to import, which only a page needs

    return np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)).tolist()


def _curve(frame: Float[np.ndarray, " T"], levels: Sequence[float]) -> str:
    """Returns the SVG path of the frame scores in the timeline's coordinates."""
    seconds, score = envelope(frame)
    x = TIMELINE_WIDTH * seconds / seconds[-1]
    y = TIMELINE_HEIGHT * (levels[-1] - score) / (levels[-1] - levels[0])
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))
