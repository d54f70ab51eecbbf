"""Feature shards -> frame scores and clip scores."""

import hashlib
import os
from pathlib import Path

import jax
import numpy as np
import tqdm
from flax import nnx

from extract.schema import InputError, check_output
from jax_avh.data import FrameBatches, frame_stream, open_source, prefetched
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.scores import ScoreTable, write_scores
from jax_avh.methods import avh_align
from jax_avh.models import AlignmentNetwork, load_weights, weights_file
from jax_avh.training.sharding import make_mesh, put_parts

BATCH_FRAMES = 8192
COPIED = ("encoder", "weights_sha256", "trimmed")  # attributes of the shards


def score_shards(weights: str | os.PathLike, features: str | os.PathLike, output: str | os.PathLike) -> ScoreTable:
    """Scores every frame and every clip of a folder of shards.

    Args:
      weights: a .safetensors file, or the workdir of a training run (its best weights).
      features: a folder of shards, or one shard.
      output: the score file to write.

    Returns:
      What was written.

    Raises:
      InputError: the weights or the features are missing, damaged, or do not fit each other.
    """
    path = weights_file(weights)
    network, source = load_weights(path), open_source(features)
    if source.width != network.width:
        raise InputError(
            f"{path}: takes features of width {network.width}, but those in {features} have {source.width}"
        )
    check_output(output)
    if Path(output).resolve() in {file.resolve() for file in (path, *(shard.path for shard in source.shards))}:
        raise InputError(f"{output}: is an input of this command; name another file to write")
    stream = frame_stream(source)
    frame = score_frames(network, FrameBatches(stream, BATCH_FRAMES, tau=0, chunks=jax.device_count()))
    if not np.isfinite(frame).all():
        source.check_finite()
        raise InputError(f"{path}: gives scores that are not finite; the weights hold NaN or infinity")
    attributes = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    attributes |= {"weights": str(path), "features": str(features)}
    attributes["alignment_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    clip = POOLINGS[avh_align.CLIP_POOLING](frame, stream.border).astype(np.float32)
    table = ScoreTable(avh_align.NAME, tuple(source.clips), stream.border, frame, clip, attributes)
    write_scores(table, output)
    return table


def score_frames(network: AlignmentNetwork, batches: FrameBatches) -> np.ndarray:
    """Frame scores [F], float32, of a stream."""
    mesh = make_mesh()
    graph, params = nnx.split(network)
    compiled = jax.jit(lambda params, visual, audio: avh_align.frame_scores(nnx.merge(graph, params), visual, audio))
    scores = []
    for batch in tqdm.tqdm(prefetched(batches), desc="score", total=len(batches), leave=False):
        visual, audio = put_parts(mesh, (batch.visual, batch.audio))
        scores.append(np.asarray(compiled(params, visual, audio))[batch.weight > 0])
    return np.concatenate(scores)
