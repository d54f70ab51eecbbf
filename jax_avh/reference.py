"""References: scores of real clips, and how suspicious other scores are among them. This module does not need JAX.

A score is compared with the real clips of similar length, because every pooling depends on the length: the log-sum-exp
and the maximum grow with it, and the mean of few frames varies more. Of n such clips, k score at least as high; the
conformal p-value is (1 + k) / (1 + n) (Vovk et al. 2005). If the video is a real clip like those of the reference, it
falls below any rate in at most that share of cases. It is not the probability that the video is fake.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

from avh_shards import UserError
from avh_shards.clip import FRAME_RATE
from avh_shards.format import UNKNOWN_STATE, caveat, marked
from avh_shards.paths import AnyPath, atomic_write, reachable
from avh_shards.text import one_line
from jax_avh.scores import RULES, nine_digits, pool_all

REFERENCE_FORMAT = "avh-reference"
REFERENCE_VERSION = 1
REFERENCE_KIND = rb'\{\s*"format": "avh-reference"'  # start of the file
UNPOOLED = "clip"  # key of clip scores that are not pooled from frame scores
MOST_CLIPS = 100_000  # real clips of a reference
MOST_BYTES = 1 << 24  # of the file
MOST_TEXT = 1000  # characters of an attribute
SIMILAR_CLIPS = 200  # least number of clips in a group of similar length; a reference of fewer is one group
MOST_GROUPS = 10  # of similar length
BEYOND = 1.25  # a video that is longer or shorter than all real clips by more than this factor is compared with none
FRAME_LIMIT = 0.99  # share of the real clips' frames that are not marked in a video
RATES = (0.01, 0.05)  # false-alarm rates at which a video is called suspicious or not
INTERVAL = (0.025, 0.975)
SHOWN = 10  # stretches of a video that are named

IDENTITY = {  # attributes of score files in which a reference and what is compared with it must agree -> their meaning
    "method": "the method",
    "alignment_sha256": "the weights",
    "weights_sha256": "the encoder",
    "trimmed": "whether leading silence was dropped",
    "faces": "which faces are scored",
}
ATTRIBUTES = (*IDENTITY, "pooling", "encoder", "trained_on", "dataset", "protocol")  # a reference has no others


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Map from p-values to probabilities, for fakes like those it was fitted to and as many fakes as real clips.

    Unlike scores, p-values do not depend on the length. The map takes the surprise: minus the natural logarithm of the
    one-sided p-value.
    """

    rule: str  # "platt" or "isotonic"
    real: int  # clips that it was fitted to
    fake: int
    surprise: Float64[np.ndarray, " K"]  # knots, rising; between them, the map is linear, and beyond them constant
    probability: Float64[np.ndarray, " K"]  # that a clip of this surprise is fake, never falling

    def __call__(self, surprise: Float64[np.ndarray, " M"]) -> Float64[np.ndarray, " M"]:
        """Returns the probabilities of clips."""
        return np.interp(surprise, self.surprise, self.probability)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How each of M scores ranks among the real clips of similar length."""

    clips: Int64[np.ndarray, " M"]  # real clips of similar length; 0 = none is
    above: Int64[np.ndarray, " M"]  # how many of them score at least as high
    below: Int64[np.ndarray, " M"]  # how many score at most as high
    shortest: Int64[np.ndarray, " M"]  # frames of the shortest of them; 0 = there is none
    longest: Int64[np.ndarray, " M"]

    def p_value(self, two_sided: bool = False) -> Float64[np.ndarray, " M"]:
        """Returns the conformal p-values: high scores are suspicious or, two-sided, scores at either end."""
        if two_sided:
            return np.minimum(2 * (1 + np.minimum(self.above, self.below)) / (1 + self.clips), 1)
        return (1 + self.above) / (1 + self.clips)

    def resolution(self, two_sided: bool = False) -> Float64[np.ndarray, " M"]:
        """Returns the smallest p-values that the numbers of real clips can give."""
        return np.minimum((1 + two_sided) / (1 + self.clips), 1)


@dataclasses.dataclass(frozen=True)
class Group:
    """Real clips of similar length."""

    shortest: int  # frames
    longest: int
    score: Float32[np.ndarray, " n"]  # rising

    def threshold(self, rate: float) -> float | None:
        """Returns the score above which a clip of similar length has a one-sided p-value of at most `rate`.

        None means that there are too few real clips, fewer than `clips_needed(rate)`.
        """
        allowed = p_values_within(len(self.score), rate)
        return float(self.score[-allowed]) if 0 < allowed <= len(self.score) else None


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a reference says of one video."""

    title: str  # number and data set of the reference's real clips
    protocol: str  # how they were made
    clips: int  # real clips of similar length, with which it is compared; 0 = there is none
    seconds: tuple[float, float]  # length of the shortest and longest of them or, if there is none, of all
    share: float  # of them, less suspicious than the video
    p_value: float | None  # of the method's own clip score; None = not compared
    resolution: float  # smallest p-value that this number of clips can give
    interval: tuple[float, float]  # 95 %, of the share that the p-value estimates
    two_sided: bool  # whether a score that is lower than those of real clips is suspicious, too
    low: bool  # whether the score is suspicious because it is low
    flagged: dict[str, bool | None]  # false-alarm rate -> whether the video is suspicious at it; None = too few clips
    p_values: dict[str, float]  # by pooling
    frame_limit: float  # 99th percentile of the real clips' frame scores
    stretches: list[tuple[float, float]]  # start and end, in seconds, of consecutive frames above it
    stretch_share: float  # share of the scored frames in them; 0.01 in real clips
    unscored_seconds: float  # of the video
    probability: float | None  # of a fake, if half of all clips were fakes like the reference's; None = unknown
    fakes: int  # of the reference, from which the probability comes
    which_faces: str  # faces that were scored one by one, whose frames count as the length; "" = one was followed

    @property
    def sentence(self) -> str:
        """The comparison in words and numbers."""
        low, high = self.seconds
        if self.p_value is None:
            return f"not compared: none of the {self.title} ({low:.1f}-{high:.1f} s) has a similar length"
        share = f"{math.floor(1000 * self.share) / 10:g} % of" if self.share < 1 else "all"
        kind = "fits better than" if self.low else "more suspicious than"
        length = f"with {low:.1f}-{high:.1f} s of scored faces" if self.which_faces else f"of {low:.1f}-{high:.1f} s"
        clips = f"{kind} {share} {self.clips:,} real clips {length}"
        chance = f"p = {self.p_value:.2g} in steps of {self.resolution:.2g}{', two-sided' if self.two_sided else ''}"
        least, most = (np.format_float_positional(end, 2, fractional=False, trim="-") for end in self.interval)
        return f"{clips} ({chance}; 95 % interval {least}-{most})"

    @property
    def decisions(self) -> list[str]:
        """Whether the video is suspicious at each false-alarm rate, in words."""
        found = []
        for rate, flagged in self.flagged.items():
            if flagged is None:
                needed = clips_needed(float(rate) / (2 if self.two_sided else 1))
                decision = f"undecided, because that takes {needed:,} real clips of similar length"
            else:
                decision = "flagged" if flagged else "not flagged"
                if self.unscored_seconds and not flagged:
                    decision += f", but {self.unscored_seconds:.2f} s were not scored"
            found.append(f"at {100 * float(rate):g} % false alarms: {decision}")
        return found

    @property
    def longest(self) -> list[tuple[float, float]]:
        """The longest stretches, SHOWN at most, in the order of time."""
        return sorted(sorted(self.stretches, key=lambda ends: ends[0] - ends[1])[:SHOWN])

    @property
    def odds(self) -> str:
        """The probability in words; "" if there is none."""
        if self.probability is None:
            return ""
        percent = 100 * self.probability
        share = "less than 1" if percent < 1 else "more than 99" if percent > 99 else f"{percent:.0f}"
        fakes = f"{share} % of those with this one-sided p-value would be fake"
        return f"if half of all videos were fakes like the {self.fakes:,} of the reference, {fakes}"

    def line(self) -> str:
        """Returns the judgement in one line."""
        places = ", ".join(f"{start:.2f}-{end:.2f}" for start, end in self.longest) + " s" if self.stretches else "none"
        more = f" and {len(self.stretches) - SHOWN} shorter" if len(self.stretches) > SHOWN else ""
        places = f"frames above 99 % of real clips' frames: {places}{more}"
        return "; ".join([self.sentence, *self.decisions, *filter(None, [self.odds]), places])


@dataclasses.dataclass(frozen=True)
class Reference:
    """Scores of N real clips by one method, without their names; the faces of a video count as one clip."""

    attributes: dict[str, Any]  # some of ATTRIBUTES: text, or a bool for `trimmed`
    length: Int64[np.ndarray, " N"]  # frames of each clip, rising
    scores: dict[str, Float32[np.ndarray, " N"]]  # by pooling, the method's own first; higher = more fake
    frame_limit: float | None = None  # 99th percentile of the clips' frame scores; None = it has none
    calibration: Calibration | None = None  # None = made without fakes

    @property
    def own(self) -> str:
        """Key of the method's own clip scores."""
        return next(iter(self.scores))

    @property
    def title(self) -> str:
        """Number and data set of the real clips, as in "1,204 real clips of FakeAVCeleb"."""
        name = marked(str(self.attributes.get("dataset", "")), self.attributes)
        return f"{len(self.length):,} real clips" + (f" of {name}" if name else "")

    def check_fits(self, attributes: Mapping[str, object], subject: str) -> None:
        """Checks that scores may be compared with the reference.

        Args:
          attributes: attributes of the scores, as in a score file.
          subject: names the reference in messages.

        Raises:
          UserError: an attribute in IDENTITY differs; an encoder or state that is unknown is not compared.
        """
        if (differing := differing_attribute(self.attributes, attributes)) is not None:
            mine, theirs = (one_line(known.get(differing, "not recorded")) for known in (self.attributes, attributes))
            raise UserError(
                f"{subject}: differs in {IDENTITY[differing]} ({differing} is {mine} in the reference, but {theirs} "
                "here); score both in the same way"
            )

    def groups(self, pooling: str) -> Iterator[Group]:
        """Yields the real clips by length, cut as for a clip of the greatest length: one clip less for others."""
        for group in _groups(np.append(self.length, self.length[-1])):
            clips = slice(group.start, min(group.stop, len(self.length)))
            lengths = self.length[clips]
            yield Group(int(lengths[0]), int(lengths[-1]), np.sort(self.scores[pooling][clips]))

    def rank(self, pooling: str, score: Float[np.ndarray, " M"], length: Int[np.ndarray, " M"]) -> Ranks:
        """Ranks scores among the real clips of similar length.

        Args:
          pooling: key of `scores`.
          score: clip scores, compared in single precision.
          length: frames of each clip.
        """
        found = {field.name: np.zeros(len(score), np.int64) for field in dataclasses.fields(Ranks)}
        order = np.argsort(length, kind="stable")
        distinct, starts = np.unique(length[order], return_index=True)
        for frames, chosen in zip(distinct.tolist(), np.split(order, starts[1:]), strict=True):
            clips = self._similar(frames)
            lengths, real = self.length[clips], np.sort(self.scores[pooling][clips])
            if len(real):
                values = score[chosen].astype(np.float32)
                found["clips"][chosen] = len(real)
                found["above"][chosen] = len(real) - np.searchsorted(real, values, "left")
                found["below"][chosen] = np.searchsorted(real, values, "right")
                found["shortest"][chosen], found["longest"][chosen] = lengths[0], lengths[-1]
        return Ranks(**found)

    def judge(
        self, frame: Float[np.ndarray, " T"], two_sided: bool = False, rates: Sequence[float] = RATES
    ) -> Judgement:
        """Compares the frame scores of a video with the real clips.

        The reference must have frame scores and fit the video's; see `check_fits`.

        Args:
          frame: frame scores, 25 per second, or those of all its faces that are scored, one after the other; NaN = not
            scored. The length that is compared is the number of scored frames, at least one.
          two_sided: whether a score lower than those of real clips is suspicious, too.
          rates: false-alarm rates, between 0 and 1.

        Returns:
          The comparison. One video's p-values by several poolings are not independent: choose the pooling first.
        """
        assert self.frame_limit is not None, "a reference without frame scores"
        assert self.own in RULES, "a reference of clip scores that are not pooled"
        scored = frame[np.isfinite(frame)]
        length = np.array([len(scored)])
        scores = {name: np.array([score]) for name, score in pool_all(scored).items() if name in self.scores}
        ranks = {name: self.rank(name, score, length) for name, score in scores.items()}
        p_values = {name: float(rank.p_value(two_sided)[0]) for name, rank in ranks.items()}
        own = ranks[self.own]
        clips, above, below = (int(count[0]) for count in (own.clips, own.above, own.below))
        low = two_sided and below < above
        tail = below if low else above
        interval = [min((1 + two_sided) * end, 1.0) for end in share_interval(tail, clips)] if clips else (0.0, 1.0)
        frames = (own.shortest[0], own.longest[0]) if clips else (self.length[0], self.length[-1])
        p_value = p_values[self.own] if clips else None
        resolution = float(own.resolution(two_sided)[0])
        probability = None
        if self.calibration and clips and not two_sided:  # about low scores, it says nothing
            probability = float(self.calibration(-np.log(own.p_value()))[0])
        return Judgement(
            title=self.title,
            protocol=str(self.attributes.get("protocol", "")),
            clips=clips,
            seconds=(float(frames[0]) / FRAME_RATE, float(frames[1]) / FRAME_RATE),
            share=(clips - tail) / clips if clips else 0.0,
            p_value=p_value,
            resolution=resolution,
            interval=(interval[0], interval[1]),
            two_sided=two_sided,
            low=low,
            flagged={f"{r:g}": None if p_value is None or resolution > r else p_value <= r for r in rates},
            p_values=p_values if clips else {},
            frame_limit=self.frame_limit,
            stretches=stretches(frame > self.frame_limit),
            stretch_share=float((scored > self.frame_limit).mean()),
            unscored_seconds=(len(frame) - len(scored)) / FRAME_RATE,
            probability=probability,
            fakes=self.calibration.fake if self.calibration else 0,
            which_faces=str(self.attributes.get("faces", "")),
        )

    def _similar(self, frames: int) -> slice:
        """Returns the clips with which a clip of a length is compared: those in its group.

        The groups are cut from its length and those of the real clips together. So they do not depend on which of the
        clips is the one to compare, and p-values are exact within each group for exchangeable clips.
        """
        if not self.length[0] / BEYOND <= frames <= self.length[-1] * BEYOND:
            return slice(0)
        place = int(np.searchsorted(self.length, frames))
        for group in _groups(np.insert(self.length, place, frames)):
            if place < group.stop:
                return slice(group.start, group.stop - 1)
        raise AssertionError("no group holds the clip")


def _groups(length: Int64[np.ndarray, " N"]) -> Iterator[slice]:
    """Cuts clips in the order of their lengths into groups, with equal lengths in the same group."""
    least = max(SIMILAR_CLIPS, len(length) // MOST_GROUPS)
    start = 0
    while start < len(length):
        stop = len(length)
        if stop - start >= 2 * least:
            after = int(np.searchsorted(length, length[start + least - 1], "right"))
            stop = after if stop - after >= least else stop
        yield slice(start, stop)
        start = stop


def differing_attribute(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str | None:
    """Returns the first attribute in IDENTITY that differs between two records of scores; None if none does.

    Features from other programs may not record their encoder or state, which are then not compared.
    """
    for name in IDENTITY:
        values = {str(known.get(name, "")) for known in (mine, theirs)}
        unknown = values & {"", UNKNOWN_STATE} if name in ("weights_sha256", "trimmed") else set()
        if len(values) > 1 and not unknown:
            return name
    return None


def p_values_within(clips: int, rate: float) -> int:
    """Returns how many of the one-sided p-values that a number of real clips can give are at most a rate."""
    return int((np.arange(1, clips + 2) / (clips + 1) <= rate).sum())


def clips_needed(rate: float) -> int:
    """Returns the least number of real clips for which a p-value can be as small as a rate."""
    needed = math.ceil(1 / rate) - 1
    return needed if 1 / (needed + 1) <= rate else needed + 1


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share, of which `count` in `total` independent cases are an estimate.

    References:
      Clopper and Pearson 1934: from quantiles of beta distributions, which never cover too seldom.
    """
    low = scipy.special.betaincinv(count, total - count + 1, INTERVAL[0]) if count else 0.0
    high = scipy.special.betaincinv(count + 1, total - count, INTERVAL[1]) if count < total else 1.0
    return float(low), float(high)


def stretches(marked: Bool[np.ndarray, " T"]) -> list[tuple[float, float]]:
    """Returns start and end, in seconds, of each run of marked frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    return [(start / FRAME_RATE, end / FRAME_RATE) for start, end in edges.reshape(-1, 2).tolist()]


# --- reference.json --------------------------------------------------------------------------------------------------


def write_reference(reference: Reference, path: AnyPath) -> None:
    """Writes a reference as JSON, whole or not at all.

    Raises:
      UserError: the file cannot be written: no space, no permission, ...
    """
    content: dict[str, Any] = {
        "format": REFERENCE_FORMAT,
        "version": REFERENCE_VERSION,
        "frame_rate": FRAME_RATE,
        "caveat": caveat(reference.attributes),
        "attributes": reference.attributes,
        "length": reference.length.tolist(),
        "scores": {name: nine_digits(score) for name, score in reference.scores.items()},
        "frame_limit": reference.frame_limit,
        "calibration": None,
    }
    if reference.calibration:
        knots = {name: getattr(reference.calibration, name).tolist() for name in ("surprise", "probability")}
        content["calibration"] = vars(reference.calibration) | knots
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_reference(path: AnyPath) -> Reference:
    """Reads a reference that `launch.calibrate` wrote.

    Args:
      path: the file, local or a URL.

    Raises:
      UserError: the file is missing, too large, damaged or inconsistent, or has a different format or version.
    """
    file = reachable(path)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=float)
        kind = [_object("content", content).get(name) for name in ("format", "version", "frame_rate")]
        if kind != [REFERENCE_FORMAT, REFERENCE_VERSION, FRAME_RATE]:
            raise ValueError(f"format, version and frame rate are {one_line(kind)[:MOST_TEXT]}")
        return _parse(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error.strerror or error)}); name a reference") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)[:MOST_TEXT]
        raise UserError(f"{path}: not a valid reference ({reason}); make one with launch.calibrate") from error


def _parse(content: dict[str, Any]) -> Reference:
    """Returns the reference in the contents of a file; raises any of the errors above if it is not valid."""
    known = _object("attributes", content["attributes"])
    attributes = {name: value for name, value in known.items() if name in ATTRIBUTES}
    for name, value in attributes.items():
        text = isinstance(value, str) and value.isprintable() and len(value) <= MOST_TEXT
        if not text and not (name == "trimmed" and isinstance(value, bool)):
            raise ValueError(f"its attribute {name!r} is not a line of text")
    if not attributes.get("method"):
        raise ValueError("it records no method")
    length = _numbers("length", content["length"], np.int64)
    if not 0 < len(length) <= MOST_CLIPS or length[0] < 1 or (np.diff(length) < 0).any():
        raise ValueError(f"its lengths are not 1 to {MOST_CLIPS:,} rising numbers of frames")
    scored = _object("scores", content["scores"])
    scores = {name: _numbers(f"scores of {one_line(name)}", values, np.float32) for name, values in scored.items()}
    if not scores or not scores.keys() <= {*RULES, UNPOOLED} or any(len(s) != len(length) for s in scores.values()):
        raise ValueError("its scores do not fit its lengths, or are by unknown poolings")
    if attributes.get("pooling", UNPOOLED) != next(iter(scores)):
        raise ValueError("the first of its scores are not by the method's own pooling")
    limit = content["frame_limit"]
    if limit is not None:
        (limit,) = _numbers("frame_limit", [limit], np.float64).tolist()
    found = content["calibration"]
    calibration = None if found is None else _parse_calibration(_object("calibration", found))
    return Reference(attributes, length, scores, limit, calibration)


def _parse_calibration(content: dict[str, Any]) -> Calibration:
    surprise, probability = (_numbers(name, content[name], np.float64) for name in ("surprise", "probability"))
    rises = (np.diff(surprise) > 0).all() and (np.diff(probability) >= 0).all()
    if not rises or not 0 < len(surprise) == len(probability) or probability[0] < 0 or probability[-1] > 1:
        raise ValueError("its calibration is not a rising map to probabilities")
    real, fake = _numbers("calibration", [content["real"], content["fake"]], np.int64).tolist()
    if content["rule"] not in ("platt", "isotonic") or min(real, fake) < 1:
        raise ValueError("its calibration is by no known rule, or of no clips")
    return Calibration(content["rule"], real, fake, surprise, probability)


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"its {name} is not a JSON object")
    return value


def _numbers(name: str, values: object, dtype: type[np.number]) -> np.ndarray:
    """Returns a list of finite numbers, or whole ones, as an array."""
    kinds = (int,) if dtype is np.int64 else (int, float)
    if not isinstance(values, list) or not all(type(value) in kinds for value in values):
        raise TypeError(f"its {name} is not a list of numbers")
    with np.errstate(over="ignore"):
        array = np.array(values, dtype)  # OverflowError if a whole number is too large
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} is not finite")
    return array
