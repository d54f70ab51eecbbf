"""Training: mesh, placement of the features, state, checkpoints, loop."""

from jax_avh.training.distributed import join_processes
from jax_avh.training.loop import train
from jax_avh.training.state import Progress, TrainState

__all__ = ["Progress", "TrainState", "join_processes", "train"]
