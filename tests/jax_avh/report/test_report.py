"""Reports of evaluations and pages of videos, in a real browser."""

import dataclasses
import itertools
import json
import os
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FRAME_RATE, offsets
from jax_avh.evaluation.metrics import (
    METRIC_NAMES,
    DetectionMetrics,
    detection_metrics,
    precision_recall_points,
    roc_points,
)
from jax_avh.evaluation.results import (
    Comparison,
    Coverage,
    Evaluation,
    EvaluationMetrics,
    Localisation,
    Result,
    ScoredSet,
)
from jax_avh.reference import Calibration, Reference, write_reference
from jax_avh.report import charts, video
from jax_avh.report.comparison import render_report, timed
from jax_avh.report.page import BUCKETS, envelope, format_number, value_at
from jax_avh.report.results import write_results
from jax_avh.report.video import Verdict, write_video_page
from jax_avh.scores import POOLINGS, ScoreTable, write_scores
from tests.browser import DESKTOP, PHONE, opened
from tests.media import ramp, tone, write_media

METHODS = ("avh_align", "silence", "speechforensics")
CATEGORIES = ("RealVideo-FakeAudio", "FakeVideo-RealAudio", "FakeVideo-FakeAudio")
LISTS = ("results", "comparisons", "coverage", "localisation", "references")  # of metrics.json
OWN = "mean"  # pooling of the generated clip scores
NASTY = "<script>alert(1)</script> \"'&.mp4"


def made_clips(count: int, rng: np.random.Generator) -> tuple[ClipMeta, ...]:
    """Returns clips of a repeating pattern: one real, then a fake of each category; half of the fakes have segments."""
    clips = []
    for n in range(count):
        kind, end = n % (1 + len(CATEGORIES)), float(rng.uniform(1.5, 2.8))
        segments = ((end - 1, end),) if kind and n % 8 > 3 else ()
        category = CATEGORIES[kind - 1] if kind else "RealVideo-RealAudio"
        clips.append(
            ClipMeta(f"{category}/id{n:05}.mp4", int(kind > 0), category, ("test", "val")[n % 2], segments=segments)
        )
    return tuple(clips)


def made_set(clips: tuple[ClipMeta, ...], method: str, trimmed: bool | None, dataset: str = "FakeAVCeleb") -> ScoredSet:
    """Returns scores typical of a method; "silence" separates untrimmed clips perfectly and trimmed ones not at all."""
    rng = np.random.default_rng([METHODS.index(method), trimmed is True, len(clips)])
    label = np.array([clip.label for clip in clips])
    if method == "silence":
        clip = rng.exponential(0.004, len(clips)) + (0.027 * label if not trimmed else 0)
        frame, offset = None, np.arange(len(clips) + 1)
    else:
        lengths = np.random.default_rng(len(clips)).integers(75, 225, len(clips))
        offset = offsets(lengths)
        fake = np.concatenate([_fake_frames(clip, length) for clip, length in zip(clips, lengths, strict=True)])
        noise = np.convolve(rng.standard_normal(offset[-1]), np.ones(9) / 3, "same")
        strength = {"avh_align": 1.6, "speechforensics": 0.5}[method] * np.repeat(
            rng.uniform(0, 2, len(clips)), lengths
        )
        frame = (noise + strength * fake).astype(np.float32)
        clip = POOLINGS[OWN](frame, offset)
    return ScoredSet(dataset, method, trimmed, ScoreTable(method, clips, offset, frame, clip.astype(np.float32), {}))


def _fake_frames(clip: ClipMeta, length: int) -> np.ndarray:
    seconds = np.arange(length) / FRAME_RATE
    stretches = clip.segments or ((0.0, np.inf),)
    return clip.label * sum((seconds >= start) & (seconds < end) for start, end in stretches)


def made_metrics(scored_sets: tuple[ScoredSet, ...], warnings: tuple[str, ...]) -> EvaluationMetrics:
    """Returns metrics as an evaluation does, but with made-up intervals, p-values and localisation."""
    found = EvaluationMetrics(1000, 0.95, list(warnings), [], [], [], [])
    for scored in scored_sets:
        place = {"dataset": scored.dataset, "method": scored.method, "trimmed": scored.trimmed}
        poolings = ("clip",) if scored.table.frame is None else (OWN, *(name for name in POOLINGS if name != OWN))
        for pooling in poolings:
            own = pooling in (OWN, "clip")
            score = scored.score if own else POOLINGS[pooling](scored.table.frame, scored.table.offset)
            for group, value, chosen in _groups(scored, own):
                fixed = {"pooling": pooling, "own": own, "group": group, "value": value}
                found.results.append(Result(**place, **fixed, **_result(scored.label[chosen], score[chosen])))
        counts = {"listed": len(scored.clips) + 3, "scored": len(scored.clips), "failed": 2, "missing": 1}
        covered = {name: getattr(found.results[-1].metrics, name) for name in ("auc", "ap")}
        worst = {f"worst_case_{name}": value and 0.98 * value for name, value in covered.items()}
        found.coverage.append(Coverage(**place, **counts, **covered, **worst))
        if scored.table.frame is not None:
            ap, ar = {0.5: 0.31, 0.75: 0.0721, 0.95: 0.0}, {50: 0.5512, 10: 0.4}
            frames = {"frame_auc": 0.7312, "frame_ap": 0.41, "clip_auc": None}
            found.localisation.append(Localisation(**place, **frames, ap=ap, ar=ar, left_out=7))
    for one, other in itertools.pairwise(scored_sets):
        if (one.dataset, one.trimmed) == (other.dataset, other.trimmed):
            numbers = {"clips": len(one.clips), "difference": -0.0312, "interval": (-0.05, -0.0121), "p_value": 3.2e-7}
            found.comparisons.append(Comparison(one.dataset, one.trimmed, one.method, other.method, **numbers))
    return found


def _groups(scored: ScoredSet, own: bool):
    yield "all", "", np.ones(len(scored.clips), bool)
    real = scored.label == 0
    if own:
        for category in sorted({clip.category for clip in scored.clips if clip.label == 1}):
            yield "category", category, real | [clip.category == category for clip in scored.clips]
        for split in sorted({clip.split for clip in scored.clips}):
            yield "split", split, np.array([clip.split == split for clip in scored.clips])


def _result(label: np.ndarray, score: np.ndarray) -> dict[str, object]:
    found = detection_metrics(label, score)
    intervals = dict.fromkeys(METRIC_NAMES) | {
        name: _interval(getattr(found.metrics, name)) for name in ("auc", "ap", "eer")
    }
    rule = "where misses and false alarms are equal, on the same clips"
    return vars(found) | {
        "threshold_rule": rule,
        "intervals": DetectionMetrics(**dict.fromkeys(METRIC_NAMES) | intervals),
    }


def _interval(value: float | None) -> tuple[float, float] | None:
    return None if value is None else (0.97 * value, min(1.0, 1.02 * value))


def made_evaluation(scored_sets: tuple[ScoredSet, ...], warnings: tuple[str, ...] = ()) -> Evaluation:
    return Evaluation(made_metrics(scored_sets, warnings), scored_sets)


def full_evaluation(count: int = 240) -> Evaluation:
    """Returns an evaluation of three methods in both states, with categories, splits and segments, on two data sets."""
    clips = made_clips(count, np.random.default_rng(0))
    scored_sets = [made_set(clips, method, trimmed) for trimmed in (False, True) for method in METHODS]
    other = made_set(clips[:40], "silence", None, "AV-Deepfake1M")
    warnings = ("FakeAVCeleb, silence: 3 clips of the list have no score; worst case under Coverage.",)
    return made_evaluation((*scored_sets, other), warnings)


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Returns a full evaluation and the path of its report."""
    evaluation, path = full_evaluation(), tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(evaluation), encoding="utf-8")
    return evaluation, path


def numbers_of(tree: object, pointer: str) -> dict[str, float | int | None]:
    """Returns all numbers and undefined metrics by their pointers; undefined intervals are left out."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        inside = [numbers_of(node, f"{pointer}/{key}") for key, node in items]
        return {key: value for found in inside for key, value in found.items()}
    absent = pointer.endswith("/trimmed") or "interval" in pointer
    number = not absent if tree is None else isinstance(tree, int | float) and not isinstance(tree, bool)
    return {pointer: tree} if number else {}


def printed(page) -> list[tuple[str, str]]:
    """Returns all numbers of a page with their data-keys."""
    return page.evaluate("[...document.querySelectorAll('[data-key]')].map(n => [n.dataset.key, n.textContent])")


def as_json(metrics: EvaluationMetrics) -> dict:
    """Returns the contents of metrics.json."""
    return json.loads(json.dumps(dataclasses.asdict(metrics)))


def check_numbers(page, metrics: dict) -> None:
    """Checks that the page prints every number of metrics.json correctly."""
    rows = {f"{name}/{n}": row for name in LISTS for n, row in enumerate(metrics[name])}
    expected = {key: value for pointer, row in rows.items() for key, value in numbers_of(row, pointer).items()}
    found = printed(page)
    assert {key for key, _ in found} == expected.keys()
    for key, text in found:
        value = expected[key]
        if value is None:
            assert text == "undefined"
        else:
            assert float(text) == pytest.approx(value, abs=5e-5, rel=0.05 if abs(value) < 1e-4 else 0), key


def check_look(page, width: int) -> None:
    """Checks that the page fits its width, ids are unique, pictures have labels and all colours are defined."""
    page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))
    svgs = "[...document.querySelectorAll('svg:not([aria-hidden=true]), img, video')]"
    assert all(page.evaluate(f"{svgs}.map(node => node.getAttribute('aria-label') || '')"))
    assert page.evaluate(f"{svgs}.every(node => node.localName != 'svg' || node.getAttribute('role') == 'img')")
    used = sorted(set(re.findall(r"var\((--[a-z0-9-]+)\)", page.content())))
    known = "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue(name))"
    assert used
    assert all(page.evaluate(known, used))


def test_the_report_prints_every_number_of_metrics_json(browser, report):
    evaluation, path = report
    with opened(browser, path) as page:
        check_numbers(page, as_json(evaluation.metrics))
        assert evaluation.metrics.warnings[0] in page.locator(".alarm").inner_text()


def test_every_number_of_real_results_is_printed(browser, tmp_path):
    """Evaluates two methods in two states with a list that includes failed and missing clips."""
    clips = made_clips(40, np.random.default_rng(1))
    files = []
    for method, trimmed in itertools.product(METHODS[:2], (False, True)):
        table = made_set(clips[:36], method, trimmed).table
        attributes = {"dataset": "FakeAVCeleb", "trimmed": trimmed} | ({} if table.frame is None else {"pooling": OWN})
        files.append(tmp_path / f"{method}{trimmed}.h5")
        write_scores(dataclasses.replace(table, attributes=attributes), files[-1])
    real = made_set(made_clips(160, np.random.default_rng(2)), METHODS[0], False).table.chosen(np.arange(0, 160, 4))
    known = {"method": METHODS[0], "pooling": OWN, "trimmed": False}
    order = np.argsort(np.diff(real.offset))
    reference = Reference(known, np.diff(real.offset)[order], {OWN: real.clip[order]})
    write_reference(reference, tmp_path / "r.json")
    compared = {"references": [tmp_path / "r.json"], "two_sided": True, "rates": [0.1, 0.05, 0.01]}
    failed = [clip.path for clip in clips[37:]]
    write_results(files, tmp_path / "out", clips, failed, {"silence": 0.02}, resamples=20, **compared)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row["group"] for row in metrics["results"]} == {"all", "category", "split"}
    assert [len(metrics[name]) for name in LISTS[1:]] == [2, 4, 2, 1]
    with opened(browser, tmp_path / "out" / "report.html") as page:
        check_numbers(page, metrics)
        check_look(page, DESKTOP[0])
        text = page.locator("main").inner_text()
        for part in ("its own score", f"{OWN} (its own)", "worst-case AP"):
            assert part in text


def test_the_report_fits_the_window_and_its_colours_the_scheme(browser, report):
    for size, scheme in itertools.product((PHONE, DESKTOP), ("light", "dark")):
        with opened(browser, report[1], size, scheme) as page:
            check_look(page, size[0])
            paper, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
            brightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (paper, ink)]
            assert (brightness[0] > brightness[1]) == (scheme == "light")
            heights = "[...document.querySelectorAll('.picture svg text')].map(n => n.getBoundingClientRect().height)"
            assert min(page.evaluate(heights)) > 9  # pixels: readable
            assert page.locator("section").first.locator("svg[role=img]").count() == 4 + 6 + 16


def test_the_report_is_the_same_each_time(tmp_path):
    evaluation = made_evaluation((made_set(made_clips(5, np.random.default_rng(0)), "avh_align", True),))
    for name in ("one.html", "two.html"):
        (tmp_path / name).write_text(render_report(evaluation), encoding="utf-8")
    text = (tmp_path / "one.html").read_text()
    assert text == (tmp_path / "two.html").read_text()
    assert "#fe00" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_names_are_escaped_and_run_no_script(browser, tmp_path):
    clips = [ClipMeta(f"{n}{NASTY}", n % 2, NASTY, NASTY) for n in range(4)]
    table = ScoreTable(NASTY, tuple(clips), np.arange(5), *[np.arange(4, dtype=np.float32)] * 2, {})
    evaluation = made_evaluation((ScoredSet(NASTY, NASTY, None, table),), (NASTY,))
    (tmp_path / "report.html").write_text(render_report(evaluation), encoding="utf-8")
    with opened(browser, tmp_path / "report.html") as page:
        check_look(page, DESKTOP[0])
        for place in (".alarm li", "h2", "tbody th", ".picture h5"):
            assert any(NASTY in text for text in page.locator(place).all_inner_texts()), place
        labels = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(n => n.getAttribute('aria-label'))")
        assert any(f"3{NASTY}" in label for label in labels)


@pytest.mark.parametrize(
    ("chosen", "method"),
    [(slice(0, 1), "avh_align"), (slice(1, 4), "avh_align"), (slice(0, 8), "silence"), (slice(1, 2), "silence")],
    ids=["one real clip", "only fakes", "no frame scores", "one fake without frame scores"],
)
def test_reports_of_few_clips(browser, tmp_path, chosen, method):
    evaluation = made_evaluation((made_set(made_clips(8, np.random.default_rng(0))[chosen], method, None),))
    defined = evaluation.metrics.results[0].metrics.auc is not None
    (tmp_path / "report.html").write_text(render_report(evaluation), encoding="utf-8")
    with opened(browser, tmp_path / "report.html", PHONE) as page:
        check_numbers(page, as_json(evaluation.metrics))
        check_look(page, PHONE[0])
        assert ("ROC, trimming unknown" in page.content()) == defined
        assert ("most certain" in page.content()) == (method != "silence")
        first = page.locator("[data-key='results/0/metrics/auc']").first.inner_text()
        assert (first == "undefined") != defined


def test_methods_may_have_scored_other_clips(tmp_path):
    clips = made_clips(16, np.random.default_rng(0))
    scored_sets = made_set(clips[:8], METHODS[0], True), made_set(clips[8:], METHODS[2], True)
    (tmp_path / "report.html").write_text(render_report(made_evaluation(scored_sets)), encoding="utf-8")
    shown = re.findall(r"<h5>(\S+), score", (tmp_path / "report.html").read_text())
    assert len(shown) == len(set(shown)) == 2 + 4  # the two real clips are both the lowest and the highest
    assert set(shown) <= {clip.path for clip in clips[:8]}


def test_an_evaluation_without_scores_is_shown(browser, report, tmp_path):
    metrics = report[0].metrics
    (tmp_path / "report.html").write_text(render_report(Evaluation(metrics, ())), encoding="utf-8")
    with opened(browser, tmp_path / "report.html") as page:
        check_numbers(page, as_json(metrics))


def test_the_first_six_methods_with_frame_scores_are_drawn_over_time():
    clips = made_clips(4, np.random.default_rng(0))
    made = [made_set(clips, "avh_align", trimmed) for trimmed in (False, True)]
    many = [dataclasses.replace(scored, method=f"m{n}") for n in range(9) for scored in made]
    drawn = timed([made_set(clips, "silence", False), *many])
    assert [scored.method for scored in drawn] == [f"m{n}" for n in range(6) for _ in made]


@hypothesis.given(st.integers(2, 3000), st.integers(0, 99))
def test_thinned_curves_keep_their_ends_and_their_area(count, seed):
    rng = np.random.default_rng(seed)
    label = np.append([0, 1], rng.integers(0, 2, count))
    score = label + rng.standard_normal(count + 2).round(3)
    x, y = charts.thinned(*roc_points(label, score))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert len(x) <= 2 * charts.GRID + 2
    recall, precision = precision_recall_points(label, score)
    assert [values[-1] for values in charts.thinned(recall, precision)] == [1, precision[-1]]
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(label, score), abs=2 / charts.GRID)


@hypothesis.given(st.integers(1, 5000), st.integers(0, 99))
def test_timelines_keep_their_extremes_and_length(length, seed):
    frame = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    seconds, score = envelope(frame)
    assert len(score) <= 2 * BUCKETS + 1
    assert (score.min(), score.max(), seconds[-1]) == (frame.min(), frame.max(), length / FRAME_RATE)
    index = np.rint(seconds[:-1] * FRAME_RATE).astype(int)
    np.testing.assert_array_equal(score[:-1], frame[index])
    assert (np.diff(index) > 0).all()


def test_histograms_take_any_scores_and_label_their_axes_in_full():
    for score in ([0.0], [2.5, 2.5], [np.inf, -np.inf], [np.inf, 1.0, 2.0]):
        assert "clip score" in charts.histogram_chart("a", "", {"real": (0, np.array(score))})
    chart = charts.histogram_chart("a", "", {"fake": (0, np.linspace(0.001, 0.0234, 50))})
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", chart)]
    assert 0.005 in ticks
    assert len(ticks) == len(set(ticks)) or ticks.count(0.0) > 1


def test_numbers_are_printed_with_four_decimals():
    texts = {
        None: "undefined",
        12: "12",
        0.0: "0.0000",
        0.98765: "0.9877",
        -0.00001234: "-1.2e-05",
        1234.5: "1234.5000",
    }
    assert {value: format_number(value) for value in texts} == texts
    assert value_at({"a": [{"b": None}, {0.5: 3}]}, "a/1/0.5") == 3


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Returns a video of 2 s whose name needs quoting in a URL."""
    path = tmp_path_factory.mktemp("clip") / "50% of: #1?.mp4"
    return write_media(path, ramp([k / 25 for k in range(50)]), sound=tone(2.0))


FRAME = np.sin(np.arange(50) / 8).astype(np.float32)
VERDICT = Verdict(
    NASTY,
    scores={"mean": 0.51234},
    worst_second=(0.24, 1.24),
    caveat="RANDOM weights",
    face_share=0.96,
    several_faces=0.0,
    warning="several faces " + NASTY,
)


def wait_until(page, condition: str) -> None:
    """Polls a condition: the page's security policy blocks wait_for_function, which evaluates text."""
    while not page.evaluate(condition):
        page.wait_for_timeout(20)


def state_of(page) -> list:
    """Returns the positions of the video and the slider in seconds, and the slider's text."""
    wait_until(page, "video.readyState >= 2 && !video.seeking")
    page.wait_for_timeout(60)
    return page.evaluate("[video.currentTime, Number(position.value), position.getAttribute('aria-valuetext')]")


def test_the_timeline_is_a_slider_that_moves_the_video(browser, clip, tmp_path):
    write_video_page(tmp_path / "v.html", clip, VERDICT, FRAME, ((0.5, 1.0),))
    with opened(browser, tmp_path / "v.html") as page:
        assert state_of(page) == [0.0, 0.0, "0.00 s: score 0.00"]
        slider = page.get_by_role("slider", name="Position in the video")
        slider.click()
        assert state_of(page) == [1.0, 1.0, f"1.00 s: score {FRAME[25]:.2f}"]
        for key, seconds in {"ArrowRight": 1.04, "ArrowLeft": 1.0, "End": 2.0, "Home": 0.0}.items():
            page.keyboard.press(key)
            assert state_of(page)[:2] == pytest.approx([seconds, seconds], abs=0.041)
        page.get_by_role("button", name="Play the highest second").click()
        wait_until(page, "video.currentTime > 0.5")
        assert page.evaluate("Math.abs(video.currentTime - position.value) < 0.2")


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")])
def test_the_video_page_says_what_it_shows(browser, clip, tmp_path, size, scheme):
    verdict = dataclasses.replace(VERDICT, scores=VERDICT.scores | {NASTY: 1.0})
    write_video_page(tmp_path / "v.html", clip, verdict, FRAME, ((0.5, 1.0),))
    with opened(browser, tmp_path / "v.html", size, scheme) as page:
        check_look(page, size[0])
        text = page.locator("main").inner_text()
        for part in (NASTY, "RANDOM weights", "0.5123", "0.24-1.24 s", "known to be fake", "no absolute meaning"):
            assert part in text
        assert "Face in 96 % of frames." in text
        assert f"Several faces {NASTY}." in text
        assert not page.locator("#unplayable").is_visible()


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_the_video_page_compares_with_real_clips(browser, clip, tmp_path, size, scheme):
    real = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    attributes = {"method": "avh_align", "dataset": NASTY, "protocol": "p" + NASTY}
    calibration = Calibration("platt", 10, 10, np.array([0.0, 10.0]), np.array([0.0, 1.0]))
    scores = {name: 3 + score for name, score in zip(("logsumexp", "mean", "max"), real, strict=True)}
    reference = Reference(attributes, np.full(300, 50), scores, 0.5, calibration)
    poolings = {name: float(POOLINGS[name](FRAME)) for name in POOLINGS}
    verdict = dataclasses.replace(VERDICT, scores=poolings, reference=reference.judge(FRAME, rates=(0.05, 0.001)))
    write_video_page(tmp_path / "v.html", clip, verdict, FRAME)
    with opened(browser, tmp_path / "v.html", size, scheme) as page:
        check_look(page, size[0])
        text = page.locator("main").inner_text()
        for part in (
            "300 real clips of 2.0-2.0 s (p = ",
            f"300 real clips of {NASTY} of similar length",
            f"Protocol: p{NASTY}.",
            "At 5 % false alarms: not flagged.",
            "At 0.1 % false alarms: undecided, because that takes 999 real clips of similar length.",
            "If half of all videos were fakes like the 10 of the reference, ",
            "not the probability that the video is fake",
            "What this cannot see",
        ):
            assert part in text
        assert page.locator("rect.above").count() == len(verdict.reference.stretches) == 1
        assert page.locator("line.limit").count() == 1
        start, end = verdict.reference.stretches[0]
        page.get_by_role("button", name=f"{start:.2f}\N{EN DASH}{end:.2f} s").click()
        assert start <= page.evaluate("video.currentTime") < end
        p_value = page.locator("tbody tr", has_text="mean").first.locator("td").nth(1).inner_text()
        assert p_value == format_number(verdict.reference.p_values["mean"])


def test_a_large_video_is_linked_not_embedded(browser, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "EMBEDDED_BYTES", 10)
    write_video_page(tmp_path / "sub" / "v.html", clip, dataclasses.replace(VERDICT, scores={}), FRAME[:1])
    with opened(browser, tmp_path / "sub" / "v.html", linked=clip) as page:
        assert state_of(page)[0] == 0
        assert page.evaluate("video.duration") == pytest.approx(2, abs=0.1)
        text = page.locator("main").inner_text()
        assert "move both together" in text
        assert f"read from {os.path.relpath(clip, tmp_path / 'sub')}," in text


def test_missing_and_unplayable_videos_are_reported(browser, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        write_video_page(tmp_path / "v.html", tmp_path / "none.mp4", VERDICT, FRAME)
    (tmp_path / "text.mp4").write_text("no video")
    write_video_page(tmp_path / "v.html", tmp_path / "text.mp4", VERDICT, np.zeros(1, np.float32))
    with opened(browser, tmp_path / "v.html") as page:
        page.locator("#unplayable").wait_for(state="visible")
