"""Checkpoints of a run by Orbax: the latest, to go on from, and the best."""

import dataclasses
import logging
from pathlib import Path

from orbax.checkpoint import v1 as ocp

from extract.schema import InputError
from jax_avh.training.state import Progress, TrainState

policies = ocp.training.preservation_policies


class Checkpoints:
    """The folder of a run's checkpoints, numbered by training step."""

    def __init__(self, directory: Path):
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["val_loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, progress: Progress, val_loss: float | None = None) -> None:
        """Saves the run at a step, whole or not at all, unless it is there already; returns when it is on disk."""
        if (latest := self._checkpointer.latest) and latest.step == step:
            return
        metrics = None if val_loss is None else {"val_loss": val_loss}
        self._checkpointer.save(step, _tree(state, progress), metrics=metrics, force=True)

    def restore(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """The latest checkpoint, placed as `state` is; what was given if there is none.

        Raises:
          InputError: the checkpoint cannot be read or is of another network.
        """
        if self._checkpointer.latest is None:
            return state, progress
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax drops its other reads when one fails
        try:
            tree = self._checkpointer.load(None, _tree(state, progress))
        except (ValueError, KeyError, OSError) as error:
            raise InputError(f"the latest checkpoint cannot be restored: {' '.join(str(error).split())}") from error
        return tree["state"], Progress(**tree["progress"])

    def close(self) -> None:
        """Frees the folder."""
        self._checkpointer.close()


def _tree(state: TrainState, progress: Progress) -> dict:
    return {"state": state, "progress": dataclasses.asdict(progress)}
