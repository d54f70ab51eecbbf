"""Audits shards for shortcuts that reveal their labels, and for speakers and clips that splits share.

python -m launch.audit --features=shards/train,shards/test --output=audit
"""

from absl import flags

from jax_avh.report.audit import write_audit
from launch import command

FEATURES = command.define_paths("features", "Folders of feature shards, comma-separated.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for audit.json and pictures.", required=True)


def main() -> None:
    """Parses the flags and prints the audit."""
    print(write_audit(FEATURES.value, OUTPUT.value))


if __name__ == "__main__":
    command.run(main)
