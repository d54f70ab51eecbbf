"""How far a run is: clips, rates, failures, time left."""

import time
from collections.abc import Mapping

import tqdm

from extract.clips import Failure
from extract.schema import FRAME_RATE


class Progress:
    """A bar over clips, with the seconds of video prepared in each second and the failures so far."""

    def __init__(self, total: int, done: int = 0):
        self.bar = tqdm.tqdm(desc="clips", unit=" clips", initial=done, total=total, smoothing=0.05)
        self.started = time.perf_counter()
        self.frames = self.failed = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def clip(self, outcomes: Mapping) -> None:
        """Counts one clip by what became of it (`workers.Prepared.outcomes`)."""
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
        frames = max((len(o.audio) for o in outcomes.values() if not isinstance(o, Failure)), default=0)
        self.add(1, frames, len(failures) > 0)

    def add(self, clips: int, frames: int, failed: int) -> None:
        """Counts clips, their frames, and how many of them failed."""
        self.frames += frames
        self.failed += failed
        rate = self.frames / FRAME_RATE / (time.perf_counter() - self.started)
        self.bar.set_postfix_str(f"{rate:.1f} video-s/s, {self.failed} failed", refresh=False)
        self.bar.update(clips)
