"""Feature shards -> frame scores and clip scores, by any method."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array, Float

from avh_shards import SHARD_PATTERN, UserError, as_path, check_outputs, file_lock, locked, offsets, one_line
from avh_shards.kinds import HDF5
from jax_avh.data import FeatureSource, open_source
from jax_avh.inference.detector import Detector, choose_method, load_detector
from jax_avh.inference.passes import example_scorer, frame_outputs
from jax_avh.inference.pooling import POOLINGS
from jax_avh.inference.score_file import ScoreTable, open_scores, write_scores
from jax_avh.methods import METHODS, ClipMethod, ExampleMethod, FrameMethod
from jax_avh.models import FrameBatch, FrameNetwork

CLIPS_AT_ONCE = 4096  # whose examples are held at once
COPIED = ("encoder", "weights_sha256", "trimmed", "dataset")  # attributes of the shards

Scores = tuple[Float[np.ndarray, " F"] | None, Float[np.ndarray, " N"]]


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
      UserError: the weights or the features are missing, damaged, lack what the method needs, or do not fit; or
        another run is writing the same score file.
    """
    detector = load_detector(weights, method) if weights is not None else None
    chosen = detector.method if detector else METHODS[choose_method(method, None)]
    source = open_source(features)
    if detector:
        detector.check_fits(source.width, source.attributes, source.path)
    attributes = _known(source, notes) | {"features": str(features), "fingerprint": source.fingerprint()}
    _check_free(output, source, detector, {"method": chosen.name, "fingerprint": attributes["fingerprint"]})
    attributes |= detector.attributes if detector else {}
    for content in chosen.needs:
        source.check_has(content)
    with locked(output, file_lock(output)):
        frame, clip = _scores(chosen, detector and detector.network, source, batch_frames)
        if isinstance(chosen, FrameMethod):
            attributes |= {"pooling": chosen.pooling}
            attributes |= {} if chosen.threshold is None else {"threshold": chosen.threshold}
        if isinstance(chosen, ExampleMethod) and chosen.deviation:
            attributes |= {"deviation": chosen.deviation}
        clips = tuple(source.clips), offsets(source.lengths)
        table = ScoreTable(chosen.name, *clips, frame, clip.astype(np.float32), attributes)
        write_scores(table, output)
    return table


def _check_free(
    output: str | os.PathLike, source: FeatureSource, detector: Detector | None, own: dict[str, str]
) -> None:
    """Rejects an output that cannot be written, is an input, would pass for a shard, or holds other scores.

    Args:
      output: the score file to write.
      source: features to score.
      detector: weights to score them with.
      own: attributes that a score file has in common with one that it may replace.
    """
    inputs = [*(shard.path for shard in source.shards), *([detector.path] if detector else [])]
    check_outputs({output: HDF5}, inputs)
    if Path(output).match(SHARD_PATTERN):
        raise UserError(f"{output}: is named like a shard ({SHARD_PATTERN}); name the scores otherwise")
    if not as_path(output).exists() or not as_path(output).stat().st_size:
        return
    found = open_scores(output).attributes
    if found.get("method") != own["method"]:
        raise UserError(
            f"{output}: holds scores of {one_line(found.get('method'))}, not of {own['method']}; name another file"
        )
    if found.get("fingerprint") != own["fingerprint"]:
        raise UserError(
            f"{output}: holds scores of other features ({one_line(found.get('features'))}) than {source.path}; "
            "name another file"
        )


def _known(source: FeatureSource, notes: Mapping[str, object]) -> dict[str, object]:
    """What the shards and the notes say of the features."""
    known = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    for name, value in notes.items():
        if (found := known.get(name, "unknown")) not in ("unknown", value):
            raise UserError(f"{source.path}: its {name} is {found}, not {value}")
    return known | dict(notes)


def _scores(
    method: ClipMethod | ExampleMethod | FrameMethod,
    network: nnx.Module | None,
    source: FeatureSource,
    batch_frames: int | None,
) -> Scores:
    """Frame scores, if the method has them, and its own clip scores."""
    if isinstance(method, ClipMethod):
        frame, clip = None, _clip_scores(method, source)
    elif isinstance(method, ExampleMethod):
        frame, clip = _example_scores(method, network, source)
    else:
        frame = _frame_scores(method, network, source, batch_frames)
        clip = POOLINGS[method.pooling](frame, offsets(source.lengths))
    if not all(np.isfinite(scores).all() for scores in (frame, clip) if scores is not None):
        source.check_finite()
        raise UserError("the scores are not finite: the weights hold numbers that are too large")
    return frame, clip


def _clip_scores(method: ClipMethod, source: FeatureSource) -> Float[np.ndarray, " N"]:
    clips = tqdm.tqdm(range(len(source.clips)), desc="score", unit=" clips", leave=False)
    return np.array([method.score(source, clip) for clip in clips])


def _example_scores(method: ExampleMethod, network: nnx.Module, source: FeatureSource) -> Scores:
    """Some thousands of clips at a time, so that any number of them will do."""
    scored, score = [], example_scorer(method.outputs, method.prepare, network, method.batch_size)
    for first in range(0, len(source.members), CLIPS_AT_ONCE):
        part = dataclasses.replace(source, members=source.members[first : first + CLIPS_AT_ONCE])
        examples = method.examples(part, network)
        outputs = score(examples)
        border = np.searchsorted(examples.clip, np.arange(len(part.members) + 1))
        scored += [
            method.clip_score(outputs[start:stop], int(frames))
            for start, stop, frames in zip(border[:-1], border[1:], part.lengths, strict=True)
        ]
    clip, frame = zip(*scored, strict=True)
    return None if frame[0] is None else np.concatenate(frame).astype(np.float32), np.array(clip)


def _frame_scores(
    method: FrameMethod, network: FrameNetwork | None, source: FeatureSource, batch_frames: int | None
) -> Float[np.ndarray, " F"]:
    # The same for every batch: the network's parameters, its linear maps folded into one.
    graph, fixed = None, ((), ())
    if network is not None:
        graph, params = nnx.split(network)
        fixed = params, jax.jit(lambda params: nnx.merge(graph, params).fold())(params)

    def outputs(fixed: tuple, frames: FrameBatch) -> Float[Array, "T K"]:
        params, folded = fixed
        merged = nnx.merge(graph, params) if graph is not None else None
        scorer = merged and (lambda visual, audio: merged.score_folded(folded, visual, audio))
        return method.outputs(scorer, frames)

    found = frame_outputs(source, outputs, fixed, method.tau, batch_frames)
    return np.concatenate([method.frame_scores(*clips) for clips in found])
