"""A task for pool processes, which import this module and so load no more than the program does."""

import os
import signal
import time

from extract.run.pool import PrepareTask


class CrashingTask(PrepareTask):
    """Crashes or hangs on some clips; all others are s4."""

    def __call__(self, clip):
        if clip.path == "crash.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if clip.path == "hang.mp4":
            time.sleep(600)
        return super().__call__(clip)
