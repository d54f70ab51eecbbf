"""Configuration of a training run. Every field is a flag: --config.data.batch_frames=2048.

A method's own section is in its module, its published settings are in `jax_avh/configs`.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, TypeVar

from avh_shards import UserError

SETTINGS, RESULT = "config.json", "result.json"  # in the workdir of a run

BOUNDARIES = ("zeros", "mask")
OPTIMIZERS = ("adam", "adamw", "lion", "sgd")

T = TypeVar("T")


class Rule(NamedTuple):
    """Which values a field may have."""

    allows: Callable[[Any], bool]
    sentence: str


def rules(default: T, *among: Rule) -> T:
    """Declares a field whose values must keep some rules."""
    return dataclasses.field(default=default, metadata={"rules": among})


def given(what: str) -> Rule:
    """A text that must not be empty."""
    return Rule(lambda value: value != "", f"is missing: {what}")


def at_least(least: int) -> Rule:
    """A lower bound."""
    return Rule(lambda value: value >= least, f"must be at least {least}")


def at_most(most: int) -> Rule:
    """An upper bound, above what anyone needs: a mistyped number is not to be compiled for hours, or to fill memory."""
    return Rule(lambda value: value <= most, f"must be at most {most}")


def one_of(values: Collection[str]) -> Rule:
    """A choice."""
    return Rule(values.__contains__, f"must be {' or '.join(values)}")


MOST = at_most(2**31 - 1)  # of whole numbers without another bound
NOT_NEGATIVE = Rule(lambda value: 0 <= value < float("inf"), "must not be negative")
POSITIVE = Rule(lambda value: 0 < value < float("inf"), "must be positive")
FACTOR = Rule(lambda value: 0 < value <= 1, "must be in (0, 1]")
SEED = Rule(lambda value: 0 <= value < 2**32, "must be at least 0 and below 2**32")
FOLDER = given("a folder of feature shards")


@dataclasses.dataclass
class MethodConfig:
    """What is trained: --config.method=avh_sup is short for --config.method.name=avh_sup. Each method adds its own."""

    name: str = ""

    def weights_read(self) -> list[str]:
        """Returns the weights of other runs that a training reads: .safetensors files, or workdirs."""
        return []


Method = TypeVar("Method", bound=MethodConfig)


@dataclasses.dataclass
class DataConfig:
    """Which frames, in which order."""

    train: str = rules("", FOLDER)  # folder of feature shards; avh_align leaves out clips labelled fake
    val: str = rules("", FOLDER)  # folder of feature shards, likewise
    train_clips: int = rules(0, NOT_NEGATIVE, MOST)  # of the training set that are used, drawn by the seed; 0 = all
    # Visual frames of one step, over all devices; avh_sup fills them with whole clips. At most 111 hours, and what fits
    # the memory.
    batch_frames: int = rules(1024, at_least(1), at_most(10_000_000))
    # Of avh_sup: clips of one step at most, 1 = the official way; 0 = as many as fit.
    batch_clips: int = rules(0, NOT_NEGATIVE, MOST)
    # Examples of one step, over all devices: rawnet2's cuts of 4 s, mds' chunks of 1 s, avad's sequences.
    batch_examples: int = rules(16, at_least(1), at_most(65_536))
    shuffle: bool = True  # new order of the clips every epoch, from the seed; False = the shards' order
    # Where features are kept: "stream" = nowhere, read ahead from the shards; "host" = in host memory (local shards are
    # memory-mapped); "device" = in the devices' memory, each holding a part; "auto" = by their size.
    placement: str = rules("auto", one_of(("auto", "stream", "host", "device")))


@dataclasses.dataclass
class ModelConfig:
    """The network's input, and the alignment task."""

    # Audio frames on each side of a visual frame that compete in the softmax; at most ten seconds.
    tau: int = rules(15, at_least(1), at_most(250))
    normalise: bool = True  # features to unit length, frame by frame; False = the ablation of the paper's table 4
    # Audio frames outside the clip: "zeros" = zero vectors that compete, "mask" = left out.
    boundary: str = rules("zeros", one_of(BOUNDARIES))


@dataclasses.dataclass
class OptimizerConfig:
    """The optimiser, and the learning rate's schedule."""

    learning_rate: float = rules(1e-5, POSITIVE)
    weight_decay: float = rules(0.0, NOT_NEGATIVE)  # of every parameter, added to its gradient
    # "plateau": cut when the validation loss rests; "cosine": from epoch to epoch, up to the learning rate in
    # `warmup_epochs`, then down to 0 in those that are left of train.epochs.
    schedule: str = rules("plateau", one_of(("plateau", "cosine")))
    warmup_epochs: int = rules(0, NOT_NEGATIVE, MOST)
    plateau_factor: float = rules(0.1, FACTOR)  # the learning rate is multiplied by this ...
    # ... on the epoch after so many without a relative improvement of 1e-4.
    plateau_patience: int = rules(5, NOT_NEGATIVE, MOST)
    # "adam"; "adamw" or "lion", which decay the parameters themselves; or "sgd", without momentum.
    name: str = rules("adam", one_of(OPTIMIZERS))
    # Largest norm of the gradient of all parameters, which is scaled down to it; 0 = any.
    clip_norm: float = rules(0.0, NOT_NEGATIVE)


@dataclasses.dataclass
class TrainConfig:
    """How long, how exactly, and how often the state is saved."""

    epochs: int = rules(500, NOT_NEGATIVE, MOST)  # at most
    early_stop: int = rules(10, at_least(1), MOST)  # epochs without a strictly lower validation loss that end the run
    # Between checkpoints within an epoch; each epoch's end has one anyway.
    checkpoint_steps: int = rules(1000, at_least(1), MOST)
    # Of the matrix products: "float32", or "bfloat16" (parameters, norms, softmax and Adam stay float32); or "float64"
    # for everything, to check other runs by (it needs JAX_ENABLE_X64=1).
    precision: str = rules("float32", one_of(("float32", "bfloat16", "float64")))


@dataclasses.dataclass
class Config(Generic[Method]):
    """Everything that a training run depends on. The defaults are the official AVH-Align settings, shuffling aside."""

    method: Method
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    init: str = ""  # weights of the same kind to start from (.safetensors); "" = random, from the seed
    seed: int = rules(0, SEED)  # of the initial weights and of the clips' order


class Setting(NamedTuple):
    """A field of a configuration."""

    value: Any  # of type str, bool, int or float
    rules: tuple[Rule, ...]
    comment: str  # what it is for

    def check(self, name: str) -> None:
        """Raises a UserError that names the flag, if the value breaks a rule."""
        for allows, sentence in self.rules:
            if not allows(self.value):
                raise UserError(f"--config.{name}{f'={self.value}:' if self.value != '' else ''} {sentence}")


def list_settings(config: Any) -> dict[str, Setting]:
    """Returns the fields of a configuration, or of a section of it, by their dotted names."""
    found = {}
    comments = _comments(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": setting for name, setting in list_settings(value).items()}
        else:
            found[field.name] = Setting(value, field.metadata.get("rules", ()), comments.get(field.name, ""))
    return found


@functools.cache
def _comments(kind: type) -> dict[str, str]:
    """Returns the comment above or behind each field of a class, as its source has it."""
    comments, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("#")
        if field := re.match(r"    (\w+):", code):
            comments[field[1]] = " ".join([*above, comment.strip()]).strip()
        above = [*above, comment.strip()] if comment and not code.strip() else []
    return comments


def check_config(config: Config) -> None:
    """Rejects settings that could only fail later or mean nothing.

    Raises:
      UserError: naming the flag at fault.
    """
    for name, setting in list_settings(config).items():
        setting.check(name)


def complete_record(record: dict[str, Any], config: Config) -> dict[str, Any]:
    """Returns what a run's config.json would hold if this version had written it.

    Settings that are newer than the file have their defaults; those of other methods, which it held once, are left out.

    Args:
      record: of the file.
      config: of a run of the same method.

    Raises:
      LookupError, TypeError, AttributeError: it is not a run's.
    """
    defaults = dataclasses.asdict(Config(type(config.method)()))
    complete = {}
    for section, fields in defaults.items():
        if isinstance(fields, dict):
            kept = {name: value for name, value in record[section].items() if section != "method" or name in fields}
            complete[section] = fields | kept
    return record | complete
