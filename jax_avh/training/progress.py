"""Progress of a run: the rules that cut its learning rate and end it, and SIGTERM, which stops it early."""

import dataclasses
import math
import signal
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_avh.config import Config
from jax_avh.training.optimizer import cosine_rate

PLATEAU_THRESHOLD = 1e-4  # least relative improvement for the plateau rule; PyTorch's default
SMALLEST_CUT = 1e-8  # cuts of the learning rate by no more than this are skipped, as in PyTorch
EXCHANGE_SECONDS = 2.0  # time between two exchanges among processes; machines give notice 30 s before they stop
FEWEST_LOOKS, MOST_LOOKS = 8, 256  # calls between two exchanges; steps may suddenly take longer


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Progress of a run: plain numbers, saved with the arrays.

    Validation losses are means over frames, clips or examples, in nats.
    """

    epoch: int  # completed epochs; -1 = the losses before training are not measured yet
    step: int  # completed steps of the current epoch
    loss_sum: float  # sum of the losses of the items of those steps
    learning_rate: float
    best_loss: float = math.inf  # lowest validation loss so far
    stale_epochs: int = 0  # epochs since the lowest loss
    plateau_best: float = math.inf  # validation loss that the plateau rule compares with
    plateau_epochs: int = 0  # epochs without a relative improvement on it

    def after_steps(self, step: int, loss_sum: float) -> "RunProgress":
        """Returns the progress at a later step of the same epoch.

        Args:
          step: completed steps of the epoch.
          loss_sum: sum of the losses of all steps up to it.
        """
        return dataclasses.replace(self, step=step, loss_sum=loss_sum)

    def after_epoch(self, loss: float, config: Config) -> "RunProgress":
        """Returns the progress after an epoch with this validation loss.

        The plateau rule cuts the rate on the epoch after `plateau_patience` epochs without a relative improvement of
        1e-4. The best epoch is the one with the strictly lowest loss.

        PyTorch's rule, which the paper used, counts epochs of validation. optax's reduce_on_plateau counts steps
        instead, and keeps a scale in the optimiser's state.
        """
        better = loss < self.best_loss
        improved = loss < self.plateau_best * (1 - PLATEAU_THRESHOLD)
        plateau_epochs = 0 if improved else self.plateau_epochs + 1
        rate = self.learning_rate
        if config.optimizer.schedule == "cosine":
            rate = cosine_rate(config.optimizer, config.train.epochs, self.epoch + 1)
        elif plateau_epochs > config.optimizer.plateau_patience:
            plateau_epochs = 0
            cut = rate * config.optimizer.plateau_factor
            rate = cut if rate - cut > SMALLEST_CUT else rate
        return RunProgress(
            epoch=self.epoch + 1,
            step=0,
            loss_sum=0.0,
            learning_rate=rate,
            best_loss=min(loss, self.best_loss),
            stale_epochs=0 if better else self.stale_epochs + 1,
            plateau_best=loss if improved else self.plateau_best,
            plateau_epochs=plateau_epochs,
        )

    @staticmethod
    def before(config: Config) -> "RunProgress":
        """Returns the progress before anything has been measured."""
        rate = config.optimizer.learning_rate
        if config.optimizer.schedule == "cosine":
            rate = cosine_rate(config.optimizer, config.train.epochs, 0)
        return RunProgress(epoch=-1, step=0, loss_sum=0.0, learning_rate=rate)

    def finished(self, config: Config) -> bool:
        """Returns whether the run has reached its last epoch or stops early."""
        return self.epoch >= config.train.epochs or self.stale_epochs >= config.train.early_stop

    @property
    def best_epoch(self) -> int:
        """Epoch with the lowest validation loss."""
        return self.epoch - self.stale_epochs


class Preempted(Exception):  # noqa: N818 (no error)
    """Raised to stop a run before its end; it can resume later."""


class Preemption:
    """Context that notices SIGTERM, and counts the minutes to the next checkpoint; all processes agree on both.

    They exchange what they noticed every few calls of `reached`, about every two seconds: an exchange waits for all
    steps that the devices have in progress.
    """

    def __init__(self, checkpoint_minutes: float = 0.0):
        self.checkpoint_due = False  # whether `checkpoint_minutes` had passed at the last exchange; 0 = never
        self._seconds = 60 * checkpoint_minutes or math.inf
        self._saved = self._exchanged = time.monotonic()
        self._noticed = False
        self._looks = 0
        self._together = FEWEST_LOOKS
        self._before = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Returns whether it is time to stop; every process must call it equally often."""
        now = time.monotonic()
        due = now - self._saved >= self._seconds
        if jax.process_count() == 1:
            self.checkpoint_due = due
            return self._noticed
        self._looks += 1
        if self._looks < self._together:
            return False
        mine = np.array([self._noticed, due, now - self._exchanged], np.float32)
        noticed, dues, seconds = multihost_utils.process_allgather(mine).T
        self.checkpoint_due = bool(dues[0])  # the lead decides
        self._together = looks_between(self._looks, float(seconds[0]))
        self._looks = 0
        self._exchanged = now
        return bool(noticed.any())

    def saved(self) -> None:
        """Starts counting the minutes to the next checkpoint."""
        self._saved = time.monotonic()
        self.checkpoint_due = False

    def _notice(self, signum: int, frame: object) -> None:
        self._noticed = True


def looks_between(looks: int, seconds: float) -> int:
    """Returns how many calls the next exchange among processes should come after, given those before the last one."""
    wanted = looks * EXCHANGE_SECONDS / max(seconds, 1e-3)
    return int(np.clip(wanted, FEWEST_LOOKS, min(2 * looks, MOST_LOOKS)))
