"""The documentation's examples run as they are printed, page by page, on small material; its links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from apps import simulate as simulation
from apps.simulate import Corpus
from extract.media import read_audio, read_video
from tests import rules
from tests.media import write_media

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOT_RUN = r"<!-- not run: [^\n]+ -->\n"
BLOCK = re.compile(rf"(?P<skipped>{NOT_RUN})?```(?P<language>sh|python)\n(?P<text>.*?)```", re.DOTALL)
BEFORE = dict.fromkeys(("methods/avad.md", "evaluation.md"), "methods/avh_align.md")  # whose commands come first
CORPUS = Corpus(4, 2, 12, fakes=True, kinds=("local",), frames=(20, 30), width=16)


def examples(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page that are run."""
    return [(found["language"], found["text"]) for found in BLOCK.finditer(page.read_text()) if not found["skipped"]]


PAGES = [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md")) if examples(page)]
SLOW = {"methods/rawnet2.md", "methods/mds.md", "methods/avad.md"}  # trained elsewhere, too


@pytest.fixture(scope="module")
def material(tmp_path_factory, real_clips, tiny_checkpoint) -> Path:
    """What the examples start from: some videos with their list, weights, and simulated shards."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "videos").mkdir()
    frames, sound = list(read_video(real_clips["testMovie"])[:25]), read_audio(real_clips["testMovie"])[None, :16000]
    rows = ["path,label,split"]
    for name, rest in {"a": "real,train", "b": "real,val", "c": "real,test", "d": "fake,test"}.items():
        write_media(folder / "videos" / f"{name}.mp4", frames, sound=sound)
        rows.append(f"{name}.mp4,{rest}")
    (folder / "clips.csv").write_text("\n".join(rows))
    write_media(folder / "videos" / "clip.mp4", frames, sound=sound)
    shutil.copy(tiny_checkpoint, folder / "avhubert.pt")
    rules.write_alignment_weights(folder / "avh_align.safetensors", width=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "CORPORA", {"av_deepfake1m": CORPUS})
        simulation.simulate(folder / "simulated")
    return folder


def run(page: Path, launch) -> None:
    """Runs the examples of a page in the working directory."""
    for language, text in examples(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            assert words[:2] == ["python", "-m"], f"{page}: {line}"
            status, output = launch(words[2].removeprefix("launch."), *words[3:])
            assert status == 0, f"{page}: {line}\n{output}"


@pytest.mark.parametrize("name", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES])
def test_examples_run(name, material, tmp_path, launch, monkeypatch):
    for given in material.iterdir():
        (tmp_path / given.name).symlink_to(given)
    if "--output=shards" not in (DOCS / name).read_text():  # pages that make their own
        (tmp_path / "shards").symlink_to(material / "simulated" / "av_deepfake1m" / "untrimmed")
    monkeypatch.chdir(tmp_path)
    if name in BEFORE:
        run(DOCS / BEFORE[name], launch)
    run(DOCS / name, launch)


def test_most_examples_run():
    blocks = [found for page in DOCS.rglob("*.md") for found in BLOCK.finditer(page.read_text())]
    assert sum(not found["skipped"] for found in blocks) > 2 * sum(bool(found["skipped"]) for found in blocks)
