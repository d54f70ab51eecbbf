"""The commands, `avh X` or `python -m launch.X`. If a package is missing, one sentence says how to install it."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]
EXTRAS = {  # what pip installs for our packages
    "avh_shards": ".",
    "launch": ".",
    "extract": ".[extract]",
    "jax_avh": ".[jax]",
    "apps": ".[extract,jax]",
}
USER_ERROR = 2  # exit status


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an exception that nobody caught: a missing package in one sentence, anything else with its traceback."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or name in EXTRAS:
        sys.__excepthook__(kind, error, trace)
        return
    files = [Path(frame.filename) for frame in traceback.extract_tb(trace)]
    parts = [file.relative_to(ROOT).parts for file in files if file.is_relative_to(ROOT)]
    extra = EXTRAS[[part[0] for part in parts if part[0] in EXTRAS][-1]]  # of what imports it, if only indirectly
    print(f'error: the package {name} is not installed; run pip install -e "{extra}" (see BUILD.md)', file=sys.stderr)
    raise SystemExit(USER_ERROR)


sys.excepthook = explain  # imports fail before a command can catch anything
