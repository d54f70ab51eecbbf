"""`avh`: every command by one name. `avh extract ...` is `python -m launch.extract ...`; `avh` alone lists them."""

import ast
import os
import sys
from pathlib import Path

from avh_shards.text import format_table, nearest
from launch.command import HELP, complain

USAGE = "avh COMMAND --flag=value ...; avh COMMAND --help lists its flags"


def list_commands() -> dict[str, str]:
    """Returns what each command does, by its name: read from its file, since importing all of them takes seconds."""
    commands = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if f"python -m launch.{file.stem}" in text and file != Path(__file__):
            commands[file.stem] = text.partition("\n")[0]
    return commands


def main() -> None:
    """Becomes the command that the user names."""
    commands = list_commands()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(USAGE, "", format_table([*commands.items()]), sep="\n")
    elif name in commands:
        os.execv(sys.executable, [sys.executable, "-m", f"launch.{name}", *arguments])  # noqa: S606
    else:
        sys.exit(complain(f"{name}: unknown command{nearest(name, commands)}; avh alone lists them"))


if __name__ == "__main__":
    main()
