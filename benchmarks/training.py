"""Benchmark of training, against straightforward PyTorch in the same run and against the limits of the machine.

python -m benchmarks.training
"""

import argparse
import csv
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from avh_shards import read_clip_list
from benchmarks import straightforward_training
from extract.convert.npz import import_features
from jax_avh.config import Config, DataConfig, TrainConfig
from jax_avh.data.source import open_source
from jax_avh.methods import avh_align
from jax_avh.methods.avh_align import AVHAlignConfig
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.layers import ARITHMETIC
from jax_avh.models.weights import save_weights
from jax_avh.parallel import make_mesh, put_copies
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.run import initial_model
from jax_avh.training.step import Objective, init_state, train_steps

WIDTH, CLIP_FRAMES, WINDOW = 1024, 228, 31
COMPARED = 20  # first steps whose losses are compared
RATE = 1e-5
# Multiply-adds per frame in a forward pass: of the frame itself, and of its pairs.
OWN, PAIRS = 2 * 512 * (WIDTH + 512), WINDOW * (512 * 256 + 256 * 128 + 128)
FRAME_MULTIPLY_ADDS = 3 * (OWN + PAIRS) - 2 * 512 * WIDTH  # one forward, two backward; features need no gradient
FRAME_BYTES = 2 * WINDOW * (256 + 128) * 4  # products kept for the backward pass, written and read
STEP_BYTES = 8 * 1_740_545 * 4  # parameters, two moments and gradient, read and written


def main() -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=40 * 1024, help="frames of the corpus")
    parser.add_argument("--batch_frames", type=int, default=[1024], nargs="+")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"], help="dtype of the shards")
    parser.add_argument("--precision", default=["float32", "bfloat16"], nargs="+", choices=ARITHMETIC)
    parser.add_argument("--placement", default=["stream", "host", "device"], nargs="+", help="where features are kept")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, torch {torch.__version__}, {describe()}")
    rates = {precision: matrix_rate(precision) for precision in arguments.precision}
    bandwidth = copy_bandwidth()
    print("; ".join(f"{p} products {rate / 1e9:.0f} G multiply-adds/s" for p, rate in rates.items()), end="; ")
    print(f"copies {bandwidth / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder), arguments.frames, arguments.dtype)
        plain, wanted = measure_plain(Path(folder), arguments.batch_frames[0])
        columns = ("", "frames/s", "ratio", "loss difference", "ms per step", "floor: products", "floor: bytes")
        print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        print(f"| straightforward, batch {arguments.batch_frames[0]} | {plain:.0f} | 1.0 | | | | |", flush=True)
        for batch_frames in arguments.batch_frames:
            for precision in rates:
                for placement in arguments.placement:
                    config = make_config(Path(folder), arguments.frames, batch_frames, precision, placement)
                    losses, seconds = measure(config)
                    itemsize = np.dtype(arguments.dtype).itemsize
                    floors = (
                        batch_frames * FRAME_MULTIPLY_ADDS / rates[precision],
                        (batch_frames * (FRAME_BYTES + 2 * WIDTH * itemsize) + STEP_BYTES) / bandwidth,
                    )
                    same = batch_frames == arguments.batch_frames[0]
                    difference = np.abs(np.array(losses[:COMPARED]) - wanted).max() if same else np.nan
                    show(config, plain, difference, seconds, floors)


def measure_plain(folder: Path, batch_frames: int) -> tuple[float, list[float]]:
    """Returns the frames per second of straightforward training, without its first step, and its first losses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = folder / "npz", folder / "init.safetensors", batch_frames, RATE, device
    losses, seconds = timed(straightforward_training.train(*arguments), COMPARED)
    return batch_frames / seconds, losses


def measure(config: Config) -> tuple[list[float], float]:
    """Returns the loss of every step and the mean seconds per step, without the first steps, which compile."""
    mesh = make_mesh()
    source = open_source(config.data.train)
    method, optimizer = avh_align.METHOD, make_optimizer(config.optimizer)
    network = initial_model(method, config, source)
    graph, state = init_state(network, method.trained, optimizer)
    loader, *_ = method.make_loaders(config, mesh, network, source, source)
    state = put_copies(mesh, state)
    objective = Objective(method, graph, mesh, config.model.boundary, config.seed)
    losses, ends = [], []
    for batches in loader.epoch(None).batches:
        state, part = train_steps(objective, optimizer, state, batches, np.float32(RATE))
        losses += (np.asarray(part) / config.data.batch_frames).tolist()
        ends.append((len(losses), time.perf_counter()))
    (first, began), (last, ended) = ends[0], ends[-1]
    return losses, (ended - began) / (last - first)


def timed(steps: Iterator[float], count: int) -> tuple[list[float], float]:
    """Returns the first `count` results of some steps and the mean seconds per step, without the first."""
    losses = [next(steps)]
    began = time.perf_counter()
    losses += [next(steps) for _ in range(count - 1)]
    return losses, (time.perf_counter() - began) / (count - 1)


def make_corpus(folder: Path, frames: int, dtype: str) -> None:
    """Writes clips of random features as npz files and as shards, and initial weights."""
    rng, starts = np.random.default_rng(0), range(0, frames, CLIP_FRAMES)
    lengths = {f"c{n:05d}": min(CLIP_FRAMES, frames - start) for n, start in enumerate(starts)}
    (folder / "npz").mkdir()
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((f"{name}.mp4", 0) for name in lengths)])
    for name, length in lengths.items():
        visual, audio = rng.standard_normal((2, length, WIDTH), np.float32).astype(dtype).astype(np.float32)
        np.savez(folder / "npz" / f"{name}.npz", visual=visual, audio=audio)
    import_features(read_clip_list(folder / "clips.csv"), folder / "npz", folder / "shards", dtype)
    save_weights(AlignmentNetwork(WIDTH, rngs=nnx.Rngs(0)), folder / "init.safetensors")


def make_config(folder: Path, frames: int, batch_frames: int, precision: str, placement: str) -> Config:
    """Returns an unshuffled run's configuration: compiled loops of 4 steps on a CPU, else of a quarter of the epoch."""
    data = DataConfig(str(folder / "shards"), batch_frames=batch_frames, shuffle=False, placement=placement)
    segment = 4 if jax.default_backend() == "cpu" else max(1, frames // batch_frames // 4)
    train = TrainConfig(checkpoint_steps=segment, precision=precision)
    return Config(AVHAlignConfig(), data=data, train=train, init=str(folder / "init.safetensors"))


def matrix_rate(precision: str) -> float:
    """Returns the multiply-adds per second of the fastest of three large matrix products, in a network's precision."""
    dtype, how = ARITHMETIC[precision][1]
    multiply, rates = jax.jit(functools.partial(jnp.matmul, precision=how)), []
    for rows, inner, columns in ((1024, 512, 256), (31 * 1024, 512, 256), (4096, 4096, 4096)):
        one, two = (jnp.ones(shape, dtype) for shape in ((rows, inner), (inner, columns)))
        rates.append(rows * inner * columns / fastest(multiply, one, two))
    return max(rates)


def copy_bandwidth() -> float:
    """Returns the bytes per second that a large copy reads and writes."""
    array = jnp.ones(2**26, jnp.float32)
    return 2 * array.nbytes / fastest(jax.jit(lambda x: x + 1), array)


def fastest(function: Callable, *arguments: jax.Array) -> float:
    """Returns the seconds of the fastest of eight calls."""
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def describe() -> str:
    """Returns the number and the kind of the machine's devices."""
    device = jax.devices()[0]
    threads = f", {torch.get_num_threads()} threads" if device.platform == "cpu" else ""
    return f"{jax.device_count()} x {device.device_kind}{threads}"


def show(config: Config, plain: float, difference: float, seconds: float, floors: tuple[float, float]) -> None:
    """Prints one row of the table."""
    name = f"{config.train.precision}, {config.data.placement}, batch {config.data.batch_frames}"
    speed = config.data.batch_frames / seconds
    shares = [f"{1e3 * floor:.1f} ({floor / seconds:.0%})" for floor in floors]
    cells = [name, f"{speed:.0f}", f"{speed / plain:.1f}", f"{difference:.1e}", f"{1e3 * seconds:.1f}", *shares]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
