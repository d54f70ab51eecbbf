"""References: p-values and thresholds of exchangeable clips, judgements on videos, and the file."""

import dataclasses
import json
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from avh_shards import UserError
from jax_avh import reference as references
from jax_avh.reference import (
    Calibration,
    Reference,
    clips_needed,
    read_reference,
    share_interval,
    stretches,
    write_reference,
)
from jax_avh.scores import pool_all

ATTRIBUTES = {
    "method": "avh_align",
    "pooling": "logsumexp",
    "alignment_sha256": "a" * 64,
    "weights_sha256": "b" * 64,
    "trimmed": False,
    "dataset": "FakeAVCeleb",
}
MEASURES = "logsumexp", "mean"


def real_clips(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths and scores of simulated real clips; scores grow and narrow with the length."""
    length = np.round(np.exp(rng.uniform(np.log(25), np.log(250), count))).astype(np.int64)
    score = np.log(length) + rng.standard_normal(count) / np.sqrt(length / 25)
    return length, score.astype(np.float32)


def made_reference(length: np.ndarray, score: np.ndarray, **more) -> Reference:
    order = np.argsort(length, kind="stable")
    scores = {name: score[order].astype(np.float32) for name in MEASURES}
    return Reference(ATTRIBUTES, length[order], scores, **{"frame_limit": 2.0} | more)


@pytest.fixture
def two_groups(monkeypatch):
    """Cuts clips into groups of four or more."""
    monkeypatch.setattr(references, "SIMILAR_CLIPS", 4)


@hypothesis.given(st.lists(st.tuples(st.integers(20, 24), st.integers(0, 6)), min_size=2, max_size=40), st.booleans())
@hypothesis.settings(deadline=None, max_examples=60)
def test_p_values_of_exchangeable_clips_are_exact(clips, two_sided):
    """Compares each clip with all others: p-values of at most 1/m occur in at most that share, also with ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "SIMILAR_CLIPS", 4)
        length, score = (np.array(column) for column in zip(*clips, strict=True))
        score = score.astype(np.float32)
        found = []
        for n in range(len(clips)):
            rest = np.arange(len(clips)) != n
            ranks = made_reference(length[rest], score[rest]).rank("mean", score[[n]], length[[n]])
            found.append((int(ranks.clips[0]), float(ranks.p_value(two_sided)[0])))
    group, p_value = np.array([clips for clips, _ in found]), np.array([p for _, p in found])
    for level in np.unique(p_value):
        assert (p_value <= level).mean() <= level + 1e-12
        for size in np.unique(group):  # groups of this size, each of size + 1 clips
            assert (p_value[group == size] <= level).mean() <= level + 1e-12
    if len(np.unique(score)) == len(score) and not two_sided:
        for size in np.unique(group):
            wanted = np.repeat(np.arange(1, size + 2) / (size + 1), (group == size).sum() // (size + 1))
            np.testing.assert_allclose(np.sort(p_value[group == size]), wanted)


@pytest.mark.parametrize("two_sided", [False, True])
def test_p_values_of_held_out_clips_are_uniform(two_sided):
    """Draws ten thousand clips, whose scores depend on their length; tests within each group of similar length, too."""
    rng = np.random.default_rng(1)
    reference = made_reference(*real_clips(100_000, rng))
    length, score = real_clips(10_000, rng)
    ranks = reference.rank("mean", score, length)
    p_value = ranks.p_value(two_sided)
    assert scipy.stats.kstest(p_value, "uniform").pvalue > 0.01
    shortest_of_groups = np.unique(ranks.shortest)
    assert len(shortest_of_groups) == 9
    for shortest in shortest_of_groups:
        assert scipy.stats.kstest(p_value[ranks.shortest == shortest], "uniform").pvalue > 0.001


def test_without_regard_to_length_p_values_would_not_be_uniform(monkeypatch):
    """Shows that the test above can fail."""
    monkeypatch.setattr(references, "MOST_GROUPS", 1)
    rng = np.random.default_rng(1)
    reference = made_reference(*real_clips(10_000, rng))
    length, score = real_clips(2000, rng)
    p_value = reference.rank("mean", score, length).p_value()
    longest = np.argsort(length)[-200:]
    assert scipy.stats.kstest(p_value[longest], "uniform").pvalue < 1e-6


@pytest.mark.parametrize("repetitions", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_thresholds_keep_their_false_alarm_rate(repetitions):
    """Draws a reference and held-out clips anew each time; counts when the rate is outside its binomial interval."""
    rng = np.random.default_rng(2)
    for rate in (0.01, 0.05):
        flagged = np.zeros(repetitions)
        for n in range(repetitions):
            reference = made_reference(*real_clips(2000, rng))
            length, score = real_clips(300, rng)
            flagged[n] = (reference.rank("mean", score, length).p_value() <= rate).sum()
        low, high = share_interval(int(flagged.sum()), 300 * repetitions)
        assert low <= rate <= high * 1.2  # rounded down to whole clips of a group, and groups vary
        broken = np.mean([share_interval(int(count), 300)[0] > rate for count in flagged])
        assert broken <= 0.1


def test_a_threshold_is_where_clips_begin_to_be_flagged():
    rng = np.random.default_rng(3)
    length, score = real_clips(2000, rng)
    reference = made_reference(length, np.round(score, 1))
    for group in reference.groups("mean"):
        for rate in (0.01, 0.05, 0.3):
            threshold = group.threshold(rate)
            assert threshold is not None
            tried = np.array([threshold, np.nextafter(np.float32(threshold), np.float32(9))], np.float32)
            above = np.array([(group.score >= value).sum() for value in tried])
            assert ((1 + above) / (1 + len(group.score)) <= rate).tolist() == [False, True]


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.001, 999), (0.3, 3), (1 / 3, 2), (0.07, 14)])
def test_the_number_of_clips_that_a_rate_needs(rate, needed):
    assert clips_needed(rate) == needed
    assert 1 / (needed + 1) <= rate < 1 / needed
    score = np.arange(needed, dtype=np.float32)
    assert references.Group(1, 1, score).threshold(rate) == needed - 1
    assert references.Group(1, 1, score[1:]).threshold(rate) is None


def test_equal_scores_are_conservative():
    reference = made_reference(np.full(9, 50), np.zeros(9))
    ranks = reference.rank("mean", np.array([0.0, 1.0, -1.0]), np.full(3, 50))
    assert ranks.p_value().tolist() == [1.0, 0.1, 1.0]
    assert ranks.p_value(two_sided=True).tolist() == [1.0, 0.2, 0.2]


def test_similar_lengths_are_grouped_with_equal_ones_together(two_groups):
    reference = made_reference(np.array([5, 5, 6, 7, 7, 7, 7, 9, 9, 9, 9]), np.arange(11))
    groups = [(group.shortest, group.longest, len(group.score)) for group in reference.groups("mean")]
    assert groups == [(5, 7, 7), (9, 9, 4)]
    ranks = reference.rank("mean", np.full(5, 100.0, np.float32), np.array([3, 4, 8, 11, 12]))
    assert ranks.clips.tolist() == [0, 3, 4, 4, 0]  # groups of all twelve; 3 and 12 frames are too far beyond
    assert ranks.p_value()[[0, 4]].tolist() == [1, 1]


def test_groups_hold_enough_clips_and_are_ten_at_most():
    for count in (1, 199, 399, 400, 5000, 20_000):
        length, score = real_clips(count, np.random.default_rng(count))
        sizes = [len(group.score) for group in made_reference(length, score).groups("mean")]
        assert sum(sizes) == count
        assert len(sizes) <= 10
        assert min(sizes) >= min(count, 199)  # 200 with the video


def test_intervals_of_shares_are_exact():
    for count, total in ((0, 10), (3, 10), (10, 10), (40, 5000)):
        wanted = scipy.stats.binomtest(count, total).proportion_ci(0.95, "exact")
        assert share_interval(count, total) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


# --- one video -------------------------------------------------------------------------------------------------------


def test_a_video_is_judged_in_words_and_numbers():
    length = np.full(1000, 50)
    reference = made_reference(length, np.linspace(3, 5, 1000), frame_limit=0.9)
    frame = np.zeros(50, np.float32)
    frame[10:20] = frame[30] = 1
    frame[40] = np.nan
    found = reference.judge(frame, rates=(0.01, 0.05, 0.0001))
    assert found.stretches == [(0.4, 0.8), (1.2, 1.24)]
    assert found.stretch_share == pytest.approx(11 / 49)
    own = np.float32(pool_all(frame[np.isfinite(frame)])["logsumexp"])
    above = int((reference.scores["logsumexp"] >= own).sum())
    assert found.p_value == (1 + above) / 1001 == found.p_values["logsumexp"]
    assert set(found.p_values) == set(MEASURES)
    assert found.flagged == {"0.01": False, "0.05": False, "0.0001": None}
    line = found.line()
    for said in (
        f"more suspicious than {100 - above / 10:g} % of 1,000 real clips of 2.0-2.0 s",
        f"(p = {found.p_value:.2g} in steps of 0.001; 95 % interval 0.",
        "at 1 % false alarms: not flagged, but 0.04 s were not scored; at 5 % false alarms: not flagged",
        "at 0.01 % false alarms: undecided, because that takes 9,999 real clips",
        "frames above 99 % of real clips' frames: 0.40-0.80, 1.20-1.24 s",
    ):
        assert said in line
    assert "fake" not in line


def test_the_example_in_the_docs_is_what_is_printed():
    """Of 1,204 real clips of similar length, ten are at least as suspicious."""
    found = dataclasses.replace(
        made_reference(np.full(9, 50), np.zeros(9)).judge(np.zeros(50, np.float32)),
        clips=1204,
        seconds=(4.8, 6.08),
        share=1194 / 1204,
        p_value=11 / 1205,
        resolution=1 / 1205,
        interval=share_interval(10, 1204),
        flagged={"0.01": True, "0.05": True},
        stretches=[(1.6, 2.4), (4.12, 4.36)],
    )
    root = Path(__file__).parents[2]
    for page in (root / "README.md", root / "docs" / "your_video.md"):
        assert found.line() in " ".join(page.read_text(encoding="utf-8").split())


def test_the_most_suspicious_video_is_flagged():
    reference = made_reference(np.full(99, 50), np.zeros(99))
    found = reference.judge(np.full(50, 9.0, np.float32))
    assert (found.p_value, found.flagged) == (0.01, {"0.01": True, "0.05": True})
    assert "more suspicious than all 99 real clips of 2.0-2.0 s (p = 0.01 in steps of 0.01;" in found.line()
    assert "at 1 % false alarms: flagged" in found.line()


def test_a_video_that_fits_too_well_is_flagged_only_two_sided():
    reference = made_reference(np.full(199, 50), np.linspace(5, 9, 199))
    frame = np.full(50, -9.0, np.float32)
    one, two = (reference.judge(frame, two_sided) for two_sided in (False, True))
    assert (one.p_value, one.flagged["0.05"], one.low) == (1, False, False)
    assert "95 % interval 0.98-1)" in one.line()
    assert (two.p_value, two.flagged["0.01"], two.low) == (0.01, True, True)
    assert "fits better than all 199 real clips" in two.line()
    assert "two-sided" in two.line()
    assert made_reference(np.full(150, 50), np.zeros(150)).judge(frame, True).flagged["0.01"] is None
    assert "takes 199 real clips" in made_reference(np.full(150, 50), np.zeros(150)).judge(frame, True).line()


def test_a_video_of_another_length_is_compared_with_none():
    found = made_reference(np.full(500, 50), np.zeros(500)).judge(np.full(75, 9.0, np.float32))
    assert (found.clips, found.p_value, found.p_values, found.interval) == (0, None, {}, (0, 1))
    assert "not compared: none of the 500 real clips of FakeAVCeleb (2.0-2.0 s) has a similar length" in found.line()
    assert set(found.flagged.values()) == {None}


def test_a_probability_is_that_of_the_knots():
    calibration = Calibration("platt", 10, 10, np.array([0.0, 10.0]), np.array([0.0, 1.0]))
    reference = made_reference(np.full(9, 10), np.zeros(9), calibration=calibration)
    assert reference.judge(np.zeros(10, np.float32), two_sided=True).probability is None  # unknown for low scores
    found = reference.judge(np.zeros(10, np.float32))
    assert found.probability == pytest.approx(np.log(10) / 10)  # as the one-sided p-value is a tenth
    assert reference.judge(np.zeros(99, np.float32)).probability is None
    assert "if half of all videos were fakes like the 10 of the reference, 23 % of those with this" in found.line()
    for probability, words in ((1.0, "more than 99"), (0.992, "more than 99"), (0.0, "less than 1"), (0.5, "50")):
        known = dataclasses.replace(found, probability=probability)
        assert f"of the reference, {words} % of those" in known.odds


@hypothesis.given(st.lists(st.booleans(), max_size=60))
@hypothesis.settings(deadline=None)
def test_stretches_hold_the_marked_frames(marked):
    again = np.zeros(len(marked), bool)
    ends = [-1]
    for start, end in stretches(np.array(marked, bool)):
        again[round(25 * start) : round(25 * end)] = True
        assert ends[-1] < start
        ends.append(end)
    assert again.tolist() == marked


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_reference_survives_the_file(tmp_path):
    rng = np.random.default_rng(0)
    length, score = real_clips(300, rng)
    calibration = Calibration("isotonic", 7, 8, np.array([-1.5, 0.1]), np.array([0.0, 1.0]))
    written = made_reference(length, score, calibration=calibration)
    write_reference(written, tmp_path / "r.json")
    read = read_reference(tmp_path / "r.json")
    assert (read.attributes, read.frame_limit) == (written.attributes, written.frame_limit)
    np.testing.assert_array_equal(read.length, written.length)
    for name in MEASURES:
        np.testing.assert_array_equal(read.scores[name], written.scores[name])
        assert read.scores[name].dtype == np.float32
    assert dataclasses.asdict(read)["calibration"].keys() == vars(calibration).keys()
    np.testing.assert_array_equal(*(known.calibration(np.linspace(-2, 1, 9)) for known in (read, written)))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("r") / "r.json"
    calibration = Calibration("platt", 7, 8, np.array([-1.5, 0.1]), np.array([0.0, 1.0]))
    write_reference(made_reference(np.array([5, 6, 7]), np.arange(3), calibration=calibration), path)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("format", "x", "format, version and frame rate are"),
        ("version", 2, "format, version and frame rate are"),
        ("attributes", [], "attributes is not a JSON object"),
        ("attributes/method", "", "records no method"),
        ("attributes/method", "\x1b[31m", "'method' is not a line of text"),
        ("attributes/dataset", "x" * 2000, "'dataset' is not a line of text"),
        ("attributes/dataset", {}, "'dataset' is not a line of text"),
        ("attributes/pooling", "mean", "the method's own pooling"),
        ("length", [], "rising numbers"),
        ("length", [5, 4, 7], "rising numbers"),
        ("length", [0, 4, 7], "rising numbers"),
        ("length", [1.5, 4, 7], "not a list of numbers"),
        ("length", [1, 2, 2**80], "too large"),
        ("length", "567", "not a list of numbers"),
        ("scores", 5, "scores is not a JSON object"),
        ("scores", {}, "do not fit its lengths"),
        ("scores", {"nothing": [1, 2, 3]}, "unknown poolings"),
        ("scores/mean", [1, 2], "do not fit its lengths"),
        ("scores/mean", [1, 2, None], "not a list of numbers"),
        ("scores/mean", [1, 2, float("nan")], "not finite"),
        ("scores/mean", [1, 2, 1e300], "not finite"),
        ("scores/mean", [1, 2, True], "not a list of numbers"),
        ("frame_limit", "x", "not a list of numbers"),
        ("frame_limit", float("inf"), "not finite"),
        ("calibration", [], "calibration is not a JSON object"),
        ("calibration/rule", "x", "by no known rule"),
        ("calibration/real", 0, "of no clips"),
        ("calibration/surprise", [1, 1], "not a rising map"),
        ("calibration/probability", [0.5, 0.2], "not a rising map"),
        ("calibration/probability", [0.5, 1.2], "not a rising map"),
        ("calibration/probability", [0.5], "not a rising map"),
    ],
)
def test_a_damaged_reference_is_one_sentence(tmp_path, content, place, value, reason):
    changed = json.loads(json.dumps(content))
    *outer, last = place.split("/")
    inner = changed
    for name in outer:
        inner = inner[name]
    inner[last] = value
    (tmp_path / "r.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=reason) as caught:
        read_reference(tmp_path / "r.json")
    assert str(caught.value).startswith(f"{tmp_path / 'r.json'}: not a valid reference (")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("missing", ["attributes", "length", "scores", "frame_limit", "calibration"])
def test_a_reference_without_a_part_is_refused(tmp_path, content, missing):
    (tmp_path / "r.json").write_text(json.dumps({name: part for name, part in content.items() if name != missing}))
    with pytest.raises(UserError, match=f"no '{missing}'"):
        read_reference(tmp_path / "r.json")


def test_no_file_a_large_file_and_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
        read_reference(tmp_path / "none.json")
    for text in ("", "[" * 10_000, "[]", "null", '{"a": 1e999}', "\xff", '{"format": ' + "9" * 5000 + "}"):
        (tmp_path / "r.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="not a valid reference"):
            read_reference(tmp_path / "r.json")
    monkeypatch.setattr(references, "MOST_BYTES", 10)
    (tmp_path / "r.json").write_text("1" * 11)
    with pytest.raises(UserError, match="larger than 0 MiB"):
        read_reference(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "avad"}, "differs in the method (method is avh_align in the reference, but avad here)"),
        ({"alignment_sha256": "c"}, "differs in the weights"),
        ({"weights_sha256": "random"}, "differs in the encoder"),
        ({"trimmed": True}, "differs in whether leading silence was dropped"),
        ({"faces": "all"}, "differs in which faces are scored (faces is not recorded in the reference, but all here)"),
    ],
)
def test_scores_of_another_kind_are_refused(changed, said):
    reference = made_reference(np.full(9, 50), np.zeros(9))
    reference.check_fits(ATTRIBUTES, "r.json")
    reference.check_fits(ATTRIBUTES | {"weights_sha256": "unknown", "trimmed": "unknown"}, "r.json")
    with pytest.raises(UserError) as caught:
        reference.check_fits(ATTRIBUTES | changed, "r.json")
    assert str(caught.value).startswith("r.json: ")
    assert said in str(caught.value)
