"""Trains a grid of settings and prints a table of the results.

python -m launch.sweep --config.seed=0,1 --config.optimizer.learning_rate=1e-5,1e-4 --config.data.train=shards/train
    --config.data.val=shards/val --parallel=2 --workdir=sweep
"""

from absl import flags

from apps.sweep import format_results, format_trials, make_trials, sweep
from jax_avh.configs import list_all_settings
from launch import command

CONFIG_FILE = flags.DEFINE_string("config_file", None, "config.json of a run; its settings are the runs' defaults.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs; a stopped sweep resumes there.", required=True)
PARALLEL = flags.DEFINE_integer("parallel", 1, "Number of simultaneous runs.", lower_bound=1)
PRINT_JOBS = flags.DEFINE_boolean("print_jobs", False, "Print the runs' commands, one per line, and run nothing.")


def main(settings: list[str]) -> int:
    """Parses the flags and runs the sweep; returns exit status 1 if a run failed."""
    trials = make_trials(settings, WORKDIR.value, CONFIG_FILE.value)
    if PRINT_JOBS.value:
        print(format_trials(trials))
        return 0
    failed = sweep(trials, PARALLEL.value)
    print(format_results(trials))
    return int(bool(failed))


if __name__ == "__main__":
    command.run(main, "--config.FIELD=VALUE,VALUE,...", list_all_settings)
