"""Trains a method on shards and saves its weights.

python -m launch.train --config.data.train=shards/train --config.data.val=shards/val --workdir=run
python -m launch.train --config.method=avh_sup ...
python -m launch.train --config_file=run/config.json --config.seed=1 --workdir=again
"""

from typing import cast

from absl import flags

from jax_avh.configs import list_all_settings, make_config, read_settings
from jax_avh.methods import METHODS, TrainableMethod
from jax_avh.parallel import keep_programs
from jax_avh.training import train
from launch import command
from launch.cluster import join

CONFIG_FILE = flags.DEFINE_string("config_file", None, "config.json of a run to repeat; flags override its settings.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or URL of the run; a stopped run resumes there.", required=True)
PROFILE = flags.DEFINE_boolean("profile", False, "Trace some steps with jax.profiler into WORKDIR/profile.")


def main(settings: list[str]) -> None:
    """Parses the flags and trains the method."""
    defaults = read_settings(CONFIG_FILE.value) if CONFIG_FILE.value else {}
    config = make_config(defaults | dict(flag.removeprefix("--config.").split("=", 1) for flag in settings))
    join()
    keep_programs()
    method = cast(TrainableMethod, METHODS[config.method.name])
    train(method, config, WORKDIR.value, PROFILE.value)


if __name__ == "__main__":
    command.run(main, list_settings=list_all_settings)
