"""Contact sheet of mouth crops, for a quick visual check of preparation."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avh_shards import ClipMeta
from avh_shards.errors import Failure
from avh_shards.paths import AnyPath, atomic_write
from extract.face.mouth import CROP, MOUTH, STABLE
from extract.prepare import PreparedClip
from extract.run.pool import Prepared, PrepareTask, prepare_all, running_pool

SHEET_ROWS = 12  # first clips of the list, one per row
SHEET_COLUMNS = 8  # evenly spaced frames of a clip, one per column
ENLARGEMENT = 2  # pixels of the sheet per pixel of a crop
CAPTION = 22  # height in pixels
MOUTH_COLOUR, STABLE_COLOUR, TEXT_COLOUR, ALARM_COLOUR = (80, 220, 80), (60, 160, 255), (230, 230, 230), (90, 90, 255)

Picture = UInt8[np.ndarray, "H W 3"]


def write_contact_sheet(path: AnyPath, clips: Sequence[ClipMeta], task: PrepareTask, processes: int) -> None:
    """Prepares the first clips of a list and draws one row for each: crops with landmarks, or the reason for failure.

    Args:
      path: PNG file to write.
      clips: the clip list.
      task: preparation of the clips.
      processes: number of worker processes.
    """
    first = clips[:SHEET_ROWS]
    with running_pool(task, processes) as pool:
        prepared = prepare_all(pool, first, task, processes)
        rows = [draw_clip(clip, outcome) for clip, outcome in zip(first, prepared, strict=True)]
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", np.concatenate(rows))[1].tobytes())


def draw_clip(clip: ClipMeta, prepared: Prepared) -> Picture:
    """Draws a row of the sheet for a clip, or one for each of its faces, in BGR: caption and crops, or the failure."""
    outcome = next(iter(prepared.outcomes.values()))
    width = SHEET_COLUMNS * CROP * ENLARGEMENT
    if isinstance(outcome, Failure):
        return _caption(f"{clip.path}: {outcome.stage}: {outcome.reason}", width, ALARM_COLOUR)
    return np.concatenate([_draw_part(part, width) for part in outcome])


def _draw_part(clip: PreparedClip, width: int) -> Picture:
    moments = np.linspace(0, len(clip.crops) - 1, SHEET_COLUMNS).round().astype(int).tolist()
    crops = np.hstack([_draw_crop(clip, moment) for moment in moments])
    return np.concatenate([_caption(f"{clip.meta.path}  {len(clip.crops)} frames", width, TEXT_COLOUR), crops])


def _draw_crop(clip: PreparedClip, moment: int) -> Picture:
    picture = cv2.resize(clip.crops[moment], None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_CUBIC)
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if clip.points is not None:
        _draw_points(picture, clip.points[moment][MOUTH], MOUTH_COLOUR)
        _draw_points(picture, clip.points[moment][list(STABLE)], STABLE_COLOUR)
    return picture


def _draw_points(picture: Picture, points: Float[np.ndarray, "P 2"], colour: tuple[int, int, int]) -> None:
    for x, y in (points * ENLARGEMENT).round().astype(int).tolist():
        cv2.circle(picture, (x, y), 2, colour, cv2.FILLED, cv2.LINE_AA)


def _caption(text: str, width: int, colour: tuple[int, int, int]) -> Picture:
    line = np.full((CAPTION, width, 3), 40, np.uint8)
    # OpenCV draws only ASCII.
    text = text.encode("ascii", "replace").decode()
    return cv2.putText(line, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
