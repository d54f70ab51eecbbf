"""Training: steps, optimiser, checkpoints, logs and the workdir of a run."""

from jax_avh.training.train import train

__all__ = ["train"]
