"""Feature shards -> frame scores and clip scores, by any method."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Float, Int64

from extract.schema import SHARD_PATTERN, InputError, check_output, refuse_inputs
from jax_avh.data import Batching, FeatureSource, FrameBatches, frame_stream, open_source, prefetched
from jax_avh.evaluation.detector import Detector, choose_method, load_detector
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.scores import ScoreTable, write_scores
from jax_avh.methods import METHODS, ClipMethod, FrameMethod
from jax_avh.models import FrameNetwork
from jax_avh.training.sharding import make_mesh, on_own_part, put_copies

BATCH_FRAMES = {"cpu": 2048}  # backend -> frames of a step: what stays in its caches
LARGE_BATCH_FRAMES = 16384  # of all other backends
COPIED = ("encoder", "weights_sha256", "trimmed", "dataset")  # attributes of the shards


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
        detector.check_fits(source.width, source.attributes, source.path)
    _check_free(output, source, detector)
    attributes = _known(source, notes) | {"features": str(features), "fingerprint": source.fingerprint()}
    attributes |= detector.attributes if detector else {}
    border = frame_stream(source).border
    if isinstance(chosen, ClipMethod):
        frame, clip = None, _clip_scores(chosen, source)
    else:
        batch_frames = batch_frames or BATCH_FRAMES.get(jax.default_backend(), LARGE_BATCH_FRAMES)
        frame = _frame_scores(chosen, detector and detector.network, source, batch_frames)
        clip = POOLINGS[chosen.pooling](frame, border)
        attributes |= {"pooling": chosen.pooling}
        attributes |= {} if chosen.threshold is None else {"threshold": chosen.threshold}
    table = ScoreTable(chosen.name, tuple(source.clips), border, frame, clip.astype(np.float32), attributes)
    write_scores(table, output)
    return table


def _check_free(output: str | os.PathLike, source: FeatureSource, detector: Detector | None) -> None:
    """Refuses an output that cannot be written, that is an input, or that would pass for a shard."""
    check_output(output)
    refuse_inputs([output], [*(shard.path for shard in source.shards), *([detector.path] if detector else [])])
    if Path(output).match(SHARD_PATTERN):
        raise InputError(f"{output}: is named like a shard ({SHARD_PATTERN}); name the scores otherwise")


def _known(source: FeatureSource, notes: Mapping[str, object]) -> dict[str, object]:
    """What the shards and the notes say of the features."""
    known = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    for name, value in notes.items():
        if (found := known.get(name, "unknown")) not in ("unknown", value):
            raise InputError(f"{source.path}: its {name} is {found}, not {value}")
    return known | dict(notes)


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

    def outputs(fixed, chunk):
        params, folded = fixed
        merged = nnx.merge(graph, params) if graph is not None else None
        scorer = merged and (lambda visual, audio: merged.score_folded(folded, visual, audio))
        return method.outputs(scorer, chunk)

    compiled = jax.jit(on_own_part(mesh, outputs))
    bar = tqdm.tqdm(prefetched(batches), desc="score", total=len(batches), leave=False)
    # Chunks end to end: each device takes its own as it is; out of an axis of chunks it would have to be copied.
    found = (np.asarray(compiled(fixed, jax.tree.map(_end_to_end, batch)))[batch.weight.ravel() > 0] for batch in bar)
    pieces = [method.frame_scores(*clips) for clips in _whole_clips(found, stream.border)]
    frame = np.concatenate(pieces)
    if not np.isfinite(frame).all():
        source.check_finite()
        raise InputError("the scores are not finite: the weights hold numbers that are too large")
    return frame


def _end_to_end(chunks: np.ndarray) -> np.ndarray:
    return chunks.reshape(-1, *chunks.shape[2:])


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
