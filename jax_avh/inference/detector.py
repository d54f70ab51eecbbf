"""Which method is meant, and a trained one with its weights."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from avh_shards import UserError, marks
from avh_shards.paths import file_sha256
from jax_avh.methods import METHODS, ExampleMethod, FrameMethod
from jax_avh.models import FrameBatch, check_features, read_notes, weights_file

DEFAULT = "avh_align"  # what weights that do not say are for: an official file's


def choose_method(method: str | None, weights: Path | None) -> str:
    """The name of the method that is meant.

    Raises:
      UserError: there is no such method, or it does not go with the weights, or with none.
    """
    trained = read_notes(weights).get("method") if weights else None
    name = method or trained or (DEFAULT if weights else None)
    if name not in METHODS:
        raise UserError(f"--method={name}: is none of {', '.join(METHODS)}" if name else "--weights is needed")
    if METHODS[name].learns and not weights:
        raise UserError(f"--method={name} needs --weights: a .safetensors file, or the workdir of a training run")
    if weights and not METHODS[name].learns:
        raise UserError(f"--method={name} takes no --weights; it does not learn")
    if trained and trained not in (name, METHODS[name].trained_as):
        raise UserError(f"{weights}: was trained as {trained}, not as {name}")
    return name


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained method: its network, and what its weights say of themselves."""

    path: Path
    method: FrameMethod | ExampleMethod
    network: nnx.Module
    notes: dict[str, str]

    @property
    def attributes(self) -> dict[str, object]:
        """What its scores say of it."""
        known = {"weights": str(self.path), "alignment_sha256": file_sha256(self.path)}
        return known | ({"trained_on": ",".join(found)} if (found := marks(self.notes)) else {})

    def check_fits(self, width: int, attributes: Mapping[str, object], what: object) -> None:
        """Raises an UserError if features of a width and encoder are not those that it was trained on."""
        if not self.method.features:
            return
        check_features(self.path, self.network.width, self.notes, {**attributes, "width": width}, what)

    def frame_scores(self, visual: Float[np.ndarray, "T D"], audio: Float[np.ndarray, "T D"]) -> np.ndarray:
        """Frame scores [T], float32, of one clip's features.

        Raises:
          UserError: the method reads more than features.
        """
        if not isinstance(self.method, FrameMethod):
            raise UserError(f"{self.path}: {self.method.name} scores clips of shards (launch.score), not a lone video")
        none = jnp.zeros(len(visual), jnp.int32)
        batch = FrameBatch(jnp.asarray(visual), jnp.asarray(audio), none, none.astype(jnp.float32), none)
        return np.asarray(self.method.outputs(self.network, batch))[:, 0]


def load_detector(weights: str | os.PathLike, method: str | None = None) -> Detector:
    """A method's weights: a .safetensors file, or the workdir of a training run (its best weights).

    Raises:
      UserError: they are missing or damaged, or of another method.
    """
    path = weights_file(weights)
    chosen = METHODS[choose_method(method, path)]
    return Detector(path, chosen, chosen.load(path), read_notes(path))
