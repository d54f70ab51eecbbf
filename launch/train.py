"""Shards -> weights.

python -m launch.train --config.data.train=shards/train --config.data.val=shards/val --workdir=run
python -m launch.train --config.method=avh_sup ...
"""

from absl import flags

from avh_shards import UserError
from jax_avh.config import describe, make_config
from jax_avh.training import join_processes, train
from launch import command

CONFIG = command.define_config(make_config, describe)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a stopped run goes on there.", required=True)
PROFILE = flags.DEFINE_boolean("profile", False, "Trace some steps into WORKDIR/profile (jax.profiler).")
DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "One of many processes; Cloud TPU and SLURM say the rest.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where nothing else tells it.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are, likewise.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which one this is, from 0, likewise.")


def main() -> None:
    """Parses flags, trains."""
    cluster = {flag.name: flag.value for flag in (COORDINATOR, PROCESSES, PROCESS)}
    if DISTRIBUTED.value:
        join_processes(*cluster.values())
    elif given := [name for name, value in cluster.items() if value is not None]:
        raise UserError(f"--{given[0]}: needs --distributed; add it, or leave out what describes the cluster")
    train(CONFIG.value, WORKDIR.value, PROFILE.value)


if __name__ == "__main__":
    command.run(main, settings=describe(CONFIG.default))
