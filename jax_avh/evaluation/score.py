"""Feature shards -> frame scores and clip scores, by any method."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Float, Int64

from extract.schema import InputError, check_output
from jax_avh.data import Batching, FeatureSource, FrameBatches, frame_stream, open_source, prefetched
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.scores import ScoreTable, write_scores
from jax_avh.methods import METHODS, ClipMethod, FrameMethod
from jax_avh.models import FrameBatch, FrameNetwork, load_weights, read_notes, weights_file
from jax_avh.training.sharding import make_mesh, on_own_part, put_copies, put_parts

BATCH_FRAMES = {"cpu": 2048}  # backend -> frames of a step: what stays in its caches
LARGE_BATCH_FRAMES = 16384  # of all other backends
COPIED = ("encoder", "weights_sha256", "trimmed", "dataset")  # attributes of the shards
DEFAULT = "avh_align"  # what weights that do not say are for: an official file's


def score_shards(
    features: str | os.PathLike,
    output: str | os.PathLike,
    method: str | None = None,
    weights: str | os.PathLike | None = None,
    notes: Mapping[str, object] = MappingProxyType({}),
    batch_frames: int | None = None,
) -> ScoreTable:
    """Scores every clip of a folder of shards, and every frame if the method scores frames.

    Args:
      features: a folder of shards, or one shard.
      output: the score file to write.
      method: a name of METHODS; None = what the weights were trained as.
      weights: for a method that learns: a .safetensors file, or the workdir of a training run (its best weights).
      notes: what the shards do not say of themselves: `dataset`, a name, and `trimmed`, a bool.
      batch_frames: frames of one step; None = what suits the backend.

    Returns:
      What was written.

    Raises:
      InputError: the weights or the features are missing, damaged, lack what the method needs, or do not fit.
    """
    detector = load_detector(weights, method) if weights is not None else None
    chosen = detector.method if detector else METHODS[choose_method(method, None)]
    source = open_source(features)
    if detector:
        detector.check_fits(source.width, source.attributes, f"{source.path} (its features)")
    check_output(output)
    inputs = [shard.path for shard in source.shards] + ([detector.path] if detector else [])
    if Path(output).resolve() in {file.resolve() for file in inputs}:
        raise InputError(f"{output}: is an input of this command; name another file to write")
    attributes = _known(source, notes) | {"features": str(features)}
    if isinstance(chosen, ClipMethod):
        frame, clip = None, _clip_scores(chosen, source)
    else:
        batch_frames = batch_frames or BATCH_FRAMES.get(jax.default_backend(), LARGE_BATCH_FRAMES)
        frame = _frame_scores(chosen, detector and detector.network, source, batch_frames)
        clip = POOLINGS[chosen.pooling](frame, frame_stream(source).border)
        attributes |= {"pooling": chosen.pooling}
        attributes |= {} if chosen.threshold is None else {"threshold": chosen.threshold}
    if detector:
        attributes |= {"weights": str(detector.path), "alignment_sha256": _sha256(detector.path)}
    border = frame_stream(source).border
    table = ScoreTable(chosen.name, tuple(source.clips), border, frame, clip.astype(np.float32), attributes)
    write_scores(table, output)
    return table


def choose_method(method: str | None, weights: Path | None) -> str:
    """The name of the method that is meant.

    Raises:
      InputError: there is no such method, or it does not go with the weights, or with none.
    """
    trained = read_notes(weights).get("method") if weights else None
    name = method or trained or (DEFAULT if weights else None)
    if name not in METHODS:
        raise InputError(f"--method={name}: is none of {', '.join(METHODS)}" if name else "--weights is needed")
    learns = isinstance(METHODS[name], FrameMethod) and METHODS[name].training is not None
    if learns and not weights:
        raise InputError(f"--method={name} needs --weights: a .safetensors file, or the workdir of a training run")
    if weights and not learns:
        raise InputError(f"--method={name} takes no --weights; it does not learn")
    if trained not in (None, name):
        raise InputError(f"{weights}: was trained as {trained}, not as {name}")
    return name


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained method: its network, and what its weights say of themselves."""

    path: Path
    method: FrameMethod
    network: FrameNetwork
    notes: dict[str, str]

    def check_fits(self, width: int, attributes: Mapping[str, object], what: object) -> None:
        """Raises an InputError if features of a width and encoder are not those that it was trained on."""
        if width != self.network.width:
            raise InputError(f"{self.path}: takes features of width {self.network.width}, but {what} has {width}")
        made_of, found = (str(known.get("weights_sha256", "unknown")) for known in (self.notes, attributes))
        if "unknown" not in (made_of, found) and made_of != found:
            raise InputError(f"{self.path}: was trained on features of another encoder than {what}")

    def frame_scores(self, visual: Float[np.ndarray, "T D"], audio: Float[np.ndarray, "T D"]) -> np.ndarray:
        """Frame scores [T], float32, of one clip's features."""
        none = jnp.zeros(len(visual), jnp.int32)
        batch = FrameBatch(jnp.asarray(visual), jnp.asarray(audio), none, none.astype(jnp.float32), none)
        return np.asarray(self.method.outputs(self.network, batch))[:, 0]


def load_detector(weights: str | os.PathLike, method: str | None = None) -> Detector:
    """A method's weights: a .safetensors file, or the workdir of a training run (its best weights).

    Raises:
      InputError: they are missing or damaged, or of another method.
    """
    path = weights_file(weights)
    return Detector(path, METHODS[choose_method(method, path)], load_weights(path), read_notes(path))


def _known(source: FeatureSource, notes: Mapping[str, object]) -> dict[str, object]:
    """What the shards and the notes say of the features."""
    known = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    for name, value in notes.items():
        if (found := known.get(name, "unknown")) not in ("unknown", value):
            raise InputError(f"{source.path}: its {name} is {found}, not {value}")
    return known | dict(notes)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _clip_scores(method: ClipMethod, source: FeatureSource) -> Float[np.ndarray, " N"]:
    for content in method.needs:
        source.check_has(content)
    clips = tqdm.tqdm(range(len(source.clips)), desc="score", unit=" clips", leave=False)
    return np.array([method.score(source, clip) for clip in clips])


def _frame_scores(
    method: FrameMethod, network: FrameNetwork | None, source: FeatureSource, batch_frames: int
) -> Float[np.ndarray, " F"]:
    stream, mesh = frame_stream(source), make_mesh()
    batches = FrameBatches(stream, Batching(batch_frames).plan(stream), method.tau, mesh.size)
    # The same for every batch: the network's parameters, its linear maps folded into one.
    graph, fixed = None, ((), ())
    if network is not None:
        graph, params = nnx.split(network)
        fixed = put_copies(mesh, (params, jax.jit(lambda params: nnx.merge(graph, params).fold())(params)))

    def outputs(fixed, chunks):
        params, folded = fixed
        merged = nnx.merge(graph, params) if graph is not None else None
        scorer = merged and (lambda visual, audio: merged.score_folded(folded, visual, audio))
        return method.outputs(scorer, jax.tree.map(lambda array: array[0], chunks))

    compiled = jax.jit(on_own_part(mesh, outputs))
    bar = tqdm.tqdm(prefetched(batches), desc="score", total=len(batches), leave=False)
    found = (np.asarray(compiled(fixed, put_parts(mesh, batch)))[batch.weight.reshape(-1) > 0] for batch in bar)
    pieces = [method.frame_scores(*clips) for clips in _whole_clips(found, stream.border)]
    frame = np.concatenate(pieces)
    if not np.isfinite(frame).all():
        source.check_finite()
        raise InputError("the scores are not finite: the weights hold numbers that are too large")
    return frame


def _whole_clips(
    outputs: Iterable[Float[np.ndarray, "T K"]], border: Int64[np.ndarray, "borders"]
) -> Iterator[tuple[Float[np.ndarray, "T K"], Int64[np.ndarray, "clips"]]]:
    """Outputs of the clips that are complete, and their borders; holds back what the next batch goes on with."""
    waiting, clip, start = [], 0, 0
    for rows in outputs:
        waiting.append(rows)
        stop = start + sum(map(len, waiting))
        done = int(np.searchsorted(border, stop, side="right")) - 1
        if done > clip:
            whole = np.concatenate(waiting)
            cut = int(border[done]) - start
            yield whole[:cut], border[clip : done + 1] - border[clip]
            waiting, clip, start = [whole[cut:]], done, int(border[done])
