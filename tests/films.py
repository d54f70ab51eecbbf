"""Made-up films of the demo's real clips: cuts, people side by side, faces that leave and return, nobody at all.

Pictures are small, since searching them for faces takes most of the time.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from avh_shards.clip import SAMPLES_PER_FRAME
from extract.face.tracks import Shot, find_tracks
from extract.media import iterate_video, read_audio
from tests.media import write_media

WIDTH, HEIGHT = 400, 180  # pixels of a film
FACES = {  # person -> clip, and the part of its pictures that is shown: left, top, right, bottom
    "jwp": ("jwpIntro", (80, 0, 480, 400)),
    "movie": ("testMovie", (10, 20, 270, 280)),
    "obama": ("obama_speech", (140, 0, 260, 120)),
}
SIDE = 160  # pixels of a person's picture
SPEAKS = 30  # frame in which all of them speak
LEFT, RIGHT = 20, WIDTH - SIDE - 20  # left edges of the people
SLIDE = 8  # frames in which a person is hidden


class Cast:
    """The people of the real clips: their pictures and their voices."""

    def __init__(self, clips: dict[str, Path], frames: int):
        """Reads some frames of each clip, from the one in which its person begins to speak."""
        self.pictures: dict[str, list[np.ndarray]] = {}
        self.voices: dict[str, np.ndarray] = {}
        for name, (clip, (left, top, right, bottom)) in FACES.items():
            spoken = itertools.islice(iterate_video(clips[clip]), SPEAKS, SPEAKS + frames)
            shown = [frame[top:bottom, left:right] for frame in spoken]
            self.pictures[name] = [cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for part in shown]
            self.voices[name] = read_audio(clips[clip])[SPEAKS * SAMPLES_PER_FRAME :][: frames * SAMPLES_PER_FRAME]

    def shot(self, frames: int, wall: int, left: str = "", right: str = "", start: int = 0) -> list[np.ndarray]:
        """Returns a shot in which people are in front of a wall, whose number chooses its pattern.

        Args:
          frames: length.
          wall: the wall.
          left: person on the left, or nobody.
          right: person on the right, or nobody.
          start: the first frame of the people's clips.
        """
        shot = [_wall(wall).copy() for _ in range(frames)]
        for name, x in ((left, LEFT), (right, RIGHT)):
            for frame, picture in zip(shot, self.pictures[name][start:] if name else (), strict=False):
                frame[10 : 10 + SIDE, x : x + SIDE] = picture
        return shot

    def write(self, path: Path, frames: list[np.ndarray], voice: str) -> Path:
        """Writes a film in which one of the people is heard."""
        return write_media(path, frames, sound=self.sound(voice, len(frames))[None])

    def sound(self, voice: str, frames: int) -> np.ndarray:
        """Returns the voice of a person from the first frame of their clip on."""
        return self.voices[voice][: frames * SAMPLES_PER_FRAME]


class Talk(NamedTuple):
    """A film of three shots: two people, of whom one may speak, then nobody, then one person on the right."""

    frames: list[np.ndarray]
    shots: list[Shot]  # its shots and tracks, which take most of the time


def make_talk(cast: Cast) -> Talk:
    """Makes the film and follows its faces."""
    two = cast.shot(75, 1, left="movie", right="obama")
    frames = [*two, *cast.shot(20, 2), *cast.shot(30, 3, right="jwp")]
    return Talk(frames, find_tracks(lambda: iter(frames), "dlib-tracked"))


def hide(frames: list[np.ndarray], left: int, first: int, last: int) -> None:
    """Lets the wall slide over the person at `left` by frame `first`, and away again from frame `last` on."""
    for index, frame in enumerate(frames):
        share = 1 - max(first - index, index - last, 0) / SLIDE
        covered = round(SIDE * max(share, 0))
        frame[10 : 10 + SIDE, left : left + covered] = frame[10 : 10 + SIDE, :1]


def _wall(number: int) -> np.ndarray:
    colours = np.random.default_rng(number).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    return cv2.resize(colours, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
