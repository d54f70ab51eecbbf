"""Configuration of a training run. Every field is a flag: --config.data.batch_frames=2048."""

import dataclasses
import inspect
import re

from avh_shards import UserError, nearest

SETTINGS, RESULT = "config.json", "result.json"  # in the workdir of a run

BOUNDARIES = ("zeros", "mask")
PLACEMENTS = ("auto", "stream", "host", "device")
PRECISIONS = ("float32", "bfloat16", "float64")
SCHEDULES = ("plateau", "cosine")
HEADS = ("mlp", "linear")
MODALITIES = ("both", "audio", "video")
LEAST_SAMPLES = 3211  # of a cut that leave rawnet2 a step after all poolings
METHODS = ("avh_align", "avh_sup", "rawnet2", "mds", "avad")  # that learn
# Larger values than anyone needs, so that a mistyped one is refused instead of being compiled for hours, or filling all
# memory.
MOST = {
    "model.tau": 250,  # ten seconds on each side of a frame
    "data.batch_frames": 10_000_000,  # 111 hours; what fits the memory is less
    "data.batch_examples": 65_536,
    "method.samples": 9_600_000,  # ten minutes
    "method.image": 1_024,
    "method.windows": 15_000,  # ten minutes
}
MOST_OF_ALL = 2**31 - 1  # for other whole numbers
IMAGE_STEP = 32  # of the sizes of images that mds takes

# Settings of the paper, where a method's are other than the defaults below, which are AVH-Align's.
OF_METHOD = {
    "avh_sup": {"optimizer.learning_rate": "1e-3", "optimizer.plateau_factor": "1", "train.epochs": "100"},
    "rawnet2": {
        "data.batch_examples": "32",
        "optimizer.learning_rate": "1e-4",
        "optimizer.plateau_factor": "1",
        "optimizer.weight_decay": "1e-4",
        "train.epochs": "100",
    },
    "mds": {
        "data.batch_examples": "8",
        "optimizer.learning_rate": "1e-3",
        "optimizer.plateau_factor": "1",
        "optimizer.weight_decay": "1e-5",
        "train.epochs": "100",
    },
    # The paper gives neither epochs nor the length of the warm-up.
    "avad": {
        "data.batch_examples": "16",
        "optimizer.learning_rate": "1e-3",
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": "5",
        "optimizer.weight_decay": "1e-6",
        "train.epochs": "100",
    },
}


@dataclasses.dataclass
class MethodConfig:
    """What is trained: --config.method=avh_sup is short for --config.method.name=avh_sup."""

    # On real clips alone: "avh_align", "avad"; on clips of both labels: "avh_sup", "rawnet2" (the sound), "mds" (mouth
    # crops and the sound).
    name: str = "avh_align"
    head: str = "mlp"  # "mlp", or "linear" for the ablation of the paper's table 5
    modality: str = "both"  # of avh_sup also "audio" or "video" alone
    samples: int = 64600  # of rawnet2: of a cut, at 16 kHz; a clip's first ones
    image: int = 96  # of mds: height and width of its images, 96 or 224 officially; crops are resized to it
    width_multiplier: float = 1.0  # of mds: channels and units of all layers, against the released network's
    sync_weights: str = ""  # of avad: a trained avh_align (.safetensors, or its workdir), whose window scores it reads
    windows: int = 50  # of avad: frames of a sequence; the official score is of a clip's first 50


@dataclasses.dataclass
class DataConfig:
    """Which frames, in which order."""

    train: str = ""  # folder of feature shards; avh_align leaves out clips labelled fake
    val: str = ""  # folder of feature shards, likewise
    train_clips: int = 0  # of the training set that are used, drawn by the seed; 0 = all
    batch_frames: int = 1024  # visual frames of one step, over all devices; avh_sup fills them with whole clips
    batch_clips: int = 0  # of avh_sup: clips of one step at most, 1 = the official way; 0 = as many as fit
    # Examples of one step, over all devices: rawnet2's cuts of 4 s, mds' chunks of 1 s, avad's sequences.
    batch_examples: int = 16
    shuffle: bool = True  # new order of the clips every epoch, from the seed; False = the shards' order
    # Where features are kept: "stream" = nowhere, read ahead from the shards; "host" = in host memory (local shards are
    # memory-mapped); "device" = in the devices' memory, each holding a part; "auto" = by their size.
    placement: str = "auto"


@dataclasses.dataclass
class ModelConfig:
    """The network's input, and the alignment task."""

    tau: int = 15  # audio frames on each side of a visual frame that compete in the softmax
    normalise: bool = True  # features to unit length, frame by frame; False = the ablation of the paper's table 4
    boundary: str = "zeros"  # audio frames outside the clip: "zeros" = zero vectors that compete, "mask" = left out


@dataclasses.dataclass
class OptimizerConfig:
    """Adam, and the learning rate's schedule."""

    learning_rate: float = 1e-5
    weight_decay: float = 0.0  # of every parameter, added to its gradient
    # "plateau": cut when the validation loss rests; "cosine": from epoch to epoch, up to the learning rate in
    # `warmup_epochs`, then down to 0 in those that are left of train.epochs.
    schedule: str = "plateau"
    warmup_epochs: int = 0
    plateau_factor: float = 0.1  # the learning rate is multiplied by this ...
    plateau_patience: int = 5  # ... on the epoch after so many without a relative improvement of 1e-4


@dataclasses.dataclass
class TrainConfig:
    """How long, how exactly, and how often the state is saved."""

    epochs: int = 500  # at most
    early_stop: int = 10  # epochs without a strictly lower validation loss that end the run
    checkpoint_steps: int = 1000  # between checkpoints within an epoch; each epoch's end has one anyway
    # Of the matrix products: "float32", or "bfloat16" (parameters, norms, softmax and Adam stay float32); or "float64"
    # for everything, to check other runs by (it needs JAX_ENABLE_X64=1).
    precision: str = "float32"


@dataclasses.dataclass
class Config:
    """Everything that a training run depends on. The defaults are the official AVH-Align settings, shuffling aside."""

    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    init: str = ""  # weights of the same kind to start from (.safetensors); "" = random, from the seed
    seed: int = 0  # of the initial weights and of the clips' order


def make_config(settings: dict[str, str]) -> Config:
    """The configuration of some settings, given as text; a method brings its own defaults.

    Args:
      settings: field -> value: {"optimizer.learning_rate": "1e-4"}; "method" is short for "method.name".

    Raises:
      UserError: there is no such field, or the value is not of its type.
    """
    settings = {"method.name" if name == "method" else name: text for name, text in settings.items()}
    config = Config()
    for name, text in (OF_METHOD.get(settings.get("method.name"), {}) | settings).items():
        section, _, field = name.rpartition(".")
        holder = getattr(config, section, None) if section else config
        if not dataclasses.is_dataclass(holder) or dataclasses.is_dataclass(getattr(holder, field, holder)):
            raise UserError(
                f"--config.{name}: there is no such setting{nearest(name, describe(Config()), '--config.')}"
            )
        try:
            setattr(holder, field, _parsed(text, type(getattr(holder, field))))
        except (ValueError, KeyError) as error:
            raise UserError(f"--config.{name}={text}: not a value of this setting") from error
    return config


def _parsed(text: str, kind: type) -> object:
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()] if kind is bool else kind(text)


def describe(config: object) -> dict[str, tuple[object, str]]:
    """Returns the value and the comment of each field of a configuration, by its dotted name."""
    found = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            found |= {f"{name}.{field}": known for field, known in describe(value).items()}
        else:
            found[name] = (value, _comments(type(config)).get(name, ""))
    return found


def _comments(kind: type) -> dict[str, str]:
    """The comment above or behind each field of a class, as its source has it."""
    comments, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("#")
        if field := re.match(r"    (\w+):", code):
            comments[field[1]] = " ".join([*above, comment.strip()]).strip()
        above = [*above, comment.strip()] if comment and not code.strip() else []
    return comments


def check_config(config: Config) -> None:
    """Refuses settings that could only fail later or mean nothing.

    Raises:
      UserError: naming the flag at fault.
    """
    for name in ("train", "val"):
        if not getattr(config.data, name):
            raise UserError(f"--config.data.{name} is missing: a folder of feature shards")
    at_least_one = {
        "data.batch_frames": config.data.batch_frames,
        "data.batch_examples": config.data.batch_examples,
        "model.tau": config.model.tau,
        "train.checkpoint_steps": config.train.checkpoint_steps,
        "train.early_stop": config.train.early_stop,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"--config.{name}={value}: must be at least 1")
    sections = {name: fields for name, fields in dataclasses.asdict(config).items() if isinstance(fields, dict)}
    for name, value in ((f"{section}.{name}", v) for section, fields in sections.items() for name, v in fields.items()):
        if isinstance(value, int) and value > (most := MOST.get(name, MOST_OF_ALL)):
            raise UserError(f"--config.{name}={value}: must be at most {most}")
    if min(config.data.train_clips, config.data.batch_clips) < 0:
        raise UserError("--config.data.train_clips and --config.data.batch_clips must not be negative")
    if min(config.train.epochs, config.optimizer.plateau_patience, config.optimizer.warmup_epochs) < 0:
        raise UserError(
            "--config.train.epochs, --config.optimizer.plateau_patience and --config.optimizer.warmup_epochs must not "
            "be negative"
        )
    if not 0 < config.optimizer.learning_rate < float("inf"):
        raise UserError(f"--config.optimizer.learning_rate={config.optimizer.learning_rate}: must be positive")
    if not 0 < config.optimizer.plateau_factor <= 1:
        raise UserError(f"--config.optimizer.plateau_factor={config.optimizer.plateau_factor}: must be in (0, 1]")
    one_of = {
        "method.name": (config.method.name, METHODS),
        "method.head": (config.method.head, HEADS),
        "method.modality": (config.method.modality, MODALITIES if config.method.name == "avh_sup" else ("both",)),
        "data.placement": (config.data.placement, PLACEMENTS),
        "optimizer.schedule": (config.optimizer.schedule, SCHEDULES),
        "model.boundary": (config.model.boundary, BOUNDARIES),
        "train.precision": (config.train.precision, PRECISIONS),
    }
    for name, (value, allowed) in one_of.items():
        if value not in allowed:
            raise UserError(f"--config.{name}={value}: must be {' or '.join(allowed)}")
    if not 0 <= config.optimizer.weight_decay < float("inf"):
        raise UserError(f"--config.optimizer.weight_decay={config.optimizer.weight_decay}: must not be negative")
    if config.method.image < IMAGE_STEP or config.method.image % IMAGE_STEP:
        raise UserError(f"--config.method.image={config.method.image}: must be a multiple of {IMAGE_STEP}")
    if not 0 < config.method.width_multiplier <= 1:
        raise UserError(
            f"--config.method.width_multiplier={config.method.width_multiplier}: must be above 0 and at most 1"
        )
    if config.method.samples < LEAST_SAMPLES:
        raise UserError(f"--config.method.samples={config.method.samples}: must be at least {LEAST_SAMPLES}")
    if config.method.windows < 2:
        raise UserError(f"--config.method.windows={config.method.windows}: must be at least 2")
    if config.method.name == "avad" and not config.method.sync_weights:
        raise UserError("--config.method.sync_weights is missing: a trained avh_align, .safetensors or its workdir")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--config.seed={config.seed}: must be at least 0 and below 2**32")
