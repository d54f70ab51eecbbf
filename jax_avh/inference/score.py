"""Feature shards -> frame scores and clip scores, by any method."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from avh_shards import UserError
from avh_shards.clip import offsets
from avh_shards.format import SHARD_PATTERN
from avh_shards.paths import HDF5, as_path, check_outputs, file_lock, locked
from avh_shards.text import one_line
from jax_avh.data import Source, open_source
from jax_avh.inference.detector import Detector, load_detector
from jax_avh.inference.score_file import ScoreTable, open_scores, write_scores

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
      weights: of a trainable method: a .safetensors file, or the workdir of a training run (its best weights).
      notes: what the shards do not record: `dataset`, a name, and `trimmed`, a bool.
      batch_frames: frames of one step; None = what suits the backend.

    Returns:
      What was written.

    Raises:
      UserError: the weights or the features are missing, damaged, lack what the method needs, or do not fit; or
        another run is writing the same score file.
    """
    detector = load_detector(weights, method, batch_frames)
    chosen = detector.method
    source = open_source(features)
    detector.check_fits(source.width, source.attributes, source.path)
    attributes = _known(source, notes) | {"features": str(features), "fingerprint": source.fingerprint()}
    _check_free(output, source, detector, attributes["fingerprint"])
    attributes |= detector.attributes
    for content in chosen.reads:
        source.check_has(content)
    with locked(output, file_lock(output)):
        frame, clip = detector.score(source)
        if chosen.pooling:
            attributes |= {"pooling": chosen.pooling}
        if chosen.threshold is not None:
            attributes |= {"threshold": chosen.threshold}
        if chosen.reference.deviation:
            attributes |= {"deviation": chosen.reference.deviation}
        table = ScoreTable(chosen.name, tuple(source.clips), offsets(source.lengths), frame, clip, attributes)
        write_scores(table, output)
    return table


def _check_free(output: str | os.PathLike, source: Source, detector: Detector, fingerprint: object) -> None:
    """Rejects an output that cannot be written, is an input, would pass for a shard, or holds other scores.

    Args:
      output: the score file to write.
      source: features to score.
      detector: the method, and the weights to score them with.
      fingerprint: of the features; scores of the same method and features may be replaced.
    """
    inputs = [*(shard.path for shard in source.shards), *([detector.path] if detector.path else [])]
    check_outputs({output: HDF5}, inputs)
    if Path(output).match(SHARD_PATTERN):
        raise UserError(f"{output}: is named like a shard ({SHARD_PATTERN}); name the scores otherwise")
    if not as_path(output).exists() or not as_path(output).stat().st_size:
        return
    found = open_scores(output).attributes
    if found.get("method") != detector.method.name:
        raise UserError(
            f"{output}: holds scores of {one_line(found.get('method'))}, not of {detector.method.name}; "
            "name another file"
        )
    if found.get("fingerprint") != fingerprint:
        raise UserError(
            f"{output}: holds scores of other features ({one_line(found.get('features'))}) than {source.path}; "
            "name another file"
        )


def _known(source: Source, notes: Mapping[str, object]) -> dict[str, object]:
    """What the shards and the notes say of the features."""
    known = {name: source.attributes[name] for name in COPIED if name in source.attributes}
    for name, value in notes.items():
        if (found := known.get(name, "unknown")) not in ("unknown", value):
            raise UserError(f"{source.path}: its {name} is {found}, not {value}")
    return known | dict(notes)
