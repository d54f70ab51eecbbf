"""Writes a simulated corpus in the layout that launch.paper reads.

python -m launch.simulate --output=simulated
"""

from absl import flags

from apps.simulate import FLAG_FILE, simulate
from launch import command

OUTPUT = flags.DEFINE_string("output", None, "Folder for the corpus.", required=True)


def main() -> None:
    """Parses the flags, writes the corpus and prints the next command."""
    simulate(OUTPUT.value)
    root = OUTPUT.value
    print(f"next: python -m launch.paper --root={root} --output=paper --flagfile={root}/{FLAG_FILE}")


if __name__ == "__main__":
    command.run(main)
