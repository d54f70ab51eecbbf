"""Training: mesh, state, checkpoints, loop."""

from jax_avh.training.loop import train
from jax_avh.training.state import Progress, TrainState

__all__ = ["Progress", "TrainState", "train"]
