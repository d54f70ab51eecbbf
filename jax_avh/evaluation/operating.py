"""What the thresholds of a reference give on other clips: does the promised false-alarm rate hold, and at what cost?"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float64

from avh_shards.clip import FAKE, FRAME_RATE, REAL
from jax_avh.evaluation.metrics import FEWEST, Interval
from jax_avh.evaluation.results import LengthLimits, OperatingPoint, ReferenceCheck, ScoredSet
from jax_avh.reference import INTERVAL, Group, Ranks, Reference, p_values_within, share_interval

DRAWS = 10_000  # of the number of false alarms


def check_reference(
    scored: ScoredSet, reference: Reference, two_sided: bool, rates: Sequence[float]
) -> tuple[ReferenceCheck, Float64[np.ndarray, " M"]]:
    """Calls clips fake by a reference's thresholds and counts how often that is right.

    Args:
      scored: clips whose scores the reference fits.
      reference: scores of other real clips.
      two_sided: whether scores lower than those of real clips are suspicious, too.
      rates: promised false-alarm rates.

    Returns:
      The counts, and the p-values of the M real clips whose length is like those of the reference.
    """
    ranks = reference.rank(reference.own, scored.score, np.diff(scored.table.offset))
    p_value = ranks.p_value(two_sided)
    real, fake = scored.label == REAL, scored.label == FAKE
    compared = real & (ranks.clips > 0)
    points = []
    for rate in rates:
        decided = ranks.resolution(two_sided) <= rate
        called = p_value <= rate
        tested = real & decided
        fpr, fpr_interval = _share(called[tested])
        tpr, tpr_interval = _share(called[fake & decided])
        groups = [
            LengthLimits(
                seconds=(group.shortest / FRAME_RATE, group.longest / FRAME_RATE),
                clips=len(group.score),
                limits=_limits(group, rate, two_sided),
            )
            for group in reference.groups(reference.own)
        ]
        points.append(
            OperatingPoint(
                rate=rate,
                undecided=int((~decided[real | fake]).sum()),
                fpr=fpr,
                fpr_interval=fpr_interval,
                holds=None if fpr is None else _holds(ranks, tested, int(called[tested].sum()), rate, two_sided),
                tpr=tpr,
                tpr_interval=tpr_interval,
                thresholds=groups,
            )
        )
    distance, chance = _uniformity(p_value, ranks, compared)
    check = ReferenceCheck(
        dataset=scored.dataset,
        method=scored.method,
        trimmed=scored.trimmed,
        reference=reference.title,
        protocol=str(reference.attributes.get("protocol", "")),
        two_sided=two_sided,
        real=int(real.sum()),
        fake=int(fake.sum()),
        tenths=_tenths(p_value[compared]),
        distance=distance,
        p_value=chance,
        points=points,
    )
    return check, p_value[compared]


def _holds(ranks: Ranks, real: Bool[np.ndarray, " M"], called: int, rate: float, two_sided: bool) -> bool:
    """Returns whether this number of false alarms is usual, in 39 of 40 cases, for clips like those of the reference.

    A promised rate is a mean over references. That of the thresholds which k of n real clips exceed has a beta
    distribution with the parameters k + 1 and n - k (Vovk 2012), by which the false alarms of each length are drawn.
    """
    random = np.random.default_rng(0)
    drawn = np.zeros(DRAWS, np.int64)
    for clips, tested in _by_length(ranks, real):
        places = (1 + two_sided) * p_values_within(clips, rate / (1 + two_sided))
        assert 0 < places <= clips, "undecided clips, or a rate of 1"
        drawn += random.binomial(tested, random.beta(places, clips + 1 - places, DRAWS))
    return bool((drawn >= called).mean() > INTERVAL[0])


def _uniformity(
    p_value: Float64[np.ndarray, " N"], ranks: Ranks, compared: Bool[np.ndarray, " N"]
) -> tuple[float | None, float | None]:
    """Tests whether the p-values of real clips are uniform.

    Args:
      p_value: of all clips.
      ranks: of all clips.
      compared: the real clips with clips of similar length in the reference.

    Returns:
      The greatest distance between the share of p-values up to any value and that value, and its probability for clips
      like those of the reference; None if they are too few.

    References:
      Smirnov 1939 (two samples). The p-values of clips of similar length share their part of the reference, which
      varies by itself: of m clips, m_i of which share n_i, the variance is that of one sample with
      1 / (1/m + sum of (m_i/m)^2/n_i) clips.
    """
    total = int(compared.sum())
    if total < FEWEST:
        return None, None
    distance = float(scipy.stats.kstest(p_value[compared], "uniform").statistic)
    variance = 1 / total + sum((tested / total) ** 2 / clips for clips, tested in _by_length(ranks, compared))
    return distance, float(scipy.special.kolmogorov(distance / math.sqrt(variance)))


def _by_length(ranks: Ranks, chosen: Bool[np.ndarray, " N"]) -> list[tuple[int, int]]:
    """Returns, for each group of similar length, the number of its real clips and of the chosen clips in it."""
    _, first, tested = np.unique(ranks.shortest[chosen], return_index=True, return_counts=True)  # where groups begin
    return list(zip(ranks.clips[chosen][first].tolist(), tested.tolist(), strict=True))


def _tenths(p_value: Float64[np.ndarray, " M"]) -> list[float]:
    """Returns the share of p-values in each tenth, whose upper end belongs to it; empty if there are none."""
    counts = np.bincount(np.searchsorted(np.arange(1, 11) / 10, p_value), minlength=10)
    return (counts / len(p_value)).tolist() if len(p_value) else []


def _share(called: Bool[np.ndarray, " M"]) -> tuple[float | None, Interval | None]:
    if not len(called):
        return None, None
    return float(called.mean()), share_interval(int(called.sum()), len(called))


def _limits(group: Group, rate: float, two_sided: bool) -> list[float | None]:
    if not two_sided:
        return [group.threshold(rate)]
    mirrored = Group(group.shortest, group.longest, -group.score[::-1]).threshold(rate / 2)
    return [None if mirrored is None else -mirrored, group.threshold(rate / 2)]
