"""Verdicts on videos, and the parts of the demo."""

import csv
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from apps.demo import SOURCE_CLIPS, TRAINING, demo, fetch_clips, make_clips
from apps.detect import DetectSettings, detect, score_video, worst_second
from apps.simulate import Corpus
from avh_shards import ClipMeta, UserError, leading_silence, read_clip_list
from extract.avhubert import AVHubert, AVHubertConfig, random_avhubert
from extract.avhubert.encoder import Encoder, encode_video, start_encoding
from extract.media import read_audio
from extract.prepare import PrepareSettings, prepare_clip
from jax_avh.evaluation import POOLINGS
from jax_avh.inference import load_detector
from jax_avh.models.alignment import NETWORKS
from jax_avh.models.weights import load_weights, save_weights
from jax_avh.reference import Reference, write_reference
from jax_avh.report.video import Verdict
from tests import rules
from tests.media import ramp, read_frames, tone, write_media


@pytest.fixture(scope="module")
def film(tmp_path_factory, real_clips) -> Path:
    """The first second of a real clip, because finding faces takes as long as a film."""
    frames, sound = read_frames(real_clips["testMovie"])[:25], read_audio(real_clips["testMovie"])[None, :16000]
    return write_media(tmp_path_factory.mktemp("film") / "testMovie.mp4", list(frames), sound=sound)


def test_a_video_is_scored_and_a_bad_one_named(tmp_path, settings, film, tiny_encoder, narrow_weights, capsys):
    (tmp_path / "text.mp4").write_text("no film")
    write_media(tmp_path / "no face.mp4", ramp([0] * 10), sound=tone(0.4))
    videos = [str(film), str(tmp_path / "text.mp4"), str(tmp_path / "no face.mp4")]
    status = detect(videos, settings, tmp_path / "v.json", tmp_path / "pages")
    assert status == 2
    assert [page.name for page in (tmp_path / "pages").iterdir()] == ["testMovie.html"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(name in lines[0] for name in (*POOLINGS, "worst second"))
    assert "RANDOM" not in lines[0]
    assert "FAILED: cannot be decoded" in lines[1]
    assert "FAILED: no face found" in lines[2]
    verdicts = json.loads((tmp_path / "v.json").read_text())
    clip = prepare_clip(ClipMeta("testMovie.mp4"), film.parent, PrepareSettings())
    features = start_encoding(tiny_encoder, [clip])()[0]
    frame = -np.asarray(load_weights(narrow_weights)(*map(jnp.asarray, features[:2])))
    for name, pool in POOLINGS.items():
        assert verdicts[0]["scores"][name] == pytest.approx(float(pool(frame)), abs=1e-4)
    assert (verdicts[0]["method"], verdicts[0]["own_score"]) == ("avh_align", verdicts[0]["scores"]["logsumexp"])
    assert verdicts[0]["seconds"] == len(frame) / 25
    assert verdicts[0]["worst_second"] == list(worst_second(frame))
    assert [bool(verdict["error"]) for verdict in verdicts] == [False, True, True]
    assert [verdict["face_share"] for verdict in verdicts] == [1.0, None, None]
    assert "face in 100 % of frames" in lines[0]


@pytest.fixture
def reference(tiny_encoder, narrow_weights) -> Reference:
    """A hundred real clips of 25 frames that fit better than any video."""
    attributes = {"method": "avh_align", "pooling": "logsumexp", "trimmed": False, "dataset": "made up"}
    attributes["alignment_sha256"] = hashlib.sha256(narrow_weights.read_bytes()).hexdigest()
    scores = {name: np.full(100, -1000, np.float32) for name in ("logsumexp", "mean")}
    return Reference(attributes, np.full(100, 25), scores, frame_limit=-1000.0)


def test_a_video_is_compared_with_real_clips(tmp_path, settings, film, reference, capsys, monkeypatch):
    write_reference(reference, tmp_path / "r.json")
    settings = dataclasses.replace(settings, reference=tmp_path / "r.json", rates=[0.01, 0.001])
    assert detect([str(film)], settings, tmp_path / "v.json", tmp_path / "pages") == 0
    printed, noted = capsys.readouterr()
    for said in (
        "more suspicious than all 100 real clips of 1.0-1.0 s (p = 0.0099 in steps of 0.0099; 95 % interval 0-0.036)",
        "at 1 % false alarms: flagged; at 0.1 % false alarms: undecided, because that takes 999 real clips",
        "frames above 99 % of real clips' frames: 0.00-1.00 s",
    ):
        assert said in printed
    assert "note: a p-value compares a video with the reference's real clips; it is not the probability" in noted
    (verdict,) = json.loads((tmp_path / "v.json").read_text())
    assert verdict["reference"]["flagged"] == {"0.01": True, "0.001": None}
    assert verdict["reference"]["stretches"] == [[0.0, 1.0]]
    assert verdict["reference"]["p_values"].keys() == {"logsumexp", "mean"}
    assert "More suspicious than all 100 real clips" in (tmp_path / "pages" / "testMovie.html").read_text()
    monkeypatch.setattr("apps.detect.score_video", lambda *_: pytest.fail("scored"))
    differing = dataclasses.replace(settings, reference=tmp_path / "other.json")
    for changed, said in [
        ({"alignment_sha256": "other"}, "differs in the weights"),
        ({"weights_sha256": "other"}, "differs in the encoder"),
        ({"faces": "all"}, "differs in which faces are scored"),
        ({"method": "avad"}, "differs in the method"),
        ({"trimmed": True}, "differs in whether leading silence was dropped"),
    ]:
        other = dataclasses.replace(reference, attributes=reference.attributes | changed)
        write_reference(other, tmp_path / "other.json")
        with pytest.raises(UserError, match=rf"^--reference=.*other\.json: {said}"):
            detect([str(film)], differing)
    write_reference(dataclasses.replace(reference, frame_limit=None), tmp_path / "other.json")
    with pytest.raises(UserError, match="has no frame scores pooled by logsumexp"):
        detect([str(film)], differing)
    with pytest.raises(UserError, match="is an input of this command"):
        detect([str(film)], settings, tmp_path / "r.json")


def test_the_command_passes_on_how_to_compare(fork):
    show = "import apps.detect; apps.detect.detect = lambda videos, settings, *_: print(settings)"
    flags = ["x.mp4", "--avhubert=random", "--weights=w", "--reference=r.json", "--two_sided"]
    status, output = fork("detect", *flags, "--false_alarms=0.1,0.001", before=show)
    assert (status, "reference='r.json', two_sided=True, rates=[0.1, 0.001])" in output) == (0, True)
    for wrong in ("1", "0", "1 %", "", "0.1,,"):
        status, output = fork("detect", *flags, f"--false_alarms={wrong}")
        assert (status, output.count("\n")) == (2, 1)
        assert "write 0.01 for one per cent" in output


def test_verdicts_warn_of_few_and_of_several_faces(tmp_path, film, tiny_checkpoint, narrow_weights, launch):
    """Frames without a face are scored, too; of several faces, one is scored."""
    frames = read_frames(film)[:5]
    write_media(tmp_path / "few.mp4", [frames[0], *np.zeros_like(frames[1:])], sound=tone(0.2))
    write_media(tmp_path / "two.mp4", [np.hstack([frame, frames[0]]) for frame in frames], sound=tone(0.2))
    videos = [str(tmp_path / "few.mp4"), str(tmp_path / "two.mp4")]
    flags = {"avhubert": tiny_checkpoint, "weights": narrow_weights, "json": tmp_path / "v.json"}
    flags["pages"] = tmp_path / "pages"
    status, output = launch("detect", *videos, *(f"--{name}={value}" for name, value in flags.items()))
    assert status == 0, output
    assert {page.name for page in (tmp_path / "pages").iterdir()} == {"few.html", "two.html"}
    few, two = json.loads((tmp_path / "v.json").read_text())
    assert (few["face_share"], few["several_faces"], two["face_share"], two["several_faces"]) == (0.2, 0, 1, 1)
    first, second = output.splitlines()[:2]
    assert "face in 20 % of frames  few frames show a face" in first
    assert "face in 100 % of frames, several faces in 100 %  several faces: one of them is scored" in second


def test_two_videos_of_one_name_have_pages_in_two_folders(tmp_path, settings, monkeypatch):
    pages = []
    found = Verdict("x.mp4", 1.0, {"mean": 0.5}), np.zeros(25, np.float32)
    monkeypatch.setattr("apps.detect.score_video", lambda *_: found)
    monkeypatch.setattr("apps.detect.write_page", lambda path, *_: pages.append(path.relative_to(tmp_path).as_posix()))
    arguments = settings, None, tmp_path
    detect(["a/b/x.mp4", "a/x.avi", "a/b/../y.mp4"], *arguments)
    assert pages == ["b/x.html", "x.html", "y.html"]
    detect(["a/x.mp4", "b/y.mp4"], *arguments)
    assert pages[3:] == ["x.html", "y.html"]
    with pytest.raises(UserError, match="one of the videos is given twice"):
        detect(["a/x.mp4", "b/../a/x.mp4"], *arguments)


def test_verdicts_spare_their_inputs(tmp_path, settings, tiny_checkpoint, narrow_weights, monkeypatch):
    """Inputs named as outputs are rejected before the encoder is loaded."""
    monkeypatch.setattr("apps.detect.Encoder", lambda _: pytest.fail("loaded"))
    (tmp_path / "x.html").write_text("a film, by its author")
    (tmp_path / "file").write_text("x")
    video = str(tmp_path / "x.html")
    for written in (
        {"output": video},
        {"pages": tmp_path},
        {"output": narrow_weights},
        {"output": tiny_checkpoint},
    ):
        with pytest.raises(UserError, match="is an input of this command"):
            detect([video], settings, **written)
    with pytest.raises(UserError, match="cannot be written"):
        detect([video], settings, pages=tmp_path / "file" / "pages")


def test_older_verdicts_are_gone_before_the_first_new_one(tmp_path, settings, monkeypatch):
    """Otherwise a killed run would leave old and new verdicts together."""

    def verdict(*_):
        assert list((tmp_path / "out").rglob("*.*")) == []
        return Verdict("x.mp4", error="none"), np.zeros(0, np.float32)

    monkeypatch.setattr("apps.detect.score_video", verdict)
    (tmp_path / "out" / "pages").mkdir(parents=True)
    (tmp_path / "out" / "v.json").write_text("[]\n")
    (tmp_path / "out" / "pages" / "x.html").write_text("<!doctype html>\n")
    outputs = {"output": tmp_path / "out" / "v.json", "pages": tmp_path / "out" / "pages"}
    assert detect(["x.mp4"], settings, **outputs) == 2
    (tmp_path / "out" / "v.json").write_text('{"settings": 1}\n')
    with pytest.raises(UserError, match=r"v\.json: exists, and this command did not write it"):
        detect(["x.mp4"], settings, **outputs)


def test_verdicts_are_kept_if_a_page_fails(tmp_path, settings, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    found = Verdict("x.mp4", 1.0, {"mean": 0.5}), np.zeros(25, np.float32)
    monkeypatch.setattr("apps.detect.score_video", lambda *_: found)
    monkeypatch.setattr("apps.detect.write_page", fail)
    with pytest.raises(OSError, match="no space left"):
        detect(
            ["x.mp4"],
            settings,
            tmp_path / "v.json",
            tmp_path / "pages",
        )
    assert json.loads((tmp_path / "v.json").read_text())[0]["scores"] == {"mean": 0.5}


@pytest.mark.parametrize("video", ["", "..", "/", "a\tb.mp4", "x" * 300 + ".mp4", "-.mp4"])
def test_names_that_are_not_videos_are_reported(settings, video, capsys):
    assert detect([video], settings) == 2
    assert "FAILED" in capsys.readouterr().out


def test_weights_that_do_not_fit_the_encoder(tmp_path, tiny_checkpoint):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"width 1024, but .* has width 64"):
        detect(["x.mp4"], DetectSettings(str(tiny_checkpoint), str(weights)))
    with pytest.raises(UserError, match=r"width 1024, but .* has width 64"):
        score_video("x.mp4", Encoder(tiny_checkpoint), load_detector(weights))


def test_a_video_that_cannot_be_encoded_is_named(tmp_path, tiny_checkpoint):
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match=r"text\.mp4: cannot be decoded"):
        encode_video(tmp_path / "text.mp4", Encoder(tiny_checkpoint))


def test_random_and_simulated_origins_are_said_in_every_verdict(tmp_path, film, monkeypatch, capsys):
    """Checks the origin of the encoder and of the detector's training features, also on the page."""
    monkeypatch.setattr("extract.avhubert.encoder.AVHubertConfig.large", AVHubertConfig.tiny)
    network = NETWORKS["mlp"](AVHubertConfig.tiny().width, rngs=nnx.Rngs(0))
    save_weights(network, tmp_path / "w.safetensors", {"trained_on": "simulated"})
    settings = DetectSettings("random", str(tmp_path / "w.safetensors"))
    detect([str(film)], settings, tmp_path / "v.json", tmp_path / "p")
    page = (tmp_path / "p" / "testMovie.html").read_text()
    for text in (capsys.readouterr().out, json.loads((tmp_path / "v.json").read_text())[0]["caveat"], page):
        assert "RANDOM AV-HuBERT weights" in text
        assert "SIMULATED features" in text


@pytest.mark.parametrize(
    ("frame", "wanted"),
    [
        (np.r_[np.zeros(50), np.ones(25), np.zeros(25)], (2.0, 3.0)),
        (np.ones(10), (0.0, 0.4)),
        (np.r_[np.zeros(25), 1], (0.04, 1.04)),
        (np.full(1, 3.0), (0.0, 0.04)),
    ],
)
def test_the_worst_second_is_the_highest_25_frames(frame, wanted):
    assert worst_second(frame) == pytest.approx(wanted)


def test_the_demo_makes_real_clips_and_fakes_of_them(tmp_path, real_clips):
    sources = {name: real_clips[name] for name in ("testMovie", "obama_speech")}
    make_clips(sources, tmp_path / "media", tmp_path / "clips.csv")
    clips = read_clip_list(tmp_path / "clips.csv")
    assert [(clip.category, clip.label) for clip in clips[:4]] == [
        ("own", 0), ("swapped", 1), ("shifted", 1), ("spliced", 1)
    ]  # fmt: skip
    own = read_audio(tmp_path / "media" / "testMovie" / "own.mp4")
    source = read_audio(real_clips["testMovie"])
    sound = {clip.category: read_audio(tmp_path / "media" / clip.path) for clip in clips[:4]}
    agree = {name: np.corrcoef(wave[: len(source)], source[: len(wave)])[0, 1] for name, wave in sound.items()}
    assert agree["own"] > 0.95
    assert agree["spliced"] > 0.5
    assert abs(agree["swapped"]) < 0.1
    shift = np.roll(source, round(0.2 * 16000))
    assert np.corrcoef(sound["shifted"][: len(shift)], shift[: len(sound["shifted"])])[0, 1] > 0.95
    assert len(own) == pytest.approx(len(source), abs=2048)
    for clip in clips[:4]:
        with av.open(str(tmp_path / "media" / clip.path)) as container:
            assert {stream.type for stream in container.streams} == {"video", "audio"}
        np.testing.assert_array_equal(
            read_frames(tmp_path / "media" / clip.path)[:5], read_frames(real_clips["testMovie"])[:5]
        )
    spliced = clips[3]
    start, stop = (round(16000 * seconds) for seconds in spliced.segments[0])
    difference = np.abs(sound["spliced"][: len(source)] - source[: len(sound["spliced"])])
    assert difference[start:stop].mean() > 10 * difference[: start - 2000].mean()
    assert leading_silence(sound["shifted"]) < 0.1  # no silence that gives the fake away


def test_a_clip_with_other_content_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("apps.demo._download", lambda folder: None)
    (tmp_path / "jwpIntro.mp4").write_bytes(b"other")
    with pytest.raises(UserError, match=r"jwpIntro\.mp4: missing, or not the expected clip"):
        fetch_clips(tmp_path)


def test_the_clips_are_those_named(real_clips):
    for member, digest in SOURCE_CLIPS.items():
        assert hashlib.sha256(real_clips[Path(member).stem].read_bytes()).hexdigest() == digest


def test_random_encoders_are_seeded():
    one, two = (random_avhubert(AVHubertConfig.tiny()).state_dict() for _ in range(2))
    other = random_avhubert(AVHubertConfig.tiny(), seed=1).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert isinstance(AVHubert(AVHubertConfig.tiny()), torch.nn.Module)


def test_the_demo_in_short(tmp_path, film, tiny_checkpoint, monkeypatch, capsys, launch):
    """Runs all steps of the demo on one second, with small networks and a small corpus, its commands in forks."""

    def run(command, check):
        assert command[:2] == [sys.executable, "-m"]
        status, output = launch(command[2].removeprefix("launch."), *command[3:])
        print(output)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr("apps.demo.subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr("apps.demo.fetch_clips", lambda: {"testMovie": film})
    monkeypatch.setattr("apps.demo.Corpus", lambda: Corpus(train=4, val=2, test=6, frames=(20, 30)))
    monkeypatch.setitem(TRAINING, "config.method.head", "linear")
    demo(tmp_path, str(tiny_checkpoint))
    output = capsys.readouterr().out
    for said in ("4 clips: 4 in 1 shards", "testMovie/spliced.mp4", "SIMULATED", "avh_align"):
        assert said in output
    assert "RANDOM" not in output
    results = json.loads((tmp_path / "results" / "metrics.json").read_text())["results"]
    assert {result["fake"] for result in results if result["group"] == "all"} == {3}
    assert (tmp_path / "results" / "report.html").is_file()


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path, launch, real_clips):
    status, output = launch("demo", f"--output={tmp_path}")
    assert status == 0, output
    for said in ("RANDOM AV-HuBERT weights", "SIMULATED", "jwpIntro/spliced.mp4", "*logsumexp"):
        assert said in output
    with (tmp_path / "results" / "clips.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 40


@pytest.mark.parametrize(("chosen", "found"), [("", "cpu"), ("cuda", "cuda")])
def test_the_command_leaves_the_gpu_to_the_encoder(launch, chosen, found):
    """Asks for JAX's platforms at the moment when the command calls `detect`."""
    ask = "import apps.detect, jax; apps.detect.detect = lambda *_: print(jax.config.jax_platforms)"
    flags = ("x.mp4", "--avhubert=random", "--weights=w")
    assert launch("detect", *flags, environment={"JAX_PLATFORMS": chosen}, before=ask) == (0, f"{found}\n")
