"""Verdicts on many videos: their results file, which a killed run resumes, their pages and the index."""

import contextlib
import dataclasses
import json
import signal
import time
from pathlib import Path, PurePath

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from apps.detect import page_paths, score_video
from apps.detect_many import THUMBNAIL, detect_many, find_videos
from avh_shards import ClipMeta, UserError
from avh_shards.errors import Failure
from avh_shards.format import Variant
from avh_shards.paths import append, file_sha256
from extract.avhubert.encoder import Encoder
from extract.run.pool import Prepared
from jax_avh.inference import load_detector
from jax_avh.reference import Reference, write_reference
from jax_avh.report.index import Entry, write_index
from jax_avh.report.video import Verdict
from tests.browser import PHONE, opened
from tests.media import read_frames, tone, write_media


@pytest.fixture(scope="module")
def videos(tmp_path_factory, real_clips) -> Path:
    """A folder with two films of one name, one of them damaged, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    frames = list(read_frames(real_clips["testMovie"])[:3])
    for name, pictures in {"a": frames, "b": frames[::-1]}.items():
        (folder / name).mkdir()
        write_media(folder / name / "x.mp4", pictures, sound=tone(0.12))
    (folder / "b" / "damaged.mp4").write_text("no film")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture
def here(monkeypatch):
    """Prepares videos in this process, because starting others takes seconds."""
    monkeypatch.setattr("apps.detect_many.running_pool", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("apps.detect_many.prepare_all", lambda _, clips, task, processes: map(task, clips))


@pytest.fixture
def pretended(here, monkeypatch):
    """Replaces preparation, scores and pages by pretended ones; returns the list of the videos that were scored."""
    scored = []

    def score(path, clip, *_):
        scored.append(path)
        if "bad" in path:
            return Verdict(path, error="is bad", passing="passing" in path), np.zeros(0, np.float32)
        return Verdict(path, 1.0, {"mean": 0.5}, method="avh_align", own_score=float(len(path))), np.zeros(
            25, np.float32
        )

    def write(page, video, verdict, frame, settings):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f'<!doctype html>\n<meta name="settings" content="{settings}">\n')

    def prepare(_, clips, task, processes):
        return (Prepared({Variant.UNTRIMMED: Failure(clip.path, "", "")}, {}) for clip in clips)

    monkeypatch.setattr("apps.detect_many.prepare_all", prepare)
    monkeypatch.setattr("apps.detect_many.score_prepared", score)
    monkeypatch.setattr("apps.detect_many._write_pages", write)
    return scored


def listed(*paths: str) -> list[ClipMeta]:
    return [ClipMeta(path) for path in paths]


def results_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_gives_the_verdicts_of_its_videos(tmp_path, videos, settings, here, browser):
    found = find_videos(videos)
    assert [clip.path for clip in found] == ["a/x.mp4", "b/damaged.mp4", "b/x.mp4"]
    results, pages = tmp_path / "r.jsonl", tmp_path / "pages"
    assert detect_many(found, videos, settings, results, pages) == 2
    lines = results_of(results)
    encoder, detector = Encoder(settings.avhubert), load_detector(settings.weights)
    for line in lines:
        verdict, _ = score_video(str(videos / line["path"]), encoder, detector)
        for name in ("scores", "own_score", "seconds", "error", "face_share"):
            assert line[name] == getattr(verdict, name), name
    assert [line["error"] != "" for line in lines] == [False, True, False]
    names = {path.relative_to(pages).as_posix() for path in pages.rglob("*.*")}
    assert names == {"a/x.html", "a/x.thumbnail.jpg", "b/x.html", "b/x.thumbnail.jpg", "index.html"}
    with opened(browser, pages / "index.html") as page:
        assert page.locator("tbody a").count() == 2
        assert page.locator("img").first.evaluate("image => image.complete && image.naturalWidth") == 160
        assert "cannot be decoded" in page.locator("tbody tr").last.inner_text()
    before = results.read_bytes()
    assert detect_many(found, videos, settings, results, pages) == 2
    assert results.read_bytes() == before
    with pytest.raises(UserError, match=r"other settings \(faces: None instead of all\)"):
        detect_many(found, videos, dataclasses.replace(settings, faces="all"), results)
    detect_many(found[:1], videos, dataclasses.replace(settings, faces="all"), tmp_path / "faces.jsonl")
    verdict, _ = score_video(str(videos / "a" / "x.mp4"), encoder, detector, faces="all")
    assert results_of(tmp_path / "faces.jsonl")[0]["error"] == verdict.error != ""


def test_a_stopped_run_resumes(tmp_path, settings, pretended, monkeypatch):
    """The files of one run, and of one that was stopped at each line and in the midst of it, are the same."""
    found = listed("a/x.mp4", "a/bad.mp4", "b/x.mp4")
    arguments = found, tmp_path, settings
    detect_many(*arguments, tmp_path / "whole.jsonl", tmp_path / "whole")
    whole = (tmp_path / "whole.jsonl").read_bytes()

    def stop(path, data):
        append(path, data[: len(data) // 2])
        raise KeyboardInterrupt

    for count in range(len(found)):
        pretended.clear()
        results, pages = tmp_path / f"{count}.jsonl", tmp_path / f"{count}"
        with monkeypatch.context() as patch:
            patch.setattr("apps.detect_many.append", lambda *a, c=count: (stop if len(pretended) > c else append)(*a))
            with pytest.raises(KeyboardInterrupt):
                detect_many(*arguments, results, pages)
        assert results.read_bytes() != whole
        assert detect_many(*arguments, results, pages) == 2
        assert results.read_bytes() == whole
        assert len(pretended) == len(found) + 1
        assert (pages / "index.html").read_bytes() == (tmp_path / "whole" / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("retry", "again"), [("none", []), ("passing", ["passing-bad.mp4"]), ("all", ["bad.mp4", "passing-bad.mp4"])]
)
def test_failures_are_retried_if_asked(tmp_path, settings, pretended, retry, again):
    found = listed("bad.mp4", "passing-bad.mp4", "x.mp4")
    arguments = tmp_path, settings, tmp_path / "r.jsonl"
    detect_many([*found, ClipMeta("other-passing-bad.mp4")], *arguments)
    pretended.clear()
    detect_many(found, *arguments, retry_failed=retry)
    assert pretended == again
    assert sorted(line["path"] for line in results_of(tmp_path / "r.jsonl")) == [
        *("bad.mp4", "other-passing-bad.mp4", "passing-bad.mp4", "x.mp4")
    ]


def test_videos_without_a_page_are_scored_again(tmp_path, settings, pretended):
    found = listed("a/x.mp4", "b/x.mp4", "bad.mp4")
    arguments = found, tmp_path, settings, tmp_path / "r.jsonl"
    detect_many(*arguments)
    detect_many(*arguments, tmp_path / "pages")
    assert pretended == ["a/x.mp4", "b/x.mp4", "bad.mp4", "a/x.mp4", "b/x.mp4"]
    (tmp_path / "pages" / "a" / "x.html").unlink()
    detect_many(*arguments, tmp_path / "pages")
    assert pretended[5:] == ["a/x.mp4"]
    other = dataclasses.replace(settings, landmarks="dlib")  # writes its pages over those of the first settings
    detect_many(*arguments[:2], other, tmp_path / "other.jsonl", tmp_path / "pages")
    pretended.clear()
    (tmp_path / "pages" / "bad.html").write_text("<!doctype html>\n")
    detect_many(*arguments, tmp_path / "pages")
    assert pretended == ["a/x.mp4", "b/x.mp4"]
    assert not (tmp_path / "pages" / "bad.html").exists()


def test_a_page_that_cannot_be_made_is_a_remark(tmp_path, settings, pretended, monkeypatch):
    """The video is scored again only if the reason may have passed, or all failures are to be retried."""
    reasons = {"x.mp4": ValueError("odd pixels"), "y.mp4": UserError("y.html: cannot be written: disk full")}

    def fail(page, *_):
        raise reasons[page.with_suffix(".mp4").name]

    monkeypatch.setattr("apps.detect_many._write_pages", fail)
    arguments = tmp_path, settings, tmp_path / "r.jsonl", tmp_path / "pages"
    assert detect_many(listed("x.mp4", "y.mp4"), *arguments) == 0
    verdict = results_of(tmp_path / "r.jsonl")[0]
    assert (verdict["error"], verdict["passing"]) == ("", False)
    assert verdict["no_page"] == "unexpected ValueError: odd pixels"
    assert "has no page: unexpected ValueError: odd pixels" in (tmp_path / "pages" / "index.html").read_text()
    for retry_failed in ("none", "passing", "all"):
        detect_many(listed("x.mp4", "y.mp4"), *arguments, retry_failed=retry_failed)
    assert pretended == ["x.mp4", "y.mp4", "y.mp4", "x.mp4", "y.mp4"]
    assert results_of(tmp_path / "r.jsonl")[-1]["no_page"] == "y.html: cannot be written: disk full"


def test_results_of_other_settings_stay(tmp_path, settings, pretended):
    results = tmp_path / "r.jsonl"
    arguments = listed("x.mp4"), tmp_path, settings, results
    detect_many(*arguments)
    before = results.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(landmarks: dlib-tracked instead of dlib\)"):
        detect_many(*arguments[:2], dataclasses.replace(settings, landmarks="dlib"), results)
    assert results.read_bytes() == before
    for text in ('{"path": "x.mp4"}\n', '{"path": 3, "settings": {}}\n', '{"path"\n', '{"path"}' + "[" * 99_999 + "\n"):
        results.write_text(text)
        with pytest.raises(UserError, match="line 1 is not a verdict"):
            detect_many(*arguments)
        assert results.read_text() == text
    results.write_text("a,b\n")
    with pytest.raises(UserError, match="this command did not write it"):
        detect_many(*arguments)


def test_many_videos_are_compared_with_real_clips(
    tmp_path, settings, narrow_weights, tiny_checkpoint, pretended, capsys
):
    """The comparison is part of the lines and of the settings that they share."""
    digests = {"alignment_sha256": file_sha256(narrow_weights), "weights_sha256": file_sha256(tiny_checkpoint)}
    attributes = {"method": "avh_align", "pooling": "logsumexp", "trimmed": False, **digests}
    scores = {"logsumexp": np.arange(99, dtype=np.float32)}
    path = tmp_path / "reference.json"
    write_reference(Reference(attributes, np.full(99, 25), scores, frame_limit=1.0), path)
    found = listed("x.mp4", "y.mp4")
    compared = dataclasses.replace(settings, reference=path, rates=(0.05,))
    detect_many(found, tmp_path, compared, tmp_path / "r.jsonl")
    assert "it is not the probability" in capsys.readouterr().err
    for line in results_of(tmp_path / "r.jsonl"):
        assert line["reference"]["p_value"] == (1 + sum(scores["logsumexp"] >= np.log(25))) / 100
        assert line["reference"]["flagged"] == {"0.05": False}
    with pytest.raises(UserError, match=r"other settings \(false_alarms: \[0\.05\] instead of \[0\.01\]\)"):
        detect_many(found, tmp_path, dataclasses.replace(compared, rates=(0.01,)), tmp_path / "r.jsonl")
    with pytest.raises(UserError, match=r"other settings \(false_alarms: \[0\.05\] instead of None\)"):
        detect_many(found, tmp_path, settings, tmp_path / "r.jsonl")
    assert detect_many(found, tmp_path, compared, tmp_path / "r.jsonl") == 0
    assert pretended == ["x.mp4", "y.mp4"]


def test_what_is_not_a_folder_of_videos(tmp_path, settings):
    (tmp_path / ".hidden.mp4").touch()
    (tmp_path / "a.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=r"holds no videos \(\.3gp, "):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        detect_many(listed("x.mp4"), tmp_path / "none", settings, tmp_path / "r.jsonl")


PARTS = st.sampled_from(["a", "b.mp4", "index.mp4", "index", "a.mp4", "a.avi", "a.mp4.avi", "ä.html"])


@hypothesis.given(st.lists(st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: PurePath(*parts)), unique=True))
def test_pages_mirror_the_folders_of_their_videos(videos):
    if PurePath("index") in videos:
        with pytest.raises(UserError, match=r"index: its page would replace the index"):
            page_paths(videos)
        return
    folders = {folder for video in videos for folder in video.parents}
    try:
        pages = page_paths(videos)
    except UserError:
        assert any(folder.suffix == ".html" for folder in folders)
        return
    assert not folders & {*pages, PurePath("index.html")}
    assert len({*pages, PurePath("index.html")}) == len(videos) + 1
    for video, page in zip(videos, pages, strict=True):
        assert page.parent == video.parent
        assert page.name in (f"{video.stem}.html", f"{video.name}.html")


def test_a_folder_with_the_name_of_a_page():
    for videos in (["a.mp4", "a.html/y.mp4"], ["index.html/y.mp4"]):
        with pytest.raises(UserError, match=r"html: would be both a page and the folder of others"):
            page_paths([PurePath(video) for video in videos])


def test_the_index_can_be_sorted(tmp_path, browser):
    """By mouse and by keys; failed videos stay last by number, and names are only text."""
    names = {"a10.mp4": 1.5, "a9.mp4": -20.0, "<i>b</i> 'c' \"d\".mp4": 3.0}
    entries = [(Entry(name, own_score=score, seconds=abs(score)), "") for name, score in names.items()]
    page_path = "javascript:alert(1)#?.html"
    write_index(
        tmp_path / "index.html",
        [*entries, (Entry("bad.mp4", error="<b>bad</b>"), ""), (Entry("z.mp4", warning="few faces"), page_path)],
        THUMBNAIL,
    )

    def order(page):
        return page.locator("tbody th").all_inner_texts()

    odd = "<i>b</i> 'c' \"d\".mp4"
    with opened(browser, tmp_path / "index.html", PHONE, "dark") as page:
        assert order(page) == [odd, "a10.mp4", "z.mp4", "a9.mp4", "bad.mp4"]
        assert page.locator("tbody a").get_attribute("href") == "javascript%3Aalert%281%29%23%3F.html"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("tbody b, tbody i").count() == 0
        score = page.get_by_role("columnheader", name="score")
        assert score.get_attribute("aria-sort") == "descending"
        score.get_by_role("button").click()
        assert score.get_attribute("aria-sort") == "ascending"
        assert order(page) == ["a9.mp4", "z.mp4", "a10.mp4", odd, "bad.mp4"]
        page.keyboard.press("Shift+Tab")  # from the button of `score` to that of `video`
        page.keyboard.press("Enter")
        assert order(page) == [odd, "a9.mp4", "a10.mp4", "bad.mp4", "z.mp4"]
        assert [heading.get_attribute("aria-sort") for heading in page.locator("th[aria-sort]").all()] == [
            *("ascending", "none", "none", "none", "none")
        ]


def test_the_index_shows_comparisons_with_real_clips(tmp_path, browser):
    """The most suspicious by their p-value come first; rates compare as numbers, not as text."""
    entries = []
    for name, p_value, flagged in (
        ("a", 0.2, {"0.01": False, "0.05": False}),
        ("b", 0.001, {"0.05": True, "1e-3": True}),
        ("d", 1.0, {"0.01": None, "0.05": None}),
        ("e", None, {"0.01": None, "0.05": None}),
        ("f", 0.2, {"0.01": False, "0.05": True}),
        ("g", 0.3, {"0.01": None, "0.05": False}),
    ):
        reference = {"p_value": p_value, "flagged": flagged, "unscored_seconds": 1.25 * (name in "abf")}
        verdict = dataclasses.asdict(Verdict(name, 1.0, own_score=3.0)) | {"reference": reference, "faces": "one face"}
        entries.append((Entry.of(verdict), ""))
    write_index(tmp_path / "index.html", [*entries, (Entry("c", error="bad"), "")], THUMBNAIL)
    with opened(browser, tmp_path / "index.html") as page:
        rows = [row.split("\t")[1:4] for row in page.locator("tbody tr").all_inner_texts()]
        assert rows == [
            ["b", "0.001", "at 0.1 %"],
            ["a", "0.2", "no, but 1.25 s were not scored"],
            ["f", "0.2", "at 5 %"],
            ["g", "0.3", "no at 5 %, undecided below"],
            ["d", "1", "undecided"],
            ["e", "", "not compared"],
            ["c", "", ""],
        ]
        assert "one face" in page.locator("tbody tr").first.inner_text()
        assert page.get_by_role("columnheader", name="p-value").get_attribute("aria-sort") == "ascending"
        page.get_by_role("button", name="p-value").click()
        assert page.locator("tbody th").all_inner_texts() == ["d", "g", "a", "f", "b", "e", "c"]
        assert "not the probability that the video is fake" in page.content()


def test_the_command_takes_a_list(tmp_path, launch):
    (tmp_path / "c.csv").write_text("path\nb/y.mp4\n./a.mp4\n")
    show = "import apps.detect_many; apps.detect_many.detect_many = lambda clips, *rest: print(*clips, rest, sep='\\n')"
    flags = [f"--clips={tmp_path}/c.csv", "--media=m", "--avhubert=e", "--weights=w", "--results=r", "--pages=p"]
    status, output = launch("detect", *flags, "--retry_failed=all", "--landmarks=dlib", before=show)
    first, second, rest = output.splitlines()
    assert status == 0
    assert "path='b/y.mp4'" in first
    assert "path='a.mp4'" in second
    assert rest.startswith("('m', DetectSettings(avhubert='e', weights='w', landmarks='dlib', faces='', ")
    assert rest.endswith(", 'r', 'p', 'all')")


@pytest.mark.slow
def test_a_killed_command_resumes(tmp_path, videos, narrow_weights, tiny_checkpoint, launch, fork):
    """With real worker processes, killed at moments spread over its run."""
    flags = [f"--avhubert={tiny_checkpoint}", f"--weights={narrow_weights}"]

    def outputs(name: str) -> list[str]:
        return [*flags, f"--results={tmp_path}/{name}.jsonl", f"--pages={tmp_path}/{name}"]

    (tmp_path / "c.csv").write_text("path\na/x.mp4\nb/damaged.mp4\nb/x.mp4\n")
    started = time.monotonic()
    status, output = launch("detect", videos, *outputs("whole"))
    lasted = time.monotonic() - started
    assert status == 2, output
    for kill in range(10):
        command = ["detect", f"--clips={tmp_path}/c.csv", f"--media={videos}", *outputs(str(kill))]
        run = fork.start(*command)
        time.sleep(lasted * (kill + 1) / 11)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert launch(*command)[0] == 2
        assert (tmp_path / f"{kill}.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        for path in sorted((tmp_path / "whole").rglob("*.*")):
            assert (tmp_path / str(kill) / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
