"""AVAD: trained on real clips to predict how well picture and sound will match; a surprise means fake.

Its synchronisation network is a trained alignment network, whose window scores serve as scores of 31 delays. The
published network looks at five frames of the face at a time; ours looks at the features of one frame.

Source: AVAD (Feng et al., CVPR 2023).

Letters: B sequences of `windows` windows, N = windows - 1 predicted steps (step t predicts window t + 1), W delays;
E sequences of a clip, n windows of a clip, T frames.
"""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int64, Key

from avh_shards import UserError
from jax_avh.config import BOUNDARIES, Config, MethodConfig, at_least, at_most, given, rules
from jax_avh.data.batches import Examples, FrameBatch
from jax_avh.data.passes import frame_pass
from jax_avh.data.source import Source
from jax_avh.methods.base import ExampleMethod
from jax_avh.models.alignment import NETWORKS, FrameNetwork
from jax_avh.models.avad import AVAD
from jax_avh.models.weights import check_features, load_weights, read_notes, weights_file
from jax_avh.models.windows import window_scores

LEAST = 2  # windows, so that at least one is predicted; a clip of one frame counts as that frame twice
Inputs = dict[str, Array]


@dataclasses.dataclass
class AVADConfig(MethodConfig):
    """Settings of AVAD, which is trained on the window scores of real clips."""

    name: str = "avad"
    # Weights of the avh_align network whose window scores avad reads: a .safetensors file, or the workdir of its run.
    sync_weights: str = rules("", given("a trained avh_align, as a .safetensors file or its workdir"))
    # Frames of a sequence, at most ten minutes; the official program scores a clip's first 50.
    windows: int = rules(50, at_least(LEAST), at_most(15_000))

    def weights_read(self) -> list[str]:
        """Returns the path of the alignment network's weights."""
        return [self.sync_weights]


# --- inputs ----------------------------------------------------------------------------------------------------------


class Sequences(Examples):
    """Window scores of the clips, computed once: of each clip's first windows, or of sequences that cover it."""

    def __init__(self, source: Source, network: AVAD, sliding: bool = False):
        heads = source if sliding else source.heads(network.windows + network.tau)
        sequences_of_clips, self._lengths, clip = [], [], []
        for index, scores in enumerate(_scores_of_clips(heads, network)):
            scores = scores if sliding else scores[: network.windows]
            scores = np.repeat(scores, LEAST, axis=0) if len(scores) < LEAST else scores
            sequences = cut(scores, network.windows)
            sequences_of_clips.append(sequences)
            self._lengths += [min(len(scores), network.windows)] * len(sequences)
            clip += [index] * len(sequences)
        self._sequences = np.concatenate(sequences_of_clips)
        super().__init__(source, np.array(clip))

    def read(self, example: int) -> dict[str, np.ndarray]:
        """Returns a sequence's window scores, and its length: the number of windows that are not padding."""
        return {"scores": self._sequences[example], "length": np.asarray(self._lengths[example], np.int32)}


def _window_scores(graph: nnx.GraphDef, params: nnx.State, frames: FrameBatch) -> Float[Array, "T W"]:
    network = nnx.merge(graph, params)
    return window_scores(network.sync, frames, network.boundary)[0]


def _scores_of_clips(source: Source, network: AVAD) -> list[Float[np.ndarray, "T W"]]:
    found = frame_pass(_window_scores, *nnx.split(network), network.tau)(source)
    return [scores for rows, border in found for scores in np.split(rows, border[1:-1])]


# --- clips of any length ---------------------------------------------------------------------------------------------
# The released program scores a clip's first 50 windows and ignores the rest. Here every window is scored: the clip is
# cut into sequences, whose scores are then joined. For clips of up to 50 windows, both agree.


def sequence_starts(length: int, windows: int) -> Int64[np.ndarray, " E"]:
    """Returns the first window of each sequence of a clip.

    Sequences start half a sequence apart; the last one ends with the clip.

    Args:
      length: windows of the clip.
      windows: windows of a sequence.
    """
    last = max(length - windows, 0)
    return np.append(np.arange(0, last, windows // 2), last)


def cut(scores: Float[np.ndarray, "n W"], windows: int) -> Float[np.ndarray, "E windows W"]:
    """Cuts a clip's window scores into sequences of `windows` windows; a shorter clip is padded with zeros."""
    padded = np.pad(scores, ((0, max(windows - len(scores), 0)), (0, 0)))
    return np.stack([padded[start : start + windows] for start in sequence_starts(len(scores), windows)])


def assemble(divergences: Float[np.ndarray, "E N"], length: int) -> Float[np.ndarray, " n"]:
    """Joins the scores of a clip's sequences into one score per window.

    Each window takes its score from the first sequence that contains it, because that one saw most of what precedes the
    window: at least half a sequence (25 windows by default), except near the start of the clip. Nothing predicts window
    0, which takes the score of window 1.

    Args:
      divergences: scores of the clip's sequences at their steps.
      length: windows of the clip, at least two.
    """
    assert length > 1, "a clip of one window has no predictions"
    windows = divergences.shape[1] + 1
    starts = sequence_starts(length, windows)
    position = np.maximum(np.arange(length), 1)
    sequence = np.searchsorted(starts + windows, position, side="right")
    return divergences[sequence, position - starts[sequence] - 1]


def clip_score(scores: Float[np.ndarray, " n"]) -> float:
    """Returns the mean over all windows but window 0, which is not predicted."""
    assert len(scores) > 1, "a clip of one window has no predictions"
    return float(np.mean(scores[1:], dtype=np.float64))


# --- loss and score --------------------------------------------------------------------------------------------------


def soft_cross_entropy(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N"]:
    """Computes the training loss: the cross-entropy of the predicted distribution against the target, in nats.

    Args:
      scores: the synchronisation network's scores of every window; the target is the softmax of the next window's.
      logits: the decoder's predictions of the windows from the second on.

    Returns:
      Losses of all steps, not reduced.

    References:
      AVAD's preprint (arXiv 2301.01767), equation 5.
    """
    return -jnp.sum(jnp.exp(_log_target(scores, logits)) * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N"]:
    """Computes the score, higher = more fake: KL(target || predicted), the loss less the target's entropy.

    Args:
      scores: the synchronisation network's scores of every window; the target is the softmax of the next window's.
      logits: the decoder's predictions of the windows from the second on.

    Returns:
      Scores of all steps, in nats.
    """
    log_target = _log_target(scores, logits)
    return jnp.sum(jnp.exp(log_target) * (log_target - jax.nn.log_softmax(logits)), axis=-1)


def _log_target(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
    return jax.nn.log_softmax(scores[:, 1:].astype(logits.dtype))


def valid_steps(lengths: Int[Array, " B"], windows: int) -> Bool[Array, "B N"]:
    """Returns which steps predict a window of the clip and not padding; for a clip of one window, none do."""
    return jnp.arange(1, windows, dtype=lengths.dtype)[None] < lengths[:, None]


# --- method ----------------------------------------------------------------------------------------------------------


def make_model(config: Config[AVADConfig], source: Source) -> AVAD:
    """Builds the untrained network around its trained alignment network.

    Args:
      config: the run's settings.
      source: the training clips, whose features the alignment network must fit.

    Raises:
      UserError: the alignment weights are missing, damaged, or not for these features.
    """
    path = weights_file(config.method.sync_weights)
    notes = read_notes(path)
    if notes.get("method", "avh_align") != "avh_align":
        raise UserError(f"{path}: weights of {notes['method']}; --config.method.sync_weights needs those of avh_align")
    sync = cast(FrameNetwork, load_weights(path, config.train.precision))
    check_features(path, sync.width, notes, {**source.attributes, "width": source.width}, source.path)
    model = config.model
    return AVAD(sync, nnx.Rngs(config.seed), config.method.windows, model.tau, model.boundary, config.train.precision)


def model_of(notes: Mapping[str, str], precision: str) -> AVAD:
    """Builds the network that the notes of a weight file describe.

    Raises:
      KeyError, ValueError: the notes are incomplete or invalid.
    """
    width, windows, tau = (int(notes[name]) for name in ("sync_width", "windows", "tau"))
    if width < 1 or windows < LEAST or tau < 0 or notes["boundary"] not in BOUNDARIES:
        raise ValueError(f"width {width}, {windows} windows, tau {tau}, boundary {notes['boundary']}")
    kind = {"modality": notes["sync_modality"], "normalised": notes["sync_normalised"] == "true"}
    sync = NETWORKS[notes["sync_head"]](width, rngs=nnx.Rngs(0), precision=precision, **kind)
    return AVAD(sync, nnx.Rngs(0), windows, tau, notes["boundary"], precision)


def loss(
    network: AVAD, inputs: Inputs, _label: Int[Array, " B"], weight: Float[Array, " B"], key: Key[Array, ""] | None
) -> Float[Array, ""]:
    """Computes the mean loss of a batch of real clips, in nats: the mean over each sequence, then over the sequences.

    Args:
      network: the network.
      inputs: `scores` and `length` of the sequences.
      weight: 1 = a sequence that counts, 0 = padding; at least one counts.
      key: key of dropout; None = no dropout.
    """
    values = soft_cross_entropy(inputs["scores"], network(inputs["scores"][:, :-1], key))
    valid = valid_steps(inputs["length"], network.windows).astype(values.dtype)
    of_sequences = jnp.sum(values * valid, axis=1) / jnp.sum(valid, axis=1)
    return jnp.sum(of_sequences * weight) / jnp.sum(weight)


def outputs(network: AVAD, inputs: Inputs) -> Float[Array, "B N"]:
    """Returns how far each window's scores of the delays are from their prediction."""
    return kl_divergence(inputs["scores"], network(inputs["scores"][:, :-1]))


def first_windows_score(divergences: Float[np.ndarray, "E N"], frames: int) -> tuple[float, None]:
    """Returns the mean over the first windows, as the released program does; frames have no scores."""
    foreseen = max(min(frames - 1, divergences.shape[1]), LEAST - 1)
    return float(divergences[0, :foreseen].mean(dtype=np.float64)), None


def sliding_score(divergences: Float[np.ndarray, "E N"], frames: int) -> tuple[float, Float[np.ndarray, " T"]]:
    """Returns the mean over the whole clip, and the score of every frame."""
    frame = assemble(divergences, max(frames, LEAST))
    return clip_score(frame), frame[:frames]


METHOD = ExampleMethod(
    name="avad",
    deviation="an alignment network on features scores its delays; the published one uses a network on faces",
    real_only=True,
    make_model=make_model,
    model_of=model_of,
    examples=Sequences,
    batch_size=64,
    prepare=lambda inputs: inputs,
    loss=loss,
    outputs=outputs,
    clip_score=first_windows_score,
    trained=nnx.All(nnx.Param, nnx.Not(nnx.PathContains("sync"))),
)
SLIDING = dataclasses.replace(
    METHOD,
    name="avad_sliding",
    trained_as="avad",
    examples=lambda source, network: Sequences(source, network, sliding=True),
    clip_score=sliding_score,
)
