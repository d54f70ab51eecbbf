"""The documentation's examples run as they are printed, page by page, on small material; its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import avh
from apps import simulate as simulation
from apps.simulate import Corpus
from extract.avhubert import AVHubertConfig
from extract.media import read_audio, read_video
from jax_avh.configs import make_config
from tests import rules
from tests.media import write_media

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOT_RUN = r"<!-- not run: [^\n]+ -->\n"
BLOCK = re.compile(rf"(?P<skipped>{NOT_RUN})?```(?P<language>sh|python)\n(?P<text>.*?)```", re.DOTALL)
BEFORE = {  # page -> the page whose commands come first, and are tested with it
    "README.md": "docs/your_data_set.md",
    "docs/evaluation.md": "docs/methods/avh_align.md",
    "docs/methods/avad.md": "docs/methods/avh_align.md",
}
ENCODER = AVHubertConfig(layers=1, width=1024, ffn_width=64, heads=4)  # the official weights of AVH-Align read 1,024
CORPUS = Corpus(4, 2, 12, fakes=True, kinds=("local",), frames=(20, 30), width=16)


def examples(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page that are run."""
    return [(found["language"], found["text"]) for found in BLOCK.finditer(page.read_text()) if not found["skipped"]]


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [
    name for page in PAGES if examples(page) and (name := page.relative_to(ROOT).as_posix()) not in BEFORE.values()
]
SLOW = {f"docs/methods/{name}.md" for name in ("rawnet2", "mds", "avad")}  # trained elsewhere, too


@pytest.fixture(scope="module")
def material(tmp_path_factory, real_clips) -> Path:
    """What the examples start from: some videos with their list, weights, and simulated shards."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "videos").mkdir()
    frames, sound = list(read_video(real_clips["testMovie"])[:10]), read_audio(real_clips["testMovie"])[None, :6400]
    rows = ["path,label,split"]
    for name, rest in {"a": "real,train", "b": "real,val", "c": "real,test", "d": "fake,test"}.items():
        write_media(folder / "videos" / f"{name}.mp4", frames, sound=sound)
        rows.append(f"{name}.mp4,{rest}")
    (folder / "clips.csv").write_text("\n".join(rows))
    write_media(folder / "videos" / "clip.mp4", frames, sound=sound)
    encoder = rules.encoder_checkpoint(False, rules.encoder_settings(ENCODER), config=ENCODER)
    torch.save(encoder, folder / "self_large_vox_433h.pt")
    rules.write_alignment_weights(folder / "avh_align.safetensors")
    weights = {name: torch.from_numpy(array) for name, array in rules.alignment_weights().items()}
    torch.save({"epoch": 0, "state_dict": weights}, folder / "AVH-Align_AV1M.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "CORPORA", {"av_deepfake1m": CORPUS})
        simulation.simulate(folder / "simulated")
    return folder


LINEAR = {"method.head": "linear"}  # compiles in a second


def run(page: Path, launch, monkeypatch) -> None:
    """Runs the examples of a page in the working directory."""
    for language, text in examples(page):
        if language == "python":
            with monkeypatch.context() as patch:
                patch.setattr(avh, "make_config", lambda settings: make_config(LINEAR | settings))
                exec(compile(text, str(page), "exec"), {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            assert words[:2] == ["python", "-m"], f"{page}: {line}"
            if words[2] in ("launch.train", "launch.sweep") and not any("config_file" in word for word in words):
                words += [] if "epochs" in line else ["--config.train.epochs=2"]
                words += [] if "batch_examples" in line else ["--config.data.batch_examples=2"]  # of few clips
                words += [] if "method" in line else [f"--config.{n}={v}" for n, v in LINEAR.items()]
            status, output = launch(words[2].removeprefix("launch."), *words[3:])
            assert status == 0, f"{page}: {line}\n{output}"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_examples_run(name, material, tmp_path, launch, monkeypatch):
    for given in material.iterdir():
        (tmp_path / given.name).symlink_to(given)
    pages = [ROOT / page for page in (BEFORE.get(name), name) if page]
    if not any("--output=shards" in page.read_text() for page in pages):  # pages that make their own
        (tmp_path / "shards").symlink_to(material / "simulated" / "av_deepfake1m" / "untrimmed")
    monkeypatch.chdir(tmp_path)
    for page in pages:
        run(page, launch, monkeypatch)


def test_most_examples_run():
    blocks = [found for page in PAGES for found in BLOCK.finditer(page.read_text())]
    assert sum(not found["skipped"] for found in blocks) > 2 * sum(bool(found["skipped"]) for found in blocks)


@pytest.mark.parametrize("page", [page.name for page in sorted(ROOT.glob("*.md"))])
def test_links_between_files_lead_somewhere(page):
    """Checks the pages outside docs/, whose links `make docs` checks, headings included."""
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", (ROOT / page).read_text()):
        file = ROOT / (target or page)
        assert file.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, heading
