"""Which method is meant, and a detector: a method with its network."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from avh_shards import UserError
from avh_shards.clip import offsets
from avh_shards.format import marks
from avh_shards.paths import file_sha256
from jax_avh.data import Source
from jax_avh.inference.pooling import POOLINGS
from jax_avh.methods import METHODS
from jax_avh.methods.base import Method, Scores, TrainableMethod
from jax_avh.models import check_features, read_notes, weights_file

DEFAULT = "avh_align"  # what weights that do not say are for: an official file's


def choose_method(method: str | None, weights: Path | None) -> Method:
    """Returns the method that is meant: the one place that looks it up by what weights record.

    Raises:
      UserError: there is no such method, or it does not go with the weights, or with none.
    """
    trained = read_notes(weights).get("method") if weights else None
    name = method or trained or (DEFAULT if weights else None)
    if name not in METHODS:
        raise UserError(f"--method={name}: is none of {', '.join(METHODS)}" if name else "--weights is needed")
    chosen = METHODS[name]
    if chosen.trainable and not weights:
        raise UserError(f"--method={name} needs --weights: a .safetensors file, or the workdir of a training run")
    if weights and not chosen.trainable:
        raise UserError(f"--method={name} takes no --weights; it does not learn")
    if trained and trained not in (name, chosen.trained_as):
        raise UserError(f"{weights}: was trained as {trained}, not as {name}")
    return chosen


@dataclasses.dataclass(frozen=True)
class Detector:
    """A method, ready to score: with its network and what its weights record, if it has any."""

    method: Method
    path: Path | None = None  # of the weights
    network: Any = None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    batch_frames: int | None = None  # frames of one step; None = what suits the backend

    @property
    def attributes(self) -> dict[str, object]:
        """What its scores record of its weights."""
        if self.path is None:
            return {}
        known: dict[str, object] = {"weights": str(self.path), "alignment_sha256": file_sha256(self.path)}
        return known | ({"trained_on": ",".join(found)} if (found := marks(self.notes)) else {})

    def check_fits(self, width: int, attributes: Mapping[str, object], what: object) -> None:
        """Raises a UserError if features of a width and encoder are not those that it was trained on."""
        if self.path is not None and "features" in self.method.reads:
            check_features(self.path, self.network.width, self.notes, {**attributes, "width": width}, what)

    @functools.cached_property
    def _scorer(self) -> Callable[[Source], Scores]:
        return self.method.scorer(self.network, self.batch_frames)

    def score(self, source: Source) -> tuple[Float[np.ndarray, " F"] | None, Float[np.ndarray, " N"]]:
        """Scores a source.

        Returns:
          Scores of every frame, if the method scores frames, and of every clip.

        Raises:
          UserError: the features or the scores are not finite.
        """
        frame, clip = self._scorer(source)
        if clip is None:
            assert frame is not None
            clip = POOLINGS[self.method.pooling](frame, offsets(source.lengths))
        if not all(np.isfinite(scores).all() for scores in (frame, clip) if scores is not None):
            source.check_finite()
            raise UserError("the scores are not finite: the weights hold numbers that are too large")
        return frame, np.asarray(clip).astype(np.float32)


def load_detector(
    weights: str | os.PathLike | None, method: str | None = None, batch_frames: int | None = None
) -> Detector:
    """Loads a method with its weights.

    Args:
      weights: a .safetensors file, or the workdir of a training run (its best weights); None = a method without any.
      method: a name of METHODS; None = what the weights were trained as.
      batch_frames: frames of one step; None = what suits the backend.

    Raises:
      UserError: weights are missing or damaged, or of another method.
    """
    path = None if weights is None else weights_file(weights)
    chosen = choose_method(method, path)
    if path is None:
        return Detector(chosen, batch_frames=batch_frames)
    network = cast(TrainableMethod, chosen).load_model(path)
    return Detector(chosen, path, network, read_notes(path), batch_frames)
