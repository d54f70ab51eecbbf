"""Published settings of the trainable methods: one module per method, under its name, with a `get_config()`."""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from absl import flags

from avh_shards import UserError
from avh_shards.paths import AnyPath, as_path
from avh_shards.text import nearest, one_line
from jax_avh.config import Config, Setting, list_settings
from jax_avh.methods import METHODS

DEFAULT_METHOD = "avh_align"
PARSERS = {bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser()}


def trainable_methods() -> list[str]:
    """Returns the names of the methods that have a module in this package."""
    return [name for name in METHODS if importlib.util.find_spec(f"{__name__}.{name}")]


def get_config(method: str) -> Config:
    """Returns the published settings of a method.

    Raises:
      UserError: the method is unknown or not trainable.
    """
    if method not in (names := trainable_methods()):
        raise UserError(f"--config.method.name={method}: must be {' or '.join(names)}")
    return importlib.import_module(f"{__name__}.{method}").get_config()


def list_all_settings(method: str = DEFAULT_METHOD) -> dict[str, Setting]:
    """Returns all settings by dotted name: those of a method, with its defaults, then those of other methods only."""
    names = trainable_methods()
    found = list_settings(get_config(method))
    comment = f"Method to train: {', '.join(names)}. --config.method=NAME is short for this flag."
    found["method.name"] = found["method.name"]._replace(comment=comment)
    for other in names:
        for name, setting in list_settings(get_config(other)).items():
            found.setdefault(name, setting._replace(comment=f"{other}: {setting.comment}"))
    return found


def make_config(settings: Mapping[str, Any]) -> Config:
    """Returns a method's published configuration with some settings changed.

    Settings of other methods are checked but have no effect, because a sweep over methods may include them. The ranges
    of the method's own settings are checked when training starts.

    Args:
      settings: values by dotted field, possibly as text: {"optimizer.learning_rate": "1e-4"}; "method" is short for
        "method.name", which is avh_align if absent.

    Raises:
      UserError: a field or the method does not exist, a value is not of its field's type, or a setting of another
        method is out of range.
    """
    settings = {"method.name" if name == "method" else name: value for name, value in settings.items()}
    config = get_config(str(settings.get("method.name", DEFAULT_METHOD)))
    own, known = list_settings(config), list_all_settings(config.method.name)
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"--config.{name}: no such setting{nearest(name, known, '--config.')}")
        value = _typed(name, value, type(known[name].value))
        if name in own:
            section, _, field = name.rpartition(".")
            setattr(getattr(config, section) if section else config, field, value)
        elif value != "":
            known[name]._replace(value=value).check(name)
    return config


def _typed(name: str, value: object, kind: type) -> object:
    """Converts the value of a flag or of a JSON file to the type of its field."""
    try:
        if isinstance(value, str) and kind in PARSERS:
            return PARSERS[kind].parse(value)
        if kind is float and type(value) is int:
            return float(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"--config.{name}={value}: not a value of this setting") from error
    if type(value) is not kind:
        raise UserError(f"--config.{name}={value}: not a value of this setting")
    return value


def read_settings(path: AnyPath) -> dict[str, Any]:
    """Reads the settings of a run's config.json, in the form that `make_config` takes.

    Args:
      path: the file, local or a URL.

    Raises:
      UserError: the file is not a run's config.json, or its settings are invalid.
    """
    try:
        record = json.loads(as_path(path).read_text())
        record.pop("fingerprint", None)
        settings = {}
        for section, fields in record.items():
            nested = isinstance(fields, dict)
            settings |= {f"{section}.{name}": value for name, value in fields.items()} if nested else {section: fields}
        make_config(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a run's settings ({one_line(error)})") from error
    return settings
