"""A task for processes of a pool, which import this module: it loads no more than the program does."""

import os
import signal
import time

from extract.run.pool import PrepareTask


class CrashingTask(PrepareTask):
    """Some clips take their process down or hang; the others are all s4."""

    def __call__(self, clip):
        if clip.path == "crash.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if clip.path == "hang.mp4":
            time.sleep(600)
        return super().__call__(clip)
