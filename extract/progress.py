"""How far a run is: clips, rates, failures, time left."""

import time

import tqdm

from avh_shards import FRAME_RATE


class Progress:
    """A bar over clips, with the seconds of video prepared in each second and the failures so far."""

    def __init__(self, total: int, done: int = 0, title: str = "clips"):
        self.bar = tqdm.tqdm(desc=title, unit=" clips", initial=done, total=total, smoothing=0.05, mininterval=1.0)
        self.started = time.perf_counter()
        self.frames = self.failed = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, clips: int, frames: int, failed: int) -> None:
        """Counts clips, their frames, and how many of them failed."""
        self.frames += frames
        self.failed += failed
        rate = self.frames / FRAME_RATE / (time.perf_counter() - self.started)
        self.bar.set_postfix_str(f"{rate:.1f} video-s/s, {self.failed} failed", refresh=False)
        self.bar.update(clips)
