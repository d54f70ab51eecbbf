"""Verdicts on videos: from the file itself to its scores, in one process."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from extract.clips import Failure
from extract.encoder import Encoder
from extract.prepare import PrepareSettings, prepare_clip
from extract.schema import FRAME_RATE, ClipMeta, InputError, caveat, check_output, whole_file
from extract.workers import attempt
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.methods import avh_align
from jax_avh.models import AlignmentNetwork, load_weights, weights_file


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a video's frames say; higher = more fake, compared with real videos under the same weights."""

    path: str
    seconds: float = 0.0
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # by pooling
    worst_second: tuple[float, float] = (0.0, 0.0)  # start and end of the second whose frames score highest
    error: str = ""  # why there is no score
    caveat: str = ""

    def line(self) -> str:
        """The verdict in one line."""
        if self.error:
            return f"{self.path}: FAILED: {self.error}"
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        worst = "worst second {:.2f}-{:.2f} s".format(*self.worst_second)
        return "  ".join([f"{self.path}: {scores}", worst, *([self.caveat] if self.caveat else [])])


def detect(videos: Sequence[str], avhubert: str, weights: str, output: str | os.PathLike | None = None) -> int:
    """Scores videos one after the other, printing a line each.

    Args:
      videos: media files.
      avhubert: an official AV-HuBERT file, or "random".
      weights: alignment weights (.safetensors), or the workdir of a training run.
      output: JSON file of the verdicts, if wanted.

    Returns:
      Exit status: 0, or 2 if a video could not be scored.

    Raises:
      InputError: the weights are missing, damaged, or do not fit each other.
    """
    if output is not None:
        check_output(output)
    network = load_weights(weights_file(weights))
    encoder = Encoder(avhubert)
    if encoder.width != network.width:
        raise InputError(f"{weights}: takes features of width {network.width}, but {avhubert} gives {encoder.width}")
    verdicts = []
    for verdict in _verdicts(videos, encoder, network, caveat(encoder.attributes)):
        verdicts.append(verdict)
        print(verdict.line(), flush=True)
    if output is not None:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps([dataclasses.asdict(v) for v in verdicts], indent=2) + "\n")
    return 2 if any(verdict.error for verdict in verdicts) else 0


def worst_second(frame: Float[np.ndarray, " T"]) -> tuple[float, float]:
    """Start and end, in seconds, of the 25 frames with the highest mean score (all frames of a shorter clip)."""
    window = min(FRAME_RATE, len(frame))
    sums = np.convolve(frame, np.ones(window), mode="valid")
    start = int(sums.argmax())
    return start / FRAME_RATE, (start + window) / FRAME_RATE


def _verdicts(videos: Sequence[str], encoder: Encoder, network: AlignmentNetwork, note: str) -> Iterator[Verdict]:
    for video in videos:
        clip = attempt(prepare_clip, ClipMeta(Path(video).name), Path(video).parent, PrepareSettings())
        if isinstance(clip, Failure):
            yield Verdict(video, error=clip.reason)
            continue
        _, features = next(encoder.encode([clip]))
        if isinstance(features, Failure):
            yield Verdict(video, error=features.reason)
            continue
        frame = np.asarray(avh_align.frame_scores(network, *map(jnp.asarray, features[:2])))
        scores = {name: round(float(pool(frame)), 6) for name, pool in POOLINGS.items()}
        yield Verdict(video, len(frame) / FRAME_RATE, scores, worst_second(frame), caveat=note)
