"""Losses of the steps under way, and a progress bar of them."""

import collections
import math

import jax
import numpy as np
import tqdm

from jax_avh.data.batches import Plan

AHEAD = 2  # segments handed to the devices before the losses of an earlier one are fetched


class Meter:
    """Sums losses of a pass. They are fetched a little late, so that neither the devices nor the host wait for long.

    The bar shows the speed and the time left of the steps whose losses have come, and the latest loss.
    """

    def __init__(self, title: str, plan: Plan, unit: str, first: int = 0, shown: bool = True):
        self._plan, self._done = plan, first
        self._pending, self._sums = collections.deque(), []
        self._bar = tqdm.tqdm(
            desc=title,
            total=int(plan.border[-1]),
            initial=int(plan.border[first]),
            unit=f" {unit}",
            unit_scale=True,
            leave=False,
            disable=not shown,
        )

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, losses: jax.Array) -> None:
        """Adds the losses of a segment's steps, which the devices may not have computed yet."""
        self._pending.append(losses)
        while len(self._pending) > AHEAD:
            self._fetch()

    def take(self) -> float:
        """Waits for all steps; the sum of the losses since it was last taken."""
        while self._pending:
            self._fetch()
        total, self._sums = math.fsum(self._sums), []
        return total

    def _fetch(self) -> None:
        losses = np.asarray(self._pending.popleft(), np.float64)
        self._sums += losses.tolist()
        before, self._done = self._done, self._done + len(losses)
        latest = losses[-1] / self._plan.items[self._done - 1]
        self._bar.set_postfix_str(f"step {self._done}/{len(self._plan.items)}, loss {latest:.4f}", refresh=False)
        self._bar.update(int(self._plan.border[self._done] - self._plan.border[before]))
