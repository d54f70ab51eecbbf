"""The program `avh`, which runs any command: `avh extract ...` equals `python -m launch.extract ...`.

Without arguments it lists the commands.
"""

import ast
import os
import sys
from pathlib import Path

from avh_shards.text import format_table, nearest
from launch.command import HELP, complain

USAGE = "avh COMMAND --flag=value ...; avh COMMAND --help lists its flags"


def list_commands() -> dict[str, str]:
    """Returns the first line of each command's docstring by name, read without the imports, which take seconds."""
    commands = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if f"python -m launch.{file.stem}" in text and file != Path(__file__):
            commands[file.stem] = text.partition("\n")[0]
    return commands


def main() -> None:
    """Replaces this process by the command that the user names, or lists the commands."""
    commands = list_commands()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(USAGE, "", format_table([*commands.items()]), sep="\n")
    elif name in commands:
        os.execv(sys.executable, [sys.executable, "-m", f"launch.{name}", *arguments])  # noqa: S606
    else:
        sys.exit(complain(f"{name}: unknown command{nearest(name, commands)}; run avh to list them"))


if __name__ == "__main__":
    main()
