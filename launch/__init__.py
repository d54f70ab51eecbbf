"""The commands, run as `avh X` or `python -m launch.X`; if a package is missing, they print how to install it."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]
EXTRAS = {  # what to install with pip for each package of this project
    "avh_shards": ".",
    "launch": ".",
    "extract": ".[extract]",
    "jax_avh": ".[jax]",
    "apps": ".[extract,jax]",
}
USER_ERROR = 2  # exit status


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an uncaught exception: a missing package as one line, anything else with its traceback.

    Args:
      kind: the exception's type.
      error: the exception.
      trace: its traceback.

    Raises:
      SystemExit: a package of another project is missing.
    """
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    files = [Path(frame.filename) for frame in traceback.extract_tb(trace)]
    packages = [file.relative_to(ROOT).parts[0] for file in files if file.is_relative_to(ROOT)]
    importing = [package for package in packages if package in EXTRAS]
    if not name or name in EXTRAS or not importing:
        sys.__excepthook__(kind, error, trace)
        return
    extra = EXTRAS[importing[-1]]  # of the innermost package that imports it
    print(f'error: the package {name} is not installed; run pip install -e "{extra}" (see BUILD.md)', file=sys.stderr)
    raise SystemExit(USER_ERROR)


sys.excepthook = explain  # imports fail before a command can catch the error
