"""Configuration of a training run. Every field is a flag, such as --config.data.batch_frames=2048.

Each method defines its own section in its module, and its published settings in `jax_avh/configs`.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, TypeVar

from avh_shards import UserError

SETTINGS, RESULT = "config.json", "result.json"  # files in the workdir of a run

BOUNDARIES = ("zeros", "mask")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16_3x", "bfloat16", "float64")
OPTIMIZERS = ("adam", "adamw", "lion", "sgd")

T = TypeVar("T")


class Rule(NamedTuple):
    """Condition on the values of a field."""

    allows: Callable[[Any], bool]
    sentence: str


def rules(default: T, *among: Rule) -> T:
    """Declares a dataclass field with a default and the rules for its values."""
    return dataclasses.field(default=default, metadata={"rules": among})


def given(what: str) -> Rule:
    """Returns the rule that a text must not be empty; `what` says what to give."""
    return Rule(lambda value: value != "", f"is missing; give {what}")


def at_least(least: int) -> Rule:
    """Returns the rule of a lower bound."""
    return Rule(lambda value: value >= least, f"must be at least {least}")


def at_most(most: int) -> Rule:
    """Returns the rule of an upper bound, which keeps a mistyped number from compiling for hours or filling memory."""
    return Rule(lambda value: value <= most, f"must be at most {most}")


def one_of(values: Collection[str]) -> Rule:
    """Returns the rule that a text must be one of some values."""
    return Rule(values.__contains__, f"must be {' or '.join(values)}")


MOST = at_most(2**31 - 1)  # upper bound of all other integers
NOT_NEGATIVE = Rule(lambda value: 0 <= value < float("inf"), "must not be negative")
POSITIVE = Rule(lambda value: 0 < value < float("inf"), "must be positive")
FACTOR = Rule(lambda value: 0 < value <= 1, "must be in (0, 1]")
SEED = Rule(lambda value: 0 <= value < 2**32, "must be at least 0 and below 2**32")
FOLDER = given("a folder of feature shards")


@dataclasses.dataclass
class MethodConfig:
    """Method to train, with its own settings; --config.method=NAME is short for --config.method.name=NAME."""

    name: str = ""

    def weights_read(self) -> list[str]:
        """Returns the paths of the weights of other runs that training reads: .safetensors files or workdirs."""
        return []


Method = TypeVar("Method", bound=MethodConfig)


@dataclasses.dataclass
class DataConfig:
    """Training and validation data, and their batches."""

    train: str = rules("", FOLDER)  # Folder of feature shards to train on; avh_align uses clips labelled real
    val: str = rules("", FOLDER)  # Folder of feature shards to validate on, likewise
    cache: str = ""  # Local folder for copies of shards at a URL, which later runs use again; "" = none are made
    train_clips: int = rules(0, NOT_NEGATIVE, MOST)  # Training clips to use, drawn by the seed; 0 = all
    # Visual frames of one step, over all devices; avh_sup fills them with whole clips. At most 111 hours, and no more
    # than memory can hold.
    batch_frames: int = rules(1024, at_least(1), at_most(10_000_000))
    # Most clips of one step of avh_sup; 1 = as in the official program, 0 = as many as fit.
    batch_clips: int = rules(0, NOT_NEGATIVE, MOST)
    # Examples of one step, over all devices: cuts of 4 s of rawnet2, chunks of 1 s of mds, sequences of avad.
    batch_examples: int = rules(16, at_least(1), at_most(65_536))
    # Streams that the clips are divided into; each is shuffled by itself, and adds an equal share to every batch. If it
    # is a multiple of the devices, they can keep features in their memory.
    streams: int = rules(1, at_least(1), at_most(65_536))
    shuffle: bool = True  # New order of the clips every epoch, from the seed; False = the order of the shards
    # Where features are kept: "stream" = nowhere, they are read ahead from the shards; "host" = in host memory (local
    # shards are memory-mapped); "device" = in the devices' memory, with some streams on each; "auto" = chosen by size.
    placement: str = rules("auto", one_of(("auto", "stream", "host", "device")))


@dataclasses.dataclass
class ModelConfig:
    """Input of the network, and the alignment task."""

    # Audio frames on each side of a visual frame that compete in the softmax; at most ten seconds.
    tau: int = rules(15, at_least(1), at_most(250))
    normalise: bool = True  # Scale features to unit length, frame by frame; False = the ablation of the paper's table 4
    # Audio frames outside the clip: "zeros" = zero vectors that compete, "mask" = left out.
    boundary: str = rules("zeros", one_of(BOUNDARIES))


@dataclasses.dataclass
class OptimizerConfig:
    """Optimiser and schedule of the learning rate."""

    learning_rate: float = rules(1e-5, POSITIVE)
    # Decay of every parameter: added to its gradient by adam and sgd, to its update by adamw and lion.
    weight_decay: float = rules(0.0, NOT_NEGATIVE)
    # "plateau" = cut when the validation loss stops improving; "cosine" = by epoch, up to the learning rate over
    # `warmup_epochs`, then down to 0 over the rest of train.epochs.
    schedule: str = rules("plateau", one_of(("plateau", "cosine")))
    warmup_epochs: int = rules(0, NOT_NEGATIVE, MOST)
    plateau_factor: float = rules(0.1, FACTOR)  # Factor on the learning rate at each cut; 1 = no cuts
    # Epochs without a relative improvement of 1e-4 that are allowed; the next one cuts the learning rate.
    plateau_patience: int = rules(5, NOT_NEGATIVE, MOST)
    # "adam"; "adamw" or "lion", which decay the parameters directly; or "sgd", without momentum.
    name: str = rules("adam", one_of(OPTIMIZERS))
    # Largest norm of the gradient of all parameters, to which larger gradients are scaled down; 0 = no limit.
    clip_norm: float = rules(0.0, NOT_NEGATIVE)


@dataclasses.dataclass
class TrainConfig:
    """Length of a run, its checkpoints and its precision."""

    epochs: int = rules(500, NOT_NEGATIVE, MOST)  # Most epochs of the run
    # Epochs without a strictly lower validation loss after which the run ends.
    early_stop: int = rules(10, at_least(1), MOST)
    # Steps between checkpoints within an epoch, 0 = only by time; each epoch also ends with one.
    checkpoint_steps: int = rules(1000, NOT_NEGATIVE, MOST)
    # Minutes between checkpoints within an epoch, 0 = only by steps; every process saves after the same step.
    checkpoint_minutes: float = rules(10.0, NOT_NEGATIVE)
    # Precision of the matrix products; parameters, norms, softmax and Adam stay float32. "float32"; faster,
    # "tensorfloat32" on NVIDIA GPUs or "bfloat16_3x" on TPUs; fastest, "bfloat16"; or "float64" for everything, to
    # check other runs by (it needs JAX_ENABLE_X64=1).
    precision: str = rules("float32", one_of(PRECISIONS))


@dataclasses.dataclass
class Config(Generic[Method]):
    """All settings of a training run. The defaults are the official AVH-Align settings, except for shuffling."""

    method: Method
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    init: str = ""  # Weights of the same kind to start from (.safetensors); "" = random, from the seed
    seed: int = rules(0, SEED)  # Seed of the initial weights, the order of the clips and dropout


class Setting(NamedTuple):
    """Field of a configuration, as a flag."""

    value: Any  # of type str, bool, int or float
    rules: tuple[Rule, ...]
    comment: str  # help of the flag

    def check(self, name: str) -> None:
        """Raises a UserError that names the flag if the value breaks a rule."""
        for allows, sentence in self.rules:
            if not allows(self.value):
                raise UserError(f"--config.{name}{f'={self.value}:' if self.value != '' else ''} {sentence}")


def list_settings(config: Any) -> dict[str, Setting]:
    """Returns the fields of a configuration, or of one of its sections, by their dotted names."""
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
    """Returns the comment above or after each field of a class, from its source code."""
    comments, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("#")
        if field := re.match(r"    (\w+):", code):
            comments[field[1]] = " ".join([*above, comment.strip()]).strip()
        above = [*above, comment.strip()] if comment and not code.strip() else []
    return comments


def check_config(config: Config) -> None:
    """Checks every setting against its rules, before a run starts.

    Raises:
      UserError: a setting breaks a rule; it names the flag.
    """
    for name, setting in list_settings(config).items():
        setting.check(name)


def complete_record(record: dict[str, Any], config: Config) -> dict[str, Any]:
    """Returns a run's record as this version would have written it.

    Settings that the file lacks get their defaults; settings of other methods, which older versions wrote, are dropped.

    Args:
      record: the contents of a config.json.
      config: the configuration of a run of the same method.

    Raises:
      LookupError, TypeError, AttributeError: the record is not that of a run.
    """
    defaults = dataclasses.asdict(Config(type(config.method)()))
    complete = {}
    for section, fields in defaults.items():
        if isinstance(fields, dict):
            kept = {name: value for name, value in record[section].items() if section != "method" or name in fields}
            complete[section] = fields | kept
    return record | complete
