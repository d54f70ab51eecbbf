"""Programs of a run, compiled for devices that this machine need not have: what they need, exchange and cost.

The compilers are those of the devices (libtpu, or JAX's CUDA plugin), so whether a program compiles and how much memory
it takes are facts; its speed is a model from the chips' published rates, never a measurement.
"""

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL, SAMPLES_PER_FRAME, offsets
from avh_shards.format import RAGGED, ShardTable
from avh_shards.hdf5 import Extent
from avh_shards.paths import as_path
from avh_shards.text import format_table, one_line
from jax_avh.config import Config, check_config
from jax_avh.data.loaders import GIGABYTE
from jax_avh.data.source import PAIRED_FEATURES, RowRange, Source
from jax_avh.hlo import Collective, parse
from jax_avh.methods.base import TrainableMethod
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.layers import HIGH_PRECISIONS, check_precision
from jax_avh.models.weights import save_weights
from jax_avh.parallel import compiling_for, make_mesh, put_copies
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.step import Objective, batch_losses, init_state, train_steps


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device."""

    memory: float  # bytes
    flops: float  # bfloat16 products, in floating-point operations per second
    high_flops: float  # float32 products in TensorFloat-32 on a GPU, in three passes of bfloat16 on a TPU
    float32_flops: float  # float32 products, at full precision
    bandwidth: float  # bytes per second of its memory
    network: float  # bytes per second to its neighbours, all links together

    def rate(self, precision: str) -> float:
        """Returns the floating-point operations per second of products in a precision, a key of ARITHMETIC."""
        if precision == "bfloat16":
            return self.flops
        return self.high_flops if precision in HIGH_PRECISIONS.values() else self.float32_flops


# A TPU multiplies float32 in six passes of bfloat16, or in three. Sources: cloud.google.com/tpu/docs (system
# architecture of each generation), and NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM (dense, without
# sparsity).
CHIPS = {
    "v4": Chip(32e9, 275e12, 275e12 / 3, 275e12 / 6, 1.228e12, 300e9),
    "v5e": Chip(16e9, 197e12, 197e12 / 3, 197e12 / 6, 0.819e12, 200e9),
    "v5p": Chip(95e9, 459e12, 459e12 / 3, 459e12 / 6, 2.765e12, 600e9),
    "v6e": Chip(32e9, 918e12, 918e12 / 3, 918e12 / 6, 1.64e12, 400e9),
    "a100": Chip(80e9, 312e12, 156e12, 19.5e12, 2.039e12, 600e9),
    "h100": Chip(80e9, 989e12, 494.5e12, 67e12, 3.35e12, 900e9),
    "h200": Chip(141e9, 989e12, 494.5e12, 67e12, 4.8e12, 900e9),
}
# What XLA must know of a GPU that is not there: the parts of its GpuTargetConfigProto that differ.
GPUS = {
    "a100": "core_count: 108 memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 "
    "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 fpus_per_core: 64 "
    "device_memory_size: 85899345920 cuda_compute_capability { major: 8 minor: 0 }",
    "h100": "core_count: 132 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 fpus_per_core: 128 "
    "device_memory_size: 84942979072 cuda_compute_capability { major: 9 minor: 0 }",
    "h200": "core_count: 132 memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 fpus_per_core: 128 "
    "device_memory_size: 150754820096 cuda_compute_capability { major: 9 minor: 0 }",
}
GPU = (
    "gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
    "threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
    "registers_per_core_limit: 65536 registers_per_block_limit: 65536 {own} }} "
    'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"'
)
# Read by libtpu when it loads: it runs on no TPU, asks no server for one, and several processes may load it.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CLIP_FRAMES = 228  # mean length of AVH-Align's training clips
EXAMPLE_FRAMES = 250  # frames for each example of a batch, more than one takes
MODEL = (
    "Figures are per device and step. Memory and exchanges are the compiler's; times assume the chip's published rates "
    "and perfect overlap: no measurement, and the best case."
)
WIRE = {"all-reduce": 2.0}  # times that a byte of a collective's result crosses a device's links; 1 for the others


class DoesNotFit(Exception):  # noqa: N818 (it names the finding)
    """A program takes more memory than a device has; the message names the setting to change."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What the compiler says of one program, per device, and what the chip's published rates make of it."""

    program: str
    devices: int
    placement: str  # where the training features are kept, and why
    compile_seconds: float
    argument_bytes: int
    temporary_bytes: int
    capacity_bytes: int  # of the device's memory
    steps: int  # steps of training, validation or scoring that one run of the program takes
    items: int  # frames or examples of a step, over all devices
    flops: float  # per step
    traffic_bytes: float  # per step
    collectives: list[Collective]  # per run
    compute_seconds: float  # per step, at the published rate; likewise below
    memory_seconds: float
    network_seconds: float

    @property
    def total_bytes(self) -> int:
        """Memory that the program takes."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def seconds(self) -> float:
        """Time of a step if computation, memory and network overlap perfectly."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def bound(self) -> str:
        """What limits the step."""
        times = {"compute": self.compute_seconds, "memory": self.memory_seconds, "network": self.network_seconds}
        return max(times, key=lambda name: times[name])

    @property
    def exchanged(self) -> dict[str, float]:
        """Bytes of each kind of collective per step."""
        found: dict[str, float] = {}
        for one in self.collectives:
            found[one.kind] = found.get(one.kind, 0) + one.nbytes * one.times / self.steps
        return found


@contextlib.contextmanager
def imagined_devices(topology: str, slices: int = 1) -> Iterator[tuple[list[Any], Chip]]:
    """Yields the devices of a topology, and their chip; programs that the block traces are compiled for them.

    Args:
      topology: "v5e:4x4", likewise v4, v5p, v6e; or "h100", "h200", "a100", with ":8" for eight of them.
      slices: number of TPU slices.

    Raises:
      UserError: the topology is unknown, or its compiler is not installed.
    """
    name, _, layout = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology={topology}: unknown; give one of {', '.join(CHIPS)}, such as v5e:4x4 or h100:8")
    try:
        if name in GPUS:
            options = {"topology": f"{layout or 1}x1x1", "target_config": GPU.format(name=name, own=GPUS[name])}
            found = topologies.get_topology_desc(platform="cuda", topology_name=name, **options)
        else:
            os.environ |= {key: value for key, value in WITHOUT_TPU.items() if key not in os.environ}
            options = {"num_slices": slices} if slices > 1 else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # each plugin raises its own
        extra = 'the CUDA plugin of JAX (pip install "jax[cuda13]")' if name in GPUS else "libtpu (extra `aot`)"
        reason = one_line(error)[:200]
        raise UserError(f"--topology={topology}: {reason}; check the layout, and that {extra} is installed") from error
    with compiling_for("gpu" if name in GPUS else "tpu"):
        yield list(found.devices), CHIPS[name]


def check_programs(
    method: TrainableMethod, config: Config, topology: str, frames: int, width: int, slices: int = 1
) -> list[Check]:
    """Compiles a run's training step, validation pass and scoring pass for a topology.

    Args:
      method: the method that the configuration names.
      config: the run's settings; its folders of features are not read.
      topology: as for `imagined_devices`.
      frames: frames of the training clips; the validation clips have a tenth. Methods on examples ignore it.
      width: feature width D.
      slices: number of TPU slices.

    Returns:
      A check of each program.

    Raises:
      UserError: the topology is unknown, its compiler is not installed, or the settings do not suit the devices.
      DoesNotFit: a program takes more memory than a device has.
    """
    of_frames = method.unit == "frames"
    items = config.data.batch_frames if of_frames else config.data.batch_examples
    counts = (frames, max(frames // 10, 1)) if of_frames else (EXAMPLE_FRAMES * items,) * 2
    train, val = (_blank_source(count, width) for count in counts)
    with tempfile.TemporaryDirectory() as folder:
        _imagine_weights(config, width, Path(folder))
        check_config(config)
        network = method.make_model(config, train)
    with imagined_devices(topology, slices) as (devices, chip):
        check_precision(config.train.precision)
        mesh = make_mesh(devices)
        *loaders, placement = method.make_loaders(config, mesh, network, train, val)
        training, validation = (next(iter(loader.epoch((config.seed, 0)).batches)) for loader in loaders)
        optimizer = make_optimizer(config.optimizer)
        graph, state = init_state(network, method.trained, optimizer)
        state = put_copies(mesh, state)
        objective = Objective(method, graph, mesh, config.model.boundary, config.seed)
        rate = put_copies(mesh, np.zeros((), network.dtype))
        scoring = method.scoring_step(network, val, make_mesh(devices[:1]))  # each process scores its own clips
        arguments = objective, optimizer, state, training, rate
        step = _Program("training", train_steps, arguments, len(training), items, mesh.size)
        losses = _Program("validation", batch_losses, (objective, state, validation), len(validation), items, mesh.size)
        score = _Program("scoring", scoring.program, scoring.arguments, 1, scoring.items, 1)
        return [_check(program, chip, config, placement) for program in (step, losses, score)]


class _Program(NamedTuple):
    """A compiled function, and what one run of it does."""

    name: str
    function: Any
    arguments: tuple
    steps: int
    items: int  # of a step
    devices: int


def _check(program: _Program, chip: Chip, config: Config, placement: str) -> Check:
    name, function, arguments, steps, items, devices = program
    traced = function.trace(*arguments)
    started = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        arrays = [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.ShapeDtypeStruct)]
        held = sum(array.size * array.dtype.itemsize for array in arrays) / devices
        raise DoesNotFit(f"{name}: {one_line(error)[:300]}; {_advice(config, held > chip.memory / 2)}") from error
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    read = parse(compiled.as_text())
    collectives = read.collectives()
    flops = count_flops(traced.jaxpr.jaxpr, devices) / devices / steps
    traffic = read.traffic() / steps
    wire = sum(WIRE.get(one.kind, 1) * one.nbytes * one.times for one in collectives) / steps
    check = Check(
        program=name,
        devices=devices,
        placement=placement,
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        capacity_bytes=int(chip.memory),
        steps=steps,
        items=items,
        flops=flops,
        traffic_bytes=traffic,
        collectives=collectives,
        compute_seconds=flops / chip.rate(config.train.precision),
        memory_seconds=traffic / chip.bandwidth,
        network_seconds=wire / chip.network,
    )
    if check.total_bytes > check.capacity_bytes:
        arguments_larger = check.argument_bytes > check.temporary_bytes
        size = f"takes {check.total_bytes / GIGABYTE:.3g} GB of {check.capacity_bytes / GIGABYTE:.3g} GB"
        raise DoesNotFit(f"{name}: {size} on each device; {_advice(config, arguments_larger)}")
    return check


def _advice(config: Config, features: bool) -> str:
    """Returns what to change so that a program fits: where the features are kept, or the size of a batch."""
    if features and config.data.placement in ("auto", "device"):
        return "set --config.data.placement=stream, or use more devices"
    return "lower --config.data.batch_frames (or batch_examples), or use more devices"


def _blank_source(frames: int, width: int) -> Source:
    """Returns a source of zeros that takes no memory, half of whose clips are labelled fake."""
    lengths = [CLIP_FRAMES] * (frames // CLIP_FRAMES) + ([frames % CLIP_FRAMES] if frames % CLIP_FRAMES else [])
    border = offsets(lengths)
    contents = {name: Extent(0, np.dtype(np.float16), (frames, width)) for name in PAIRED_FEATURES}
    ragged = {}
    for name, (dtype, shape) in RAGGED.items():
        stored = border * (SAMPLES_PER_FRAME if name == "waveform" else 1)
        ragged[name] = stored, Extent(0, np.dtype(dtype), (int(stored[-1]), *shape))
    clips = tuple(ClipMeta(f"{n}.mp4", label=(REAL, FAKE)[n % 2]) for n in range(len(lengths)))
    table = ShardTable(as_path("memory://imagined"), 0, clips, border, {"width": width}, contents, ragged)

    def rows(ranges: Sequence[RowRange]) -> Iterator[np.ndarray]:
        for shard, content, first, last in ranges:
            extent = shard.extent(content)
            yield np.zeros((last - first, *extent.shape[1:]), extent.dtype)

    return Source(table.path, (table,), tuple((0, n) for n in range(len(clips))), rows)


def _imagine_weights(config: Config, width: int, folder: Path) -> None:
    """Gives a method that reads a trained alignment network a random one, unless the configuration names one."""
    if getattr(config.method, "sync_weights", None) == "":
        config.method.sync_weights = str(folder / "sync.safetensors")
        save_weights(AlignmentNetwork(width, rngs=nnx.Rngs(0)), config.method.sync_weights, {"method": "avh_align"})


def count_flops(jaxpr: Any, devices: int) -> float:
    """Counts the floating-point operations of a program's products and convolutions, over all devices.

    Loops count as often as they run, and what is computed again in the backward pass counts again.

    Args:
      jaxpr: the program before compilation.
      devices: number of devices, each of which runs the parts that `shard_map` maps.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, "shape")]
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += 2 * outputs * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            channels = shapes[1][parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * outputs * math.prod(shapes[1]) / channels
        else:
            times = {"scan": parameters.get("length", 1), "shard_map": devices}.get(name, 1)
            inner = [count_flops(part, devices) for part in jaxprs_in_params(parameters)]
            total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def format_checks(checks: list[Check], unit: str, frames: int) -> str:
    """Formats checks as a table, with what they are and are not."""
    rows = [["", *(check.program for check in checks)]]
    rows += [[name, *map(value, checks)] for name, value in _LINES.items()]
    training = checks[0]
    lines = [training.placement, "", format_table(rows, right=True)]
    speed = training.items / training.seconds
    epoch = f", {frames / speed:.3g} s for an epoch of {frames} frames" if unit == "frames" else ""
    lines += ["", f"expected of training: {speed:,.0f} {unit}/s{epoch}, bound by {training.bound}", MODEL]
    return "\n".join(lines)


_LINES: dict[str, Callable[[Check], str]] = {
    "compiled in, s": lambda c: f"{c.compile_seconds:.1f}",
    "devices": lambda c: str(c.devices),
    "arguments, GB": lambda c: f"{c.argument_bytes / GIGABYTE:.3f}",
    "temporaries, GB": lambda c: f"{c.temporary_bytes / GIGABYTE:.3f}",
    "of the device's, GB": lambda c: f"{c.capacity_bytes / GIGABYTE:.0f}",
    "GFLOP": lambda c: f"{c.flops / 1e9:.2f}",
    "memory traffic, MB": lambda c: f"{c.traffic_bytes / 1e6:.1f}",
    "exchanged, MB": lambda c: ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in c.exchanged.items()) or "-",
    "compute, ms": lambda c: f"{c.compute_seconds * 1e3:.3f}",
    "memory, ms": lambda c: f"{c.memory_seconds * 1e3:.3f}",
    "network, ms": lambda c: f"{c.network_seconds * 1e3:.3f}",
    "bound by": lambda c: c.bound,
}
