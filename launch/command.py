"""What every command shares: flags, their help, and one sentence with exit status 2 for a user's mistake."""

import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging

from avh_shards import UserError
from avh_shards.text import nearest, one_line
from launch import USER_ERROR

HOME = re.compile(r"(?<=[=,])~(?=[/,]|$)")  # a shell expands it at the start of a word only, not in --output=~/x
SETTING = re.compile(r"--?(no(?=config\.))?(\w[^=]*\.[^=]*)(=.*)?", re.DOTALL)  # --NAME.FIELD, --noconfig.FIELD
METHOD = re.compile(r"--config\.method(?:\.name)?=(.*)", re.DOTALL)
HELP = {"--help", "-help", "-h", "-?", "--helpfull", "-helpfull", "--helpshort", "-helpshort"}
WIDTH = 100  # columns of the help

T = TypeVar("T")
ListSettings = Callable[..., Mapping[str, Any]]  # (method) -> field -> its default `value`, and a `comment` on it


def run(
    main: Callable[..., int | None], arguments: str | None = None, list_settings: ListSettings | None = None
) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status.

    Args:
      main: the command.
      arguments: what a user gives besides flags, if anything ("VIDEO"); `main` receives the list of them.
      list_settings: lists the settings of training runs. `main` then receives the list of --NAME.FIELD=VALUE; without
        `arguments`, NAME is `config` and every FIELD is one of them.
    """

    def guarded(rest: list[str]) -> int | None:
        try:
            return main(rest[1:]) if arguments or list_settings else main()
        except UserError as error:
            return complain(error)
        except OSError as error:  # a full disk, a folder without permission, a file where a folder should be
            return complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        except KeyboardInterrupt:
            return complain("interrupted")
        except Exception:  # jax raises several kinds where its device is missing, and only once it is used
            if missing := _missing_device():
                return complain(missing)
            raise

    app.run(guarded, flags_parser=lambda argv: _parse(argv, main, arguments, list_settings))


def complain(message: object) -> int:
    """Prints a mistake of the user; returns the exit status."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USER_ERROR


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


def require(flag: flags.FlagHolder[T | None]) -> T:
    """Returns the value of a flag that only some uses of a command need; raises a UserError without it."""
    if flag.value is None:
        raise UserError(f"--{flag.name} is needed")
    return flag.value


class _Choices(flags.ArgumentParser):
    syntactic_help = "some values, separated by commas"

    def __init__(self, values: Sequence[str]):
        self.values = values

    def parse(self, argument: str | tuple) -> tuple[str, ...]:
        chosen = argument if isinstance(argument, tuple) else {part.strip() for part in argument.split(",")} - {""}
        if wrong := sorted(set(chosen) - set(self.values)):
            raise ValueError(f"{wrong[0]!r} is none of {', '.join(self.values)}")
        return tuple(sorted(chosen))


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


class _Paths(flags.ListParser):
    def parse(self, argument: str | list) -> list[str]:
        paths = super().parse(argument)
        if not paths or "" in paths:
            raise ValueError("names no path, or an empty one")
        return paths


def _parse(
    argv: list[str], main: Callable[..., int | None], arguments: str | None, list_settings: ListSettings | None
) -> list[str]:
    """Returns the name of the command, then the arguments and settings that `main` receives."""
    try:
        given = flags.FLAGS.read_flags_from_files(argv[1:])
        home = str(Path.home())
        given = [HOME.sub(lambda _: home, argument) if argument.startswith("-") else argument for argument in given]
        known = list_settings() if list_settings else {}
        settings, given = _split_settings(given, known) if known else ([], given)
        if HELP & set(given):
            methods = [found[1] for setting in settings if (found := METHOD.fullmatch(setting))]
            if list_settings and methods and not arguments:
                known = list_settings(methods[-1])
            print(_help(main, arguments, known))
            sys.exit(0)
        if not arguments:
            _check_settings(settings, known)
        rest = flags.FLAGS([argv[0], *given])
    except flags.UnrecognizedFlagError as error:
        known_flags = [flag.name for flag in _own_flags()]
        sys.exit(complain(f"--{error.flagname}: unknown flag{nearest(error.flagname, known_flags, '--')}"))
    except (flags.Error, UserError, OSError) as error:
        sys.exit(complain(str(error).removeprefix("ERROR:: ")))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # leaves out the libraries' running commentary
    if not arguments and len(rest) > 1:
        sys.exit(complain(f"unexpected argument {rest[1]!r}; flags are written --name=value"))
    if arguments and not known and len(rest) == 1:
        sys.exit(complain(f"no {arguments} given"))
    return [*rest, *settings]


def _split_settings(arguments: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the settings, written in any way that flags may be, as --NAME.FIELD=VALUE; and the other arguments."""
    settings, others = [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not (found := SETTING.fullmatch(argument)):
            others.append(argument)
            continue
        negated, name, value = found.groups()
        setting = known.get(name.partition(".")[2])
        if value is None and setting and type(setting.value) is bool:
            value = "=false" if negated else "=true"
        elif value is None and waiting and not waiting[0].startswith("--"):
            value = f"={waiting.pop(0)}"
        settings.append(f"--{name}{value or ''}")
    return settings, others


def _check_settings(settings: Sequence[str], known: Mapping[str, Any]) -> None:
    """Rejects what is not --config.FIELD=VALUE."""
    for setting in settings:
        name, equals, _ = setting.removeprefix("--").partition("=")
        field = name.removeprefix("config.")
        if field == name or field not in (*known, "method"):
            raise UserError(f"--{name}: unknown flag{nearest(field, known, '--config.')}")
        if not equals:
            raise UserError(f"--{name}: give it a value")


def _help(main: Callable[..., int | None], arguments: str | None, settings: Mapping[str, Any]) -> str:
    """What a command does, and its flags: its own and those that it shares with others, not the libraries'."""
    entries = [_described(flag) for flag in _own_flags()]
    entries += [(f"--config.{name}{_default(setting.value)}", setting.comment) for name, setting in settings.items()]
    text = [str(sys.modules[main.__module__].__doc__).strip(), ""]
    text += [f"arguments: {arguments}", ""] if arguments else []
    for head, purpose in entries:
        text += [f"  {head}", *textwrap.wrap(purpose, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(text)


def _own_flags() -> Iterator[flags.Flag]:
    """Flags of the running command: those of modules here."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.partition(".")[0] == __package__:
            yield from defined


def _described(flag: flags.Flag) -> tuple[str, str]:
    """A flag with its default, and what it is for."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    required = flag.default is None and flag.validators
    values = getattr(flag.parser, "enum_values", None) or getattr(flag.parser, "values", ())
    choice = f" Of {', '.join(values)}." if values else ""
    return f"{name}{_default(flag.default)}{' (required)' if required else ''}", f"{flag.help}{choice}"


def _default(value: object) -> str:
    return "" if value in (None, "", [], (), {}) else f"={value}"


def _missing_device() -> str:
    """Why jax has no device, if it was used and has none; "" otherwise."""
    if "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # a RuntimeError, or an AssertionError without a word
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({error})" if str(error) else ""
        return (
            f"JAX_PLATFORMS={wanted}: jax finds no such device here{reason}; install jax for it as BUILD.md says, or "
            "set JAX_PLATFORMS=cpu"
        )
    return ""
