"""What every command shares: flags parsed, the user's mistakes told in one sentence with exit status 2."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from extract.schema import InputError

USER_ERROR = 2  # exit status
HOME = re.compile(r"(?<=[=,])~(?=[/,]|$)")  # a shell expands it at the start of a word only, not in --output=~/x
METHOD = re.compile(r"^--?config\.method(=|$)")
FLAG_ERRORS = (flags.Error, KeyError, ValueError, TypeError, AttributeError, OSError)  # config flags raise plain ones


def run(main: Callable[..., int | None], arguments: str | None = None, known_only: bool = False) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status.

    Args:
      main: the command.
      arguments: what stands beside the flags, if anything may ("VIDEO"); `main` then gets the list of them.
      known_only: whether flags that are not defined count as such arguments; there may be none.
    """

    def guarded(rest: list[str]) -> int | None:
        try:
            return main(rest[1:]) if arguments else main()
        except InputError as error:
            return _complain(error)
        except OSError as error:  # a full disk, a folder without permission, a file where a folder should be
            return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        except KeyboardInterrupt:
            return _complain("interrupted")

    app.run(guarded, flags_parser=lambda argv: _parse(argv, arguments, known_only))


def define_config(make: Callable[[dict[str, str]], object]) -> flags.FlagHolder:
    """Defines --config.X flags, one for each field of a dataclass; --config.method=NAME brings the method's defaults.

    Args:
      make: makes the default configuration of some settings.
    """
    try:
        given = _given(sys.argv[1:])  # config flags look at the command line alone
        sys.argv[1:] = [METHOD.sub(r"--config.method.name\1", argument) for argument in given]
        return config_flags.DEFINE_config_dataclass("config", make(_given_method()))
    except FLAG_ERRORS as error:  # it looks at the command line at once
        sys.exit(_complain(f"--config flags: {_reason(error)}"))


def define_switch(name: str, values: Iterable[str], text: str) -> flags.FlagHolder:
    """Defines a flag that is false, true (also --name and --noname), or one of further values."""
    parser = flags.EnumParser(list(values), case_sensitive=False)
    flag = flags.Flag(parser, flags.ArgumentSerializer(), name, "false", text, boolean=True)
    return flags.DEFINE_flag(flag)


def define_choices(name: str, values: Sequence[str], text: str) -> flags.FlagHolder:
    """Defines a flag that takes some of these values, separated by commas; its value is a tuple, sorted."""
    return flags.DEFINE_flag(flags.Flag(_Choices(values), flags.ArgumentSerializer(), name, (), text))


def define_numbers(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag that takes NAME=NUMBER,...; its value is a dictionary."""
    return flags.DEFINE_flag(flags.Flag(_Numbers(), flags.ArgumentSerializer(), name, {}, text))


def define_paths(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag that must be given, and takes one path or several, separated by commas."""
    return flags.DEFINE_flag(flags.Flag(_Paths(), flags.ListSerializer(","), name, None, text), required=True)


def require(flag: flags.FlagHolder) -> None:
    """Refuses to go on without a flag that some uses of a command can do without."""
    if flag.value is None:
        raise InputError(f"--{flag.name} is needed")


class _Choices(flags.ArgumentParser):
    syntactic_help = "some values, separated by commas"

    def __init__(self, values: Sequence[str]):
        self.values = values

    def parse(self, argument: str | tuple) -> tuple[str, ...]:
        chosen = argument if isinstance(argument, tuple) else {part.strip() for part in argument.split(",")} - {""}
        if wrong := sorted(set(chosen) - set(self.values)):
            raise ValueError(f"{wrong[0]!r} is none of {', '.join(self.values)}")
        return tuple(sorted(chosen))

    def flag_type(self) -> str:
        return "comma separated values"


class _Numbers(flags.ArgumentParser):
    syntactic_help = "NAME=NUMBER, separated by commas"

    def parse(self, argument: str | dict) -> dict[str, float]:
        if isinstance(argument, dict):
            return argument
        numbers: dict[str, float] = {}
        for part in filter(str.strip, argument.split(",")):
            name, _, number = map(str.strip, part.rpartition("="))
            if name in numbers or not math.isfinite(float(number)):
                raise ValueError(f"{part.strip()!r} is no finite number, or the second of its name")
            numbers[name] = float(number)
        return numbers

    def flag_type(self) -> str:
        return "comma separated NAME=NUMBER"


class _Paths(flags.ListParser):
    def parse(self, argument: str | list) -> list[str]:
        paths = super().parse(argument)
        if not paths or "" in paths:
            raise ValueError("names no path, or an empty one")
        return paths


def _given(arguments: list[str]) -> list[str]:
    """The flags on the command line and in flag files, "~" being the user's home."""
    home, given = str(Path.home()), flags.FLAGS.read_flags_from_files(arguments)
    return [HOME.sub(lambda _: home, argument) if argument.startswith("-") else argument for argument in given]


def _given_method() -> dict[str, str]:
    text = "\n".join(sys.argv)
    found = re.findall(r"^--config\.method\.name[=\n](.*)$", text, re.MULTILINE)
    return {"method": found[-1]} if found else {}


def _parse(argv: list[str], arguments: str | None, known_only: bool) -> list[str]:
    try:
        rest = flags.FLAGS([argv[0], *_given(argv[1:])], known_only=known_only)
    except FLAG_ERRORS as error:
        sys.exit(_complain(_reason(error)))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # leaves out the libraries' running commentary
    if arguments and not known_only and len(rest) == 1:
        sys.exit(_complain(f"no {arguments} given"))
    if not arguments and len(rest) > 1:
        sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags are written --name=value"))
    return rest


def _reason(error: Exception) -> str:
    return str(error.args[0] if isinstance(error, KeyError) else error).removeprefix("ERROR:: ")


def _complain(message: object) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return USER_ERROR
