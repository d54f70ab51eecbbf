"""Which method is meant, and a trained one with its weights."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from extract.schema import InputError
from jax_avh.methods import METHODS, FrameMethod
from jax_avh.models import FrameBatch, FrameNetwork, load_weights, read_notes, weights_file

DEFAULT = "avh_align"  # what weights that do not say are for: an official file's


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

    @property
    def attributes(self) -> dict[str, object]:
        """What its scores say of it."""
        return {"weights": str(self.path), "alignment_sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def check_fits(self, width: int, attributes: Mapping[str, object], what: object) -> None:
        """Raises an InputError if features of a width and encoder are not those that it was trained on."""
        if width != self.network.width:
            raise InputError(
                f"{self.path}: takes features of width {self.network.width}, but those of {what} have {width}"
            )
        made_of, found = (str(known.get("weights_sha256", "unknown")) for known in (self.notes, attributes))
        if "unknown" not in (made_of, found) and made_of != found:
            raise InputError(f"{self.path}: was trained on features of another encoder than those of {what}")

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
