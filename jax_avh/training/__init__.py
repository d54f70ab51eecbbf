"""Training: steps, optimiser, state, checkpoints, the files of a run."""

from jax_avh.training.train import train

__all__ = ["train"]
