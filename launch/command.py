"""What every command shares: flags parsed, the user's mistakes told in one sentence with exit status 2."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from extract.schema import InputError

USER_ERROR = 2  # exit status

flags.FLAGS.set_default("verbosity", logging.WARNING)  # the libraries' own running commentary stays off


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and calls `main`; its result is the exit status."""
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _guarded(main: Callable[[], int | None]) -> int | None:
    try:
        return main()
    except InputError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _complain("interrupted")


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
    except (flags.Error, KeyError, ValueError, TypeError) as error:  # config flags raise the plain ones
        sys.exit(_complain(error.args[0] if error.args else error))
    if len(rest) > 1:
        sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags are written --name=value"))
    return rest


def _complain(message: object) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return USER_ERROR
