"""Audits shards: what their labels can be told from without looking, and which speakers and clips splits share.

python -m launch.audit --features=shards/train,shards/test --output=audit
"""

from absl import flags

from jax_avh.report.audit import write_audit
from launch import command

FEATURES = command.define_paths("features", "Folders of feature shards, comma-separated.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of audit.json and pictures.", required=True)


def main() -> None:
    """Parses flags, audits."""
    print(write_audit(FEATURES.value, OUTPUT.value))


if __name__ == "__main__":
    command.run(main)
