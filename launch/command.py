"""Code shared by all commands: flags, their help, and one-line errors with exit status 2 for a user's mistake."""

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

HOME = re.compile(r"(?<=[=,])~(?=[/,]|$)")  # shells expand "~" only at the start of a word, not in --output=~/x
SETTING = re.compile(r"--?(no(?=config\.))?(\w[^=]*\.[^=]*)(=.*)?", re.DOTALL)  # --NAME.FIELD, --noconfig.FIELD
METHOD = re.compile(r"--config\.method(?:\.name)?=(.*)", re.DOTALL)
HELP = {"--help", "-help", "-h", "-?", "--helpfull", "-helpfull", "--helpshort", "-helpshort"}
WIDTH = 100  # columns of the help text

T = TypeVar("T")
ListSettings = Callable[..., Mapping[str, Any]]  # (method) -> {field: object with the default `value` and a `comment`}


def run(
    main: Callable[..., int | None],
    arguments: str | None = None,
    list_settings: ListSettings | None = None,
    instead: flags.FlagHolder | None = None,
) -> None:
    """Parses the flags, calls `main` and exits with the status that it returns.

    A UserError, an OSError, a missing accelerator and Ctrl-C each print one line and exit with USER_ERROR.

    Args:
      main: the command; receives a list if `arguments` or `list_settings` is given, else nothing.
      arguments: name of the positional arguments in messages ("VIDEO"), if the command takes any; `main` receives them.
      list_settings: returns the settings of training runs, if the command takes them; `main` then also receives them as
        --NAME.FIELD=VALUE. Without `arguments`, NAME must be `config` and FIELD a listed setting.
      instead: flag that may be given instead of `arguments`.
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
        except Exception:  # for a missing device, jax raises errors of several types, and only on first use
            if missing := _missing_device():
                return complain(missing)
            raise

    app.run(guarded, flags_parser=lambda argv: _parse(argv, main, arguments, list_settings, instead))


def complain(message: object) -> int:
    """Prints a mistake of the user to standard error and returns the exit status, USER_ERROR."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USER_ERROR


def define_switch(name: str, values: Iterable[str], text: str) -> flags.FlagHolder:
    """Defines a flag that is false, true (also --NAME and --noNAME) or another of the given values.

    Args:
      name: name of the flag.
      values: all values that it may take, "false" and "true" among them.
      text: its help.
    """
    parser = flags.EnumParser(list(values), case_sensitive=False)
    flag = flags.Flag(parser, flags.ArgumentSerializer(), name, "false", text, boolean=True)
    return flags.DEFINE_flag(flag)


def define_choices(name: str, values: Sequence[str], text: str) -> flags.FlagHolder:
    """Defines a flag that takes any of the given values, separated by commas; its value is a sorted tuple."""
    return flags.DEFINE_flag(flags.Flag(_Choices(values), flags.ArgumentSerializer(), name, (), text))


def define_numbers(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag that takes NAME=NUMBER,...; its value is a dictionary of finite numbers by name."""
    return flags.DEFINE_flag(flags.Flag(_Numbers(), flags.ArgumentSerializer(), name, {}, text))


def define_rates(name: str, default: Sequence[float], text: str) -> flags.FlagHolder:
    """Defines a flag that takes rates strictly between 0 and 1, separated by commas; its value is a list."""
    return flags.DEFINE_flag(flags.Flag(_Rates(), flags.ListSerializer(","), name, list(default), text))


def define_paths(name: str, text: str) -> flags.FlagHolder:
    """Defines a required flag that takes one or more paths, separated by commas; its value is a list."""
    return flags.DEFINE_flag(flags.Flag(_Paths(), flags.ListSerializer(","), name, None, text), required=True)


def require(flag: flags.FlagHolder[T | None]) -> T:
    """Returns the value of a flag that only some uses of a command require.

    Raises:
      UserError: the flag is not set.
    """
    if flag.value is None:
        raise UserError(f"--{flag.name}: required here; add it")
    return flag.value


def check_needed(needed: flags.FlagHolder, *dependent: flags.FlagHolder) -> None:
    """Checks that flags which have no effect without another are left at their defaults if it is not given.

    Raises:
      UserError: one of them is set.
    """
    if not needed.value and (given := [flag.name for flag in dependent if flag.value != flag.default]):
        raise UserError(f"--{given[0]}: needs --{needed.name}; add it, or leave out --{given[0]}")


class _Choices(flags.ArgumentParser):
    syntactic_help = "values, separated by commas"

    def __init__(self, values: Sequence[str]):
        self.values = values

    def parse(self, argument: str | tuple) -> tuple[str, ...]:
        chosen = argument if isinstance(argument, tuple) else {part.strip() for part in argument.split(",")} - {""}
        if wrong := sorted(set(chosen) - set(self.values)):
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(self.values)}")
        return tuple(sorted(chosen))


class _Numbers(flags.ArgumentParser):
    syntactic_help = "NAME=NUMBER, separated by commas"

    def parse(self, argument: str | dict) -> dict[str, float]:
        if isinstance(argument, dict):
            return argument
        numbers: dict[str, float] = {}
        for part in filter(str.strip, argument.split(",")):
            name, _, text = map(str.strip, part.rpartition("="))
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if name in numbers or not math.isfinite(number):
                raise ValueError(f"{part.strip()!r} is not a finite number, or repeats a name")
            numbers[name] = number
        return numbers


class _Rates(flags.ArgumentParser):
    syntactic_help = "rates, separated by commas"

    def parse(self, argument: str | list) -> list[float]:
        try:
            rates = [float(part) for part in argument.split(",")] if isinstance(argument, str) else argument
        except ValueError:
            rates = []
        if not rates or not all(0 < rate < 1 for rate in rates):
            raise ValueError("not a list of numbers between 0 and 1; write 0.01 for one per cent")
        return rates


class _Paths(flags.ListParser):
    def parse(self, argument: str | list) -> list[str]:
        paths = super().parse(argument)
        if not paths or "" in paths:
            raise ValueError("names no path or an empty one; list paths, separated by commas")
        return paths


def _parse(
    argv: list[str],
    main: Callable[..., int | None],
    arguments: str | None,
    list_settings: ListSettings | None,
    instead: flags.FlagHolder | None,
) -> list[str]:
    """Returns the name of the command, followed by the arguments and settings that `main` receives."""
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
        logging.set_verbosity(logging.WARNING)  # hides the libraries' progress messages
    if not arguments and len(rest) > 1:
        sys.exit(complain(f"unexpected argument {rest[1]!r}; write flags as --name=value"))
    if arguments and not known and len(rest) == 1 and (instead is None or not instead.value):
        sys.exit(complain(f"no {arguments} given"))
    return [*rest, *settings]


def _split_settings(arguments: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Splits arguments into settings, normalised to --NAME.FIELD=VALUE from any form that flags take, and the rest."""
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
    """Raises a UserError for a setting that is not --config.FIELD=VALUE with a known FIELD."""
    for setting in settings:
        name, equals, _ = setting.removeprefix("--").partition("=")
        field = name.removeprefix("config.")
        if field == name or field not in (*known, "method"):
            raise UserError(f"--{name}: unknown flag{nearest(field, known, '--config.')}")
        if not equals:
            raise UserError(f"--{name}: no value given; write --{name}=VALUE")


def _help(main: Callable[..., int | None], arguments: str | None, settings: Mapping[str, Any]) -> str:
    """Returns the help text: the command's docstring, its flags, own and shared, and its settings.

    The flags of libraries are left out.
    """
    entries = [_described(flag) for flag in _own_flags()]
    entries += [(f"--config.{name}{_default(setting.value)}", setting.comment) for name, setting in settings.items()]
    text = [str(sys.modules[main.__module__].__doc__).strip(), ""]
    text += [f"arguments: {arguments}", ""] if arguments else []
    for head, purpose in entries:
        text += [f"  {head}", *textwrap.wrap(purpose, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(text)


def _own_flags() -> Iterator[flags.Flag]:
    """Yields the flags of the running command, which modules of this package define."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.partition(".")[0] == __package__:
            yield from defined


def _described(flag: flags.Flag) -> tuple[str, str]:
    """Returns a flag with its default, and its help."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    required = flag.default is None and flag.validators
    values = getattr(flag.parser, "enum_values", None) or getattr(flag.parser, "values", ())
    choice = f" Choices: {', '.join(values)}." if values else ""
    return f"{name}{_default(flag.default)}{' (required)' if required else ''}", f"{flag.help}{choice}"


def _default(value: object) -> str:
    return "" if value in (None, "", [], (), {}) else f"={value}"


def _missing_device() -> str:
    """Returns why jax has no device if it was imported and has none, else ""."""
    if "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # a RuntimeError, or an AssertionError without a message
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({error})" if str(error) else ""
        return (
            f"JAX_PLATFORMS={wanted}: jax finds no such device here{reason}; install jax for it (see BUILD.md), or "
            "set JAX_PLATFORMS=cpu"
        )
    return ""
