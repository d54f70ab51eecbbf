"""Reproduces tables 1, 2, 4 and 5 of the paper from feature shards, next to the published numbers.

python -m launch.paper --root=shards --output=paper
python -m launch.paper --root=simulated --output=paper --flagfile=simulated/paper.flags
"""

from absl import flags

from apps.paper import paper
from jax_avh.configs import list_all_settings
from jax_avh.parallel import keep_programs
from launch import command

ROOT = flags.DEFINE_string("root", None, "Folder of <data set>/<untrimmed, trimmed>/<train, val, test>.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the runs, scores, tables and report.", required=True)


def main(settings: list[str]) -> None:
    """Parses the flags and prints the tables."""
    keep_programs()
    print(paper(ROOT.value, OUTPUT.value, settings))


if __name__ == "__main__":
    command.run(main, "--NAME.FIELD=VALUE", list_all_settings)
