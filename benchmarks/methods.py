"""Benchmark of scoring and training steps of RawNet2, MDS and AVAD's decoder, against PyTorch in the same run.

python -m benchmarks.methods

Both sides compute in float32 on the same batch in memory, with the same initial weights. The JAX times include the
preparation inside the steps of `launch.train` and `launch.score`; PyTorch receives prepared frames and cepstra for MDS.
The benchmark needs an idle machine: under other load, PyTorch's threads, which spin while they wait, may take 40 times
as long.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

from avh_shards.clip import FULL_SCALE, SAMPLE_RATE
from benchmarks import straightforward_methods
from benchmarks.training import describe
from jax_avh.config import Config
from jax_avh.configs import make_config
from jax_avh.data.batches import ExampleBatch
from jax_avh.methods import METHODS
from jax_avh.methods.mds import mfcc, network_frames
from jax_avh.models import AlignmentNetwork
from jax_avh.models.avad import AVAD
from jax_avh.models.mds import MDS
from jax_avh.models.rawnet2 import RawNet2
from jax_avh.models.weights import named_arrays
from jax_avh.parallel import by_device, compile_on_own_parts, make_mesh, put_copies, put_parts
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.step import Objective, init_state, train_steps

TRAINING_REPEATS = {"mds": 2}  # method -> most steps to measure, for methods with slow steps
LEAST_SECONDS = 1.0  # per measurement; short calls are repeated
TOLERANCE = 1e-3  # of the scores, relative to the largest
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Sides(NamedTuple):
    """A network in JAX and in PyTorch, with the same batch for each."""

    ours: nnx.Module
    inputs: dict[str, np.ndarray]  # [B, ...] each, as stored in shards
    theirs: torch.nn.Module
    given: tuple[np.ndarray, ...]  # the same examples as inputs of `theirs`


def main() -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=list(SIDES), nargs="+", choices=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement, after a warm-up")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # float32 on both sides
    print(f"jax {jax.__version__}, torch {torch.__version__} on {DEVICE}, {describe()}", end=", ")
    print(f"load {os.getloadavg()[0]:.1f} before; examples/s")
    columns = ("", "scoring: ours", "PyTorch", "ratio", "difference", "training: ours", "PyTorch", "ratio")
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in arguments.methods:
        compare(name, arguments.repeats)


def compare(name: str, repeats: int) -> None:
    """Measures a method and prints its row."""
    config = make_config({"method": name})
    size, steps = config.data.batch_examples, min(repeats, TRAINING_REPEATS.get(name, repeats))
    sides = SIDES[name](np.random.default_rng(0), size)
    label = np.arange(size, dtype=np.int32) % 2
    load(sides.theirs, sides.ours)
    ours, theirs = our_scoring(name, sides), their_scoring(sides)
    wanted = theirs()
    difference = np.abs(ours() - wanted).max() / np.abs(wanted).max()
    assert difference < TOLERANCE, f"{name}: scores differ by {difference:.1e}"
    scoring = race(ours, theirs, size, repeats)
    training = race(our_training(config, sides, label), their_training(config, sides, label), size, steps)
    cells = [*scoring, f"{difference:.1e}", *training]
    print(f"| {name}, batch {size} | " + " | ".join(cells) + " |", flush=True)


def rawnet2(rng: np.random.Generator, size: int) -> Sides:
    """Returns RawNet2 and a batch of noisy tones, each with its own pitch and loudness."""
    network = RawNet2(nnx.Rngs(0))
    times, pitch = np.arange(network.samples) / SAMPLE_RATE, np.geomspace(50, 5000, size)
    waves = np.sin(2 * np.pi * pitch[:, None] * times) + 0.1 * rng.standard_normal((size, network.samples))
    sound = (np.linspace(0.01, 0.5, size)[:, None] * FULL_SCALE * waves).astype(np.int16)
    given = sound.astype(np.float32) / FULL_SCALE
    return Sides(network, {"sound": sound}, straightforward_methods.RawNet2(), (given,))


def mds(rng: np.random.Generator, size: int) -> Sides:
    """Returns MDS and a batch of chunks of noise."""
    network = MDS(nnx.Rngs(0))
    crops = rng.integers(0, 256, (size, 25, 96, 96), np.uint8)
    sound = rng.normal(0, 0.1 * FULL_SCALE, (size, SAMPLE_RATE)).astype(np.int16)
    frames = np.moveaxis(np.asarray(network_frames(crops, network.image)), -1, 1).copy()
    given = frames, np.asarray(mfcc(sound))[:, None].copy()
    return Sides(network, {"crops": crops, "sound": sound}, straightforward_methods.MDS(network.image), given)


def avad(rng: np.random.Generator, size: int) -> Sides:
    """Returns AVAD's decoder and a batch of sequences of random scores."""
    network = AVAD(AlignmentNetwork(1024, rngs=nnx.Rngs(0)), nnx.Rngs(0), 50, 15, "zeros", "float32")
    scores = rng.normal(0, 2, (size, network.windows, 2 * network.tau + 1)).astype(np.float32)
    inputs = {"scores": scores, "length": np.full(size, network.windows, np.int32)}
    return Sides(network, inputs, straightforward_methods.AVAD(network.windows), (scores,))


SIDES = {"rawnet2": rawnet2, "mds": mds, "avad": avad}


def load(module: torch.nn.Module, network: nnx.Module) -> None:
    """Copies the weights of the JAX network into the PyTorch network."""
    state, named = module.state_dict(), named_arrays(network)
    for name in state:
        if not name.endswith("num_batches_tracked"):
            variable = named[name]
            state[name] = torch.tensor(np.ascontiguousarray(variable.official(np.asarray(variable.variable[...]))))
    module.load_state_dict(state)
    module.to(DEVICE)


def our_scoring(name: str, sides: Sides) -> Callable[[], np.ndarray]:
    """Returns a function that scores the batch in JAX, compiled as for a pass over examples."""
    mesh = make_mesh()
    graph, params = nnx.split(sides.ours)
    outputs = METHODS[name].example_outputs
    compiled = functools.partial(compile_on_own_parts(mesh, outputs, graph), put_copies(mesh, params))
    inputs = jax.device_put(sides.inputs, by_device(mesh))
    return lambda: np.asarray(compiled(inputs))


def their_scoring(sides: Sides) -> Callable[[], np.ndarray]:
    """Returns a function that scores the batch in PyTorch."""
    module, given = sides.theirs, [torch.from_numpy(array).to(DEVICE) for array in sides.given]

    @torch.inference_mode()
    def score() -> np.ndarray:
        return module.eval().outputs(*given).cpu().numpy()

    return score


def our_training(config: Config, sides: Sides, label: np.ndarray) -> Callable[[], None]:
    """Returns a function that takes a training step on the batch in JAX."""
    mesh = make_mesh()
    method, optimizer = METHODS[config.method.name], make_optimizer(config.optimizer)
    graph, state = init_state(sides.ours, method.trained, optimizer)
    state = put_copies(mesh, state)
    objective = Objective(method, graph, mesh, config.model.boundary, config.seed)
    batch = ExampleBatch(sides.inputs, label, np.ones(len(label), np.float32))
    parts = jax.tree.map(lambda array: array.reshape(mesh.size, -1, *array.shape[1:]), batch)
    batches, rate = (put_parts(mesh, parts),), np.float32(config.optimizer.learning_rate)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(train_steps(objective, optimizer, state, batches, rate))

    return step


def their_training(config: Config, sides: Sides, label: np.ndarray) -> Callable[[], None]:
    """Returns a function that takes a training step on the batch in PyTorch."""
    module, given = sides.theirs.train(), [torch.from_numpy(array).to(DEVICE) for array in sides.given]
    settings, label = config.optimizer, torch.from_numpy(label).long().to(DEVICE)
    optimizer = torch.optim.Adam(module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)

    def step() -> None:
        optimizer.zero_grad()
        loss = module.loss(label, *given)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return step


def race(ours: Callable, theirs: Callable, size: int, repeats: int) -> list[str]:
    """Returns the cells of both speeds in examples per second, PyTorch's with its threads, and of their ratio."""
    ours()  # compiles
    our_speed = size / seconds(ours, repeats)
    threads = choose_threads(theirs)
    their_speed = size / seconds(theirs, repeats)
    return [f"{our_speed:.1f}", f"{their_speed:.1f} ({threads} threads)", f"{our_speed / their_speed:.1f}"]


def choose_threads(function: Callable) -> int:
    """Warms up, sets PyTorch to one thread or one per core, whichever is faster, and returns the number."""
    taken = {}
    function()
    for threads in (1, os.cpu_count()):
        torch.set_num_threads(threads)
        taken[threads] = seconds(function, 1)
    torch.set_num_threads(fastest := min(taken, key=taken.get))
    return fastest


def seconds(function: Callable, repeats: int) -> float:
    """Returns the median seconds of at least `repeats` calls that together take at least LEAST_SECONDS."""
    taken = []
    while len(taken) < repeats or sum(taken) < LEAST_SECONDS:
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
