"""Cutting of a video into shots, by PySceneDetect's adaptive detector on the frames of `decode`."""

import collections
from collections.abc import Iterable, Iterator

import cv2

from avh_shards.clip import FRAME_RATE
from extract.media.decode import Frame

SEARCHED_WIDTH = 256  # pixels: pictures are scaled down to it, as PySceneDetect does


def iterate_shots(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Finds the hard cuts of a video in one pass.

    A cut is a picture that differs from the previous one by much more than its neighbours do: more than three times
    their mean change, and at least 15 grey levels, in hue, saturation and brightness. The rule and its constants are
    PySceneDetect's (`AdaptiveDetector`), which keeps 15 frames between two cuts, so that a flash is not one. Fades and
    dissolves are not detected.

    Args:
      frames: RGB frames, 25 per second. A repeated picture must be the same object.

    Yields:
      Each frame, a few pictures late, and whether a new shot begins with it; the first frame begins one.
    """
    # PySceneDetect takes half a second to import, and only few runs need it.
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector()
    waiting: collections.deque[tuple[int, Frame]] = collections.deque()
    last = None
    begins = {0}  # frames that begin a shot
    pictures: collections.deque[int] = collections.deque()  # first frames of those pictures that are not judged yet
    for index, frame in enumerate(frames):
        if frame is not last:
            scale = min(1.0, SEARCHED_WIDTH / frame.shape[1])
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
            time = FrameTimecode(index, float(FRAME_RATE))
            found = detector.process_frame(time, cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
            begins.update(cut.frame_num for cut in found)
            pictures.append(index)
            last = frame
        waiting.append((index, frame))
        while len(pictures) > detector.event_buffer_length + 1:
            pictures.popleft()
        while waiting[0][0] < pictures[0]:
            number, ready = waiting.popleft()
            yield ready, number in begins
    yield from ((frame, number in begins) for number, frame in waiting)
