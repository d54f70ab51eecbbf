"""Shows the contents of a shard or a set of shards and validates them.

Exits with status 1 if they are damaged, differ from --against, or have no clip that --against has.

python -m launch.inspect shards --against=npz
"""

from absl import flags

from avh_shards import UserError
from extract.check.shards import compare, format_comparison, inspect
from launch import command

AGAINST = flags.DEFINE_string("against", None, "Folder of official npz features to compare with, one file per clip.")


def main(paths: list[str]) -> int:
    """Parses the flags and prints a report; returns exit status 1 if they are damaged or do not equal --against."""
    if len(paths) > 1:
        raise UserError(f"{len(paths)} paths given; name one folder or shard")
    report = inspect(paths[0])
    print(report.text())
    if report.damage or not AGAINST.value:
        return int(bool(report.damage))
    compared = compare(paths[0], AGAINST.value)
    print("", format_comparison(compared), sep="\n")
    return 0 if compared and all(clip.agrees for clip in compared) else 1


if __name__ == "__main__":
    command.run(main, "DIR or FILE")
