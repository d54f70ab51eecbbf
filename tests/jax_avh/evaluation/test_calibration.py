"""References made of score files, probabilities, and the command that writes both."""

import dataclasses
import itertools
import json
import re

import hypothesis
import numpy as np
import pytest
import scipy.special
import sklearn.calibration
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL, UNKNOWN, offsets, track_key
from jax_avh import reference as references
from jax_avh.evaluation import calibration
from jax_avh.evaluation.calibration import calibrate, fit_probability, reliability
from jax_avh.reference import read_reference
from jax_avh.report.reference import write_calibration
from jax_avh.report.video import FaceVerdict, ShotVerdict, Verdict
from jax_avh.scores import POOLINGS, ScoreTable, pool_all, write_scores
from tests.browser import DESKTOP, PHONE, opened

ATTRIBUTES = {
    "pooling": "logsumexp",
    "weights": "/home/someone/secret/run/best.safetensors",
    "features": "/home/someone/secret/shards",
    "alignment_sha256": "a" * 64,
    "weights_sha256": "b" * 64,
    "trimmed": False,
    "dataset": "FakeAVCeleb",
}


def scored(labels, seed: int = 0, frames: tuple[int, int] = (25, 60), fake: float = 1.0, **attributes) -> ScoreTable:
    """Returns scores of clips with names; frame scores of fakes are higher by `fake`."""
    rng = np.random.default_rng(seed)
    length = rng.integers(*frames, len(labels))
    border = offsets(length)
    shift = fake * np.repeat(np.array(labels) == FAKE, length)
    frame = (rng.standard_normal(border[-1]) + shift).astype(np.float32)
    clips = tuple(ClipMeta(f"someone/{seed}-{n}.mp4", label, identity="someone") for n, label in enumerate(labels))
    clip = POOLINGS["logsumexp"](frame, border).astype(np.float32)
    return ScoreTable("avh_align", clips, border, frame, clip, ATTRIBUTES | attributes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Score files: real clips with some fakes, more real clips, fakes, clips without labels."""
    folder = tmp_path_factory.mktemp("scores")
    tables = {
        "mixed": scored([REAL] * 150 + [FAKE] * 50 + [UNKNOWN] * 3),
        "more": scored([REAL] * 400, seed=1, dataset="LAV-DF"),
        "fakes": scored([FAKE] * 460, seed=2),
        "unlabelled": scored([UNKNOWN] * 20, seed=3),
    }
    for name, table in tables.items():
        write_scores(table, folder / f"{name}.h5")
    return tables, {name: folder / f"{name}.h5" for name in tables}


def test_a_reference_holds_the_real_clips_of_all_files_and_names_none(tmp_path, files):
    tables, paths = files
    text = write_calibration([paths["mixed"], paths["more"]], tmp_path / "r.json", protocol="test split, as released")
    reference = read_reference(tmp_path / "r.json")
    real = [tables["mixed"].chosen(np.arange(150)), tables["more"]]
    length = np.concatenate([np.diff(table.offset) for table in real])
    np.testing.assert_array_equal(reference.length, np.sort(length))
    order = np.lexsort([np.concatenate([table.clip for table in real]), length])
    frame = np.concatenate([table.frame for table in real])
    assert next(iter(reference.scores)) == "logsumexp"
    for name, score in pool_all(frame, offsets(length)).items():
        np.testing.assert_array_equal(reference.scores[name], score.astype(np.float32)[order])
    assert reference.frame_limit == pytest.approx(np.quantile(frame, 0.99))
    assert reference.attributes == {
        "method": "avh_align",
        "pooling": "logsumexp",
        "alignment_sha256": "a" * 64,
        "weights_sha256": "b" * 64,
        "trimmed": False,
        "dataset": "FakeAVCeleb, LAV-DF",
        "protocol": "test split, as released",
    }
    content = (tmp_path / "r.json").read_text()
    assert "someone" not in content
    assert ".mp4" not in content
    assert reference.calibration is not None  # from the 50 fakes of the first file
    assert (reference.calibration.real, reference.calibration.fake) == (550, 50)
    assert "550 real clips of FakeAVCeleb, LAV-DF" in text
    assert "3 clips have no label and are left out" in text
    assert "above " in text


def test_files_without_labels_are_taken_for_what_they_are_named(files):
    _, paths = files
    made = calibrate([paths["unlabelled"]], [paths["fakes"]], dataset="mine")
    assert len(made.reference.length) == 20
    assert made.reference.attributes["dataset"] == "mine"
    assert any("no clip has a label, so all 20 are taken for real" in note for note in made.notes)
    assert calibrate([paths["more"]], [paths["unlabelled"]]).fakes.shape == (20,)
    assert calibrate([paths["more"]]).reference.calibration is None


def test_files_that_cannot_be_calibrated_together_are_refused(tmp_path, files):
    _, paths = files
    for name, meaning in references.IDENTITY.items():
        table = scored([REAL] * 5, **{name: True if name == "trimmed" else "other"})
        if name == "method":
            table = ScoreTable(
                "other", *[getattr(table, f) for f in ("clips", "offset", "frame", "clip", "attributes")]
            )
        write_scores(table, tmp_path / "other.h5")
        for given in ([paths["mixed"], tmp_path / "other.h5"], []), ([paths["mixed"]], [tmp_path / "other.h5"]):
            with pytest.raises(UserError, match=f"other.h5: differs from .*mixed.h5 in {meaning} "):
                calibrate(*given)
    for name, encoder in (("known", "c" * 64), ("unknown", "")):  # the latter fits both of the others
        write_scores(scored([REAL] * 5, seed=5, weights_sha256=encoder, dataset=name), tmp_path / f"{name}.h5")
    made = calibrate([tmp_path / "unknown.h5", tmp_path / "known.h5"])
    assert made.reference.attributes["weights_sha256"] == "c" * 64
    with pytest.raises(UserError, match=r"mixed\.h5: differs from .*known\.h5 in the encoder"):
        calibrate([tmp_path / "unknown.h5", tmp_path / "known.h5", paths["mixed"]])
    with pytest.raises(UserError, match=r"fakes\.h5: holds no real clip; name score files of real clips"):
        calibrate([paths["fakes"]])
    for protocol in ("\x1b[31m", "x" * 1001):
        with pytest.raises(UserError, match="protocol: holds control characters or more than 1000"):
            calibrate([paths["mixed"]], protocol=protocol)


def test_a_clip_counts_once(tmp_path, files):
    """Clips of the same name with other scores are other clips: of folders whose data set is not named."""
    _, paths = files
    for given in (
        ([paths["mixed"], paths["mixed"]], []),
        ([paths["more"]], [paths["fakes"], paths["fakes"]]),
        ([paths["unlabelled"]], [paths["unlabelled"]]),
    ):
        with pytest.raises(UserError, match=r"clip 'someone/[0-3]-0\.mp4': occurs twice in the score files"):
            calibrate(*given)
    one = scored([REAL] * 9)
    other = dataclasses.replace(one, clip=one.clip + 1)
    for table, dataset in itertools.product((one, other), ("", "a", "b")):
        attributes = one.attributes | {"dataset": dataset}
        write_scores(dataclasses.replace(table, attributes=attributes), tmp_path / f"{table is one}{dataset}.h5")
    assert len(calibrate([tmp_path / "True.h5", tmp_path / "False.h5"]).reference.length) == 18
    assert len(calibrate([tmp_path / "Truea.h5", tmp_path / "Trueb.h5"]).reference.length) == 18
    with pytest.raises(UserError, match="occurs twice"):  # the same clip, scored on another device
        calibrate([tmp_path / "Truea.h5", tmp_path / "Falsea.h5"])


def test_a_note_is_one_line(tmp_path):
    write_scores(scored([UNKNOWN] * 5), tmp_path / "odd\nname.h5")
    text = write_calibration([tmp_path / "odd\nname.h5"], tmp_path / "r.json")
    assert "odd name.h5: no clip has a label" in text


def test_what_is_given_for_fakes_without_effect_is_an_error(tmp_path, files):
    _, paths = files
    with pytest.raises(UserError, match=r"more\.h5: holds no fake; name score files of fakes"):
        calibrate([paths["mixed"]], [paths["fakes"], paths["more"]])
    with pytest.raises(UserError, match=r"--calibration=isotonic: needs fakes"):
        calibrate([paths["more"]], rule="isotonic")
    few = calibrate([paths["mixed"]], rule="isotonic")
    assert few.reference.calibration is None
    assert "150 real clips and 50 fakes are too few for probabilities by isotonic: it takes 500 of each" in few.notes


def test_the_faces_of_a_video_are_one_clip(tmp_path):
    """Their frames together, pooled again; the reference's length is that of all of them."""
    table = scored([REAL] * 6, faces="all")
    keys = ["a#shot1.face1", "b#shot1.face1", "a#shot2.face1", "c#shot1.face1", "a#shot2.face2", "d#shot9.face1"]
    clips = tuple(ClipMeta(key, REAL) for key in keys)
    write_scores(dataclasses.replace(table, clips=clips), tmp_path / "s.h5")
    reference = calibrate([tmp_path / "s.h5"]).reference
    parts = np.split(table.frame, table.offset[1:-1])
    videos = [np.concatenate([parts[0], parts[2], parts[4]]), parts[1], parts[3], parts[5]]
    videos.sort(key=len)
    assert reference.length.tolist() == [len(frame) for frame in videos]
    for name in POOLINGS:
        wanted = [np.float32(POOLINGS[name](frame)) for frame in videos]
        np.testing.assert_array_equal(reference.scores[name], wanted)
    assert reference.judge(videos[-1]).p_value <= 1
    write_scores(dataclasses.replace(table, clips=clips, frame=None), tmp_path / "s.h5")
    with pytest.raises(UserError, match=r"s\.h5: has no frame scores, of which those of a video's faces are pooled"):
        calibrate([tmp_path / "s.h5"])
    write_scores(scored([], faces="all"), tmp_path / "s.h5")
    with pytest.raises(UserError, match=r"s\.h5: holds no clips"):
        calibrate([tmp_path / "s.h5"])


def test_videos_of_few_and_of_many_faces_are_flagged_as_seldom_as_promised(tmp_path):
    """Also if scores depend on their number: a reference of single faces would be one of videos with many."""
    rng = np.random.default_rng(0)
    count = rng.choice([1, 20], 2000)  # faces of each video, with as many frames in all
    length = np.concatenate([rng.integers(60, 100, 1) if n == 1 else rng.integers(3, 6, 20) for n in count])
    shift = np.repeat(np.repeat(np.where(count == 1, 1.0, 0.0) + rng.normal(0, 0.3, 2000), count), length)
    frame = (rng.standard_normal(len(shift)) + shift).astype(np.float32)
    keys = [track_key(f"{video}", n + 1, 1) for video, faces in enumerate(count) for n in range(faces)]
    clip = POOLINGS["logsumexp"](frame, offsets(length)).astype(np.float32)
    clips = tuple(ClipMeta(key, REAL) for key in keys)
    table = ScoreTable("avh_align", clips, offsets(length), frame, clip, ATTRIBUTES | {"faces": "all"})
    known = int(count[:1000].sum())
    write_scores(table.chosen(np.arange(known)), tmp_path / "s.h5")
    reference = calibrate([tmp_path / "s.h5"]).reference
    flagged = 0
    parts = iter(zip(keys[known:], np.split(frame, offsets(length)[1:-1])[known:], strict=True))
    for faces in count[1000:]:
        found = [next(parts) for _ in range(faces)]
        judged = [
            FaceVerdict(key, 0.0, 0.0, [], 1.0, scores={"": 0.0}, frame_scores=own.tolist()) for key, own in found
        ]
        verdict = Verdict("v", 4.0, which_faces="all", shots=[ShotVerdict(0.0, 4.0, judged)])
        flagged += bool(verdict.compared(frame, reference, rates=(0.05,)).reference.flagged["0.05"])
    assert 25 <= flagged <= 75  # of 50 expected


def test_a_large_set_is_drawn_from(files, monkeypatch):
    _, paths = files
    monkeypatch.setattr(calibration, "MOST_CLIPS", 40)
    made = calibrate([paths["mixed"], paths["more"]])
    assert len(made.reference.length) == 40
    assert "the reference holds 40 of 550 real clips, drawn at random" in made.notes


def test_clip_scores_without_frames_make_a_reference(tmp_path):
    table = scored([REAL] * 30)
    known = {name: value for name, value in ATTRIBUTES.items() if name != "pooling"}
    write_scores(ScoreTable("rawnet2", table.clips, table.offset, None, table.clip, known), tmp_path / "s.h5")
    write_calibration([tmp_path / "s.h5"], tmp_path / "r.json")
    reference = read_reference(tmp_path / "r.json")
    assert (reference.own, reference.frame_limit, set(reference.scores)) == ("clip", None, {"clip"})


# --- probabilities ---------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int = 0, share: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels, scores, and the true probabilities that a clip is fake if half of all are."""
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < share).astype(np.int64)
    score = rng.standard_normal(count) + 2 * label
    return label, score, scipy.special.expit(2 * score - 2)


def test_a_curve_that_rounding_lowers_still_never_falls(monkeypatch):
    curve = LogisticRegression.predict_proba

    def lower(self, x):
        return curve(self, x) - 1e-3 * (np.arange(len(x)) % 2)[:, None]

    monkeypatch.setattr(LogisticRegression, "predict_proba", lower)
    found = fit_probability(np.repeat([REAL, FAKE], 20), np.linspace(0, 3, 40), "platt")
    assert (np.diff(found.probability) >= 0).all()


@pytest.mark.parametrize("rule", ["platt", "isotonic"])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_probabilities_are_the_true_ones_for_any_share_of_fakes(rule, share):
    label, score, _ = drawn(20_000, share=share)
    fitted = fit_probability(label, score, rule)
    _, tested, truth = drawn(1000, seed=1)
    assert np.abs(fitted(tested) - truth).mean() < {"platt": 0.02, "isotonic": 0.05}[rule]


def test_platts_curve_is_that_of_scikit_learn():
    label, score, _ = drawn(300)
    balanced = np.r_[np.flatnonzero(label == 0)[:100], np.flatnonzero(label == 1)[:100]]
    label, score = label[balanced], score[balanced]
    wanted = sklearn.calibration._SigmoidCalibration().fit(score, label)
    fitted = fit_probability(label, score, "platt")
    np.testing.assert_allclose(fitted(score), wanted.predict(score), atol=2e-3)


def test_separate_classes_have_finite_probabilities_and_others_a_half():
    label = np.repeat([0, 1], 20)
    separate = fit_probability(label, label + 0.001 * np.arange(40.0), "platt")
    assert 0.9 < separate(np.array([1.0]))[0] < 1
    below = fit_probability(label, -separate(label.astype(float)), "platt")
    np.testing.assert_allclose(below(np.linspace(-2, 2, 9)), 0.5)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(-9, 9)), min_size=2, max_size=30),
    st.sampled_from(["platt", "isotonic"]),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_probabilities_never_fall_with_the_score(clips, rule):
    label, score = np.array([label for label, _ in clips]), np.array([score for _, score in clips])
    hypothesis.assume(0 < label.sum() < len(label))
    probability = fit_probability(label, score, rule)(np.linspace(-10, 10, 99))
    assert (np.diff(probability) >= -1e-12).all()
    assert ((probability >= 0) & (probability <= 1)).all()


def test_probabilities_do_not_depend_on_the_length(tmp_path):
    """Makes long clips' scores higher, real and fake, and checks that probabilities hold for short and long ones."""
    write_scores(scored([REAL] * 1500 + [FAKE] * 400, frames=(25, 250), fake=0.4), tmp_path / "s.h5")
    made = calibrate([tmp_path / "s.h5"])
    assert made.reliability.calibration_error < 0.07
    tested = scored([REAL, FAKE] * 500, seed=1, frames=(25, 250), fake=0.4)
    length, label = np.diff(tested.offset), np.arange(1000) % 2
    p_value = made.reference.rank("logsumexp", tested.clip, length).p_value()
    probability = made.reference.calibration(-np.log(p_value))
    for part in np.array_split(np.argsort(length), 2):
        assert probability[part].mean() == pytest.approx(label[part].mean(), abs=0.1)


def test_fakes_of_other_lengths_are_left_out(tmp_path, files):
    write_scores(scored([FAKE] * 20, frames=(25, 200)), tmp_path / "f.h5")
    made = calibrate([files[1]["more"]], [tmp_path / "f.h5"])
    assert any(
        re.fullmatch(r"\d+ of 20 fakes are unlike all real clips in length and are left out", n) for n in made.notes
    )


def test_reliability_of_true_and_of_overconfident_probabilities():
    label, _, truth = drawn(20_000)
    good = reliability(label, truth)
    assert good.calibration_error < 0.015
    assert sum(clips for *_, clips in good.bins) == len(label)
    assert good.kept == pytest.approx(np.linspace(0.05, 1, 20), abs=0.01)
    assert good.accuracy[-1] == pytest.approx(np.mean((truth > 0.5) == label), abs=0.01)
    assert good.accuracy[0] > 0.99
    assert reliability(label, np.round(truth)).calibration_error > 0.1


def test_the_error_of_reliability_by_hand():
    found = reliability(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.65, 0.9]))
    assert found.bins == [(0.1, 0.0, 1), (pytest.approx(0.625), 0.5, 2), (0.9, 1.0, 1)]
    assert found.calibration_error == pytest.approx(0.25 * 0.1 + 0.5 * 0.125 + 0.25 * 0.1)
    assert (found.kept[-1], found.accuracy[-1], found.accuracy[0]) == (1, 0.75, 1)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_reference_and_its_page(tmp_path, files, fork):
    _, paths = files
    flags = {"scores": f"{paths['mixed']},{paths['more']}", "fakes": paths["fakes"], "output": tmp_path / "r.json"}
    flags |= {"page": tmp_path / "r.html", "dataset": "<b>ours</b>", "protocol": "4K", "calibration": "isotonic"}
    status, output = fork("calibrate", *(f"--{name}={value}" for name, value in flags.items()))
    assert status == 0, output
    assert "550 real clips of <b>ours</b>" in output
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["attributes"]["protocol"] == "4K"
    assert (content["calibration"]["rule"], content["calibration"]["fake"]) == ("isotonic", 510)
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;ours&lt;/b&gt;" in page
    assert "Reliability" in page
    (tmp_path / "other.json").write_text("{}")
    flags["output"] = tmp_path / "other.json"
    status, output = fork("calibrate", *(f"--{name}={value}" for name, value in flags.items()))
    assert (status, "this command did not write it" in output) == (2, True)


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")])
def test_the_page_fits_any_screen(browser, tmp_path, files, size, scheme):
    _, paths = files
    write_calibration([paths["mixed"], paths["more"]], tmp_path / "r.json", tmp_path / "r.html", [paths["fakes"]])
    with opened(browser, tmp_path / "r.html", size, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator(".picture svg").count() == 3
        said = page.inner_text("main")
    assert "550 real clips" in said
    assert "at most the given share is flagged on average" in said
