"""Shards -> weights.

python -m launch.train --config.data.train=shards/train --config.data.val=shards/val --workdir=run
"""

from absl import flags

from jax_avh.config import Config
from jax_avh.training import train
from launch import command

CONFIG = command.define_config(Config())
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a killed run goes on there.", required=True)


def main() -> None:
    """Parses flags, trains."""
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    command.run(main)
