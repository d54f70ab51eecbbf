"""Shows what is in a shard or a set of shards, and whether it is whole; the exit status is 1 if it is not.

python -m launch.inspect shards --against=npz
"""

from absl import flags

from avh_shards import UserError
from extract.check.shards import compare, format_comparison, inspect
from launch import command

AGAINST = flags.DEFINE_string("against", None, "Folder of official npz features to compare with, a file a clip.")


def main(paths: list[str]) -> int:
    """Parses flags, inspects."""
    if len(paths) > 1:
        raise UserError(f"name one folder or shard, not {len(paths)}")
    report = inspect(paths[0])
    print(report.text())
    if report.damage or not AGAINST.value:
        return int(bool(report.damage))
    compared = compare(paths[0], AGAINST.value)
    print("", format_comparison(compared), sep="\n")
    return 0 if compared and all(clip.agrees for clip in compared) else 1


if __name__ == "__main__":
    command.run(main, "DIR or FILE")
