"""Thresholds of references on other clips: realised rates, the check of the promise, and the command."""

import dataclasses
import json

import numpy as np
import pytest

from avh_shards import ClipMeta, UserError
from avh_shards.clip import offsets
from jax_avh.evaluation import evaluate
from jax_avh.evaluation.operating import _holds, _uniformity, check_reference
from jax_avh.evaluation.results import ScoredSet
from jax_avh.reference import Ranks, share_interval, write_reference
from jax_avh.report.results import write_results
from jax_avh.scores import POOLINGS, ScoreTable, write_scores
from tests.jax_avh.test_reference import ATTRIBUTES, made_reference, real_clips


def scored(length: np.ndarray, score: np.ndarray, label: np.ndarray, **more) -> ScoredSet:
    """Returns clips with the given scores; their frame scores are all zero."""
    clips = tuple(ClipMeta(f"{n}.mp4", int(fake)) for n, fake in enumerate(label))
    frame = np.zeros(length.sum(), np.float32)
    attributes = {name: value for name, value in (ATTRIBUTES | more).items() if name != "method"}
    table = ScoreTable("avh_align", clips, offsets(length), frame, score.astype(np.float32), attributes)
    return ScoredSet("FakeAVCeleb", "avh_align", False, table)


def drawn(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lengths, scores and labels of as many real clips as fakes, whose scores are higher by two."""
    length, score = real_clips(count, np.random.default_rng(seed))
    label = np.arange(count) % 2
    return length, score + shift + 2 * label, label


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_promise_holds_on_such_clips_and_is_broken_on_others(two_sided):
    reference = made_reference(*real_clips(5000, np.random.default_rng(0)))
    found, p_value = check_reference(scored(*drawn(2000, 1)), reference, two_sided, (0.01, 0.05))
    assert (found.real, found.fake, len(p_value)) == (1000, 1000, 1000)
    assert found.p_value > 0.01
    assert found.tenths[0] == np.mean(p_value <= 0.1)
    assert found.tenths[3] == np.mean((p_value > 0.3) & (p_value <= 0.4))
    assert sum(found.tenths) == pytest.approx(1)
    for point in found.points:
        assert point.holds
        assert point.fpr == np.mean(p_value <= point.rate)
        assert point.fpr_interval == share_interval(round(1000 * point.fpr), 1000)
        assert point.fpr_interval[0] <= point.rate <= point.fpr_interval[1]
        assert point.tpr > 0.5
        assert point.undecided == 0
    for shift in (1.0, -1.0):
        other, _ = check_reference(scored(*drawn(2000, 1, shift)), reference, two_sided, (0.01, 0.05))
        assert other.p_value < 1e-6
        assert [point.holds for point in other.points] == [not (shift > 0 or two_sided)] * 2


@pytest.mark.parametrize("two_sided", [False, True])
def test_clips_beyond_the_limits_are_those_called_fake(two_sided):
    length, score = np.full(150, 50), np.round(np.random.default_rng(0).standard_normal(150), 1).astype(np.float32)
    reference = made_reference(length, score)
    tried = np.unique(np.r_[score, score + 0.05, -9, 9]).astype(np.float32)
    sets = scored(np.full(len(tried), 50), tried, np.ones(len(tried), int))
    found, _ = check_reference(sets, reference, two_sided, (0.1, 0.02))
    for point in found.points:
        (group,) = point.thresholds
        assert (group.seconds, group.clips, len(group.limits)) == ((2.0, 2.0), 150, 1 + two_sided)
        called = tried > group.limits[-1]
        called |= (tried < group.limits[0]) if two_sided else False
        assert point.tpr == np.mean(called)
        assert 0 < point.tpr < 1
    assert (found.distance, found.p_value, found.points[0].fpr, found.points[0].holds) == (None,) * 4


def test_too_few_real_clips_call_nothing_fake():
    reference = made_reference(np.full(50, 50), np.zeros(50))
    sets = scored(np.array([50, 50, 50, 500]), np.full(4, 9.0), np.array([0, 0, 1, 1]))
    found, _ = check_reference(sets, reference, False, (0.01, 0.05))
    assert [(point.undecided, point.fpr, point.tpr) for point in found.points] == [(4, None, None), (1, 1, 1)]
    assert [point.holds for point in found.points] == [None, False]
    assert [point.thresholds[0].limits for point in found.points] == [[None], [0.0]]


def test_faces_are_compared_as_videos(tmp_path):
    """As in the reference: two faces of 25 frames are one video of 50."""
    keys = [f"{n}.mp4#shot{shot}.face1" for n in range(200) for shot in (1, 2)]
    frame = np.random.default_rng(0).standard_normal(400 * 25).astype(np.float32)
    attributes = {name: value for name, value in ATTRIBUTES.items() if name != "method"} | {"faces": "all"}
    border = offsets(np.full(400, 25))
    clip = POOLINGS["logsumexp"](frame, border).astype(np.float32)
    table = ScoreTable("avh_align", tuple(ClipMeta(key, 0) for key in keys), border, frame, clip, attributes)
    write_scores(table, tmp_path / "s.h5")
    real = POOLINGS["logsumexp"](np.random.default_rng(1).standard_normal(400 * 50), offsets(np.full(400, 50)))
    reference = made_reference(np.full(400, 50), real)
    reference = dataclasses.replace(reference, attributes=reference.attributes | {"faces": "all"})
    write_reference(reference, tmp_path / "r.json")
    (found,) = evaluate([tmp_path / "s.h5"], resamples=5, references=[tmp_path / "r.json"]).metrics.references
    assert (found.real, [point.undecided for point in found.points]) == (200, [0, 0])
    assert found.p_value > 0.01


def test_the_command_writes_what_references_give(tmp_path, fork):
    write_scores(scored(*drawn(300, 1)).table, tmp_path / "s.h5")
    write_reference(made_reference(*real_clips(300, np.random.default_rng(0))), tmp_path / "r.json")
    flags = {"scores": tmp_path / "s.h5", "output": tmp_path / "out", "reference": tmp_path / "r.json"}
    given = [f"--{name}={value}" for name, value in flags.items()]
    status, output = fork("evaluate", *given, "--two_sided", "--false_alarms=0.05,0.001")
    assert status == 0, output
    assert "300 real clips of FakeAVCeleb  0.05" in output
    assert "promised FPR" in output
    (check,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["references"]
    assert check["two_sided"] is True
    assert [(point["rate"], point["undecided"]) for point in check["points"]] == [(0.05, 0), (0.001, 300)]
    assert "Thresholds of references" in (tmp_path / "out" / "report.html").read_text()


def test_references_of_other_scores_are_refused_and_warned_of(tmp_path):
    length, score, label = drawn(40, 1)
    write_scores(scored(length, score, label).table, tmp_path / "s.h5")
    write_scores(scored(length, score, label, alignment_sha256="c", dataset="other").table, tmp_path / "t.h5")
    write_reference(made_reference(length[label == 0], score[label == 0]), tmp_path / "r.json")
    found = evaluate([tmp_path / "s.h5", tmp_path / "t.h5"], resamples=5, references=[tmp_path / "r.json"])
    assert [check.dataset for check in found.metrics.references] == ["FakeAVCeleb"]
    assert any("no reference fits these scores" in warning for warning in found.metrics.warnings)
    assert any("20 of 20 real clips have the score of a clip in the reference" in w for w in found.metrics.warnings)
    with pytest.raises(UserError, match=r"^--reference=.*r\.json: differs in the weights"):
        evaluate([tmp_path / "t.h5"], resamples=5, references=[tmp_path / "r.json"])
    (tmp_path / "metrics.json").symlink_to(tmp_path / "r.json")
    with pytest.raises(UserError, match="is an input of this command"):
        write_results([tmp_path / "s.h5"], tmp_path, references=[tmp_path / "r.json"])


def test_clips_without_similar_ones_in_the_reference_have_no_part_in_the_test():
    reference = made_reference(*real_clips(5000, np.random.default_rng(0)))
    length, score, label = drawn(400, 1)
    fitting, p_value = check_reference(scored(length, score, label), reference, False, (0.05,))
    odd = np.full(300, 5000)
    sets = scored(np.r_[length, odd], np.r_[score, odd], np.r_[label, np.zeros(300, int)])
    more, same = check_reference(sets, reference, False, (0.05,))
    np.testing.assert_array_equal(same, p_value)
    assert (more.distance, more.p_value, more.tenths) == (fitting.distance, fitting.p_value, fitting.tenths)
    assert (more.real, more.points[0].undecided) == (500, 300)


def test_p_values_of_a_sound_reference_seldom_look_uneven():
    """Most of the clips have the length of a small part of the reference, which varies by itself."""
    uneven = 0
    tested = np.repeat([0, 1], [1000, 50])
    for seed in range(200):
        random = np.random.default_rng(seed)
        above = np.zeros(1050, np.int64)
        for group, size in enumerate((200, 5000)):
            real = np.sort(random.random(size))
            above[tested == group] = size - np.searchsorted(real, random.random((tested == group).sum()))
        clips = np.array([200, 5000])[tested]
        shortest = np.array([50, 75])[tested]
        ranks = Ranks(clips, above, clips - above, shortest, shortest + 9)
        uneven += _uniformity(ranks.p_value(), ranks, np.full(1050, True))[1] < 0.05
    assert uneven <= 18  # of 10 expected


def test_a_small_sound_reference_is_seldom_called_broken():
    """Thresholds of 200 real clips vary by themselves, however many clips they are tested on."""
    broken = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        reference, tested = np.sort(random.random(200)), random.random(2000)
        above = 200 - np.searchsorted(reference, tested)
        ranks = Ranks(*np.stack([np.full(2000, 200), above, 200 - above, np.full(2000, 50), np.full(2000, 60)]))
        called = int((ranks.p_value() <= 0.01).sum())
        broken += not _holds(ranks, np.full(2000, True), called, 0.01, two_sided=False)
    assert broken <= 12  # of 5 expected
