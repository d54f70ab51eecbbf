"""What every command shares: flags, their help, and one sentence with exit status 2 for a user's mistake."""

import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from avh_shards import UserError, nearest, one_line
from launch import USER_ERROR

HOME = re.compile(r"(?<=[=,])~(?=[/,]|$)")  # a shell expands it at the start of a word only, not in --output=~/x
METHOD = re.compile(r"^--?config\.method(=|$)")
FLAG_ERRORS = (flags.Error, KeyError, ValueError, TypeError, AttributeError, OSError)  # config flags raise plain ones
HELP = {"--help", "-help", "-h", "-?", "--helpfull", "-helpfull", "--helpshort", "-helpshort"}
WIDTH = 100  # columns of the help

Settings = Mapping[str, tuple[object, str]]  # field of the configuration -> its default, what it is for


def run(main: Callable[..., int | None], arguments: str | None = None, settings: Settings | None = None) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status.

    Args:
      main: the command.
      arguments: what a user gives besides flags, if anything ("VIDEO"); `main` receives the list of them.
      settings: fields of the configuration, for the help. A command that takes arguments receives --NAME.FIELD=VALUE
        among them, and there may be none.
    """

    def guarded(rest: list[str]) -> int | None:
        try:
            return main(rest[1:]) if arguments else main()
        except UserError as error:
            return _complain(error)
        except OSError as error:  # a full disk, a folder without permission, a file where a folder should be
            return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        except KeyboardInterrupt:
            return _complain("interrupted")
        except Exception:  # jax raises several kinds where its device is missing, and only once it is used
            if missing := _missing_device():
                return _complain(missing)
            raise

    app.run(guarded, flags_parser=lambda argv: _parse(argv, main, arguments, settings))


def define_config(make: Callable[[dict[str, str]], object], describe: Callable[[object], Settings]) -> flags.FlagHolder:
    """Defines --config.X flags, one for each field of a dataclass; --config.method=NAME brings the method's defaults.

    Args:
      make: makes the default configuration of some settings.
      describe: names the fields of a configuration.
    """
    try:
        given = _given(sys.argv[1:])  # config flags look only at the command line
        sys.argv[1:] = [METHOD.sub(r"--config.method.name\1", argument) for argument in given]
        config = make(_given_method())
        for name in re.findall(r"^--?config\.([^=\n]+)", "\n".join(sys.argv), re.MULTILINE):
            if name not in (fields := describe(config)):
                sys.exit(_complain(f"--config.{name}: unknown flag{nearest(name, fields, '--config.')}"))
        return config_flags.DEFINE_config_dataclass("config", config)
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
        raise UserError(f"--{flag.name} is needed")


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


def _parse(
    argv: list[str], main: Callable[..., int | None], arguments: str | None, settings: Settings | None
) -> list[str]:
    if HELP & set(argv[1:]):
        print(_help(main, arguments, settings or {}))
        sys.exit(0)
    takes_settings = bool(arguments and settings)
    try:
        rest = flags.FLAGS([argv[0], *_given(argv[1:])], known_only=takes_settings)
    except flags.UnrecognizedFlagError as error:
        sys.exit(_complain(_unknown_flag(error.flagname)))
    except FLAG_ERRORS as error:
        sys.exit(_complain(_reason(error)))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # leaves out the libraries' running commentary
    if takes_settings:  # all of them have a dot
        wrong = [part for part in rest[1:] if re.match(r"--?\w[^.=]*(=|$)", part)]
        if wrong:
            sys.exit(_complain(_unknown_flag(wrong[0].lstrip("-").partition("=")[0])))
    elif arguments and len(rest) == 1:
        sys.exit(_complain(f"no {arguments} given"))
    elif not arguments and len(rest) > 1:
        sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags are written --name=value"))
    return rest


def _help(main: Callable[..., int | None], arguments: str | None, settings: Settings) -> str:
    """What a command does, and its flags: its own and those that it shares with others, not the libraries'."""
    entries = [_described(flag) for flag in _own_flags() if flag.name != "config"]
    entries += [(f"--config.{name}{_default(value)}", text) for name, (value, text) in settings.items()]
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


def _unknown_flag(name: str) -> str:
    return f"--{name}: unknown flag{nearest(name, [flag.name for flag in _own_flags()], '--')}"


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


def _reason(error: Exception) -> str:
    return str(error.args[0] if isinstance(error, KeyError) else error).removeprefix("ERROR:: ")


def _complain(message: object) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USER_ERROR
