"""Extraction end to end: every clip in a shard or in the failure log, whatever the clip or the machine does."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from extract.avhubert import encode_clips
from extract.clips import Failure
from extract.pipeline import ExtractSettings, extract
from extract.prepare import PrepareSettings, prepare_clip
from extract.schema import ClipMeta, InputError, list_shards, open_shard
from extract.shards import read_failures
from tests.conftest import TESTDATA
from tests.media import ramp, tone, write_media

ROI = PrepareSettings(input="roi")


def settings(prepare=ROI, **options):
    return ExtractSettings(**{"prepare": prepare, "dtype": "float32", "processes": 2} | options)


def failures_of(folder) -> dict[str, str]:
    return {failure.path: failure.reason for failure in read_failures(folder / "failures.jsonl")}


def paths_of(folder) -> list[str]:
    return [clip.path for path in list_shards(folder) for clip in open_shard(path).clips]


def test_shards_hold_the_features_of_the_list(tmp_path, tiny_checkpoint, tiny_encoder):
    names = ["s4", "none", "st48", "trim", "s4"]
    for k, name in enumerate(names[:1] + names[2:]):
        for suffix in ("_roi.mp4", ".wav"):
            shutil.copy(TESTDATA / f"{name}{suffix}", tmp_path / f"c{k}{suffix}")
    clips = [ClipMeta(f"c{k}.mp4", label=k % 2, identity=f"id{k}") for k in range(4)]
    clips.insert(1, ClipMeta("none.mp4"))
    summary = extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(clips_per_shard=2))
    assert (summary["clips"], summary["stored"], summary["failed"], summary["shards"]) == (5, 4, 1, 3)
    assert summary == json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert [len(open_shard(path).clips) for path in list_shards(tmp_path / "out")] == [1, 2, 1]
    assert paths_of(tmp_path / "out") == [f"c{k}.mp4" for k in range(4)]
    assert list(failures_of(tmp_path / "out")) == ["none.mp4"]
    shard = open_shard(tmp_path / "out" / "features-00001.h5")
    for n, clip in enumerate(shard.clips):
        prepared = prepare_clip(ClipMeta(clip.path), tmp_path, ROI)
        wanted = encode_clips(tiny_encoder, [prepared])[0]
        rows = slice(*shard.offset[n : n + 2])
        np.testing.assert_allclose(shard.visual[rows], wanted.visual, rtol=0, atol=1e-5)
        np.testing.assert_allclose(shard.audio[rows], wanted.audio, rtol=0, atol=1e-5)
    assert [(c.label, c.identity) for c in shard.clips] == [(1, "id1"), (0, "id2")]


def test_trimming_reaches_the_shard(tmp_path, tiny_checkpoint):
    clips = [ClipMeta("trim.mp4", segments=((0.1, 2.0),)), ClipMeta("s4.mp4")]
    for trimmed in (False, True):
        prepare = PrepareSettings(input="roi", trimmed=trimmed)
        extract(clips, TESTDATA, tiny_checkpoint, tmp_path / str(trimmed), settings(prepare))
        shard = open_shard(tmp_path / str(trimmed) / "features-00000.h5")
        assert shard.attributes["trimmed"] == trimmed
        assert [clip.trimmed_frames for clip in shard.clips] == [16 * trimmed, 0]
        assert np.diff(shard.offset).tolist() == [100 - 16 * trimmed, 100]
        assert shard.clips[0].leading_silence == pytest.approx(0.613)
        np.testing.assert_allclose(shard.clips[0].segments, [(0, 1.36)] if trimmed else [(0.1, 2.0)], atol=1e-6)


def test_bad_media_is_logged_and_the_run_goes_on(tmp_path, tiny_checkpoint, real_clips):
    noise = list(np.random.default_rng(0).integers(0, 255, (30, 96, 96, 3), dtype=np.uint8))
    shutil.copy(real_clips["testMovie"], tmp_path / "good.mp4")
    whole = real_clips["testMovie"].read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no film\n" * 99)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.mp4").mkdir()
    write_media(tmp_path / "silent.mp4", noise, sound=np.zeros((1, 20000), np.float32))
    write_media(tmp_path / "no_audio.mp4", noise)
    write_media(tmp_path / "no_video.mp4", sound=tone(1))
    write_media(tmp_path / "no_face.mp4", ramp([0] * 30), sound=tone(1.2))
    write_media(tmp_path / "short.mp4", noise[:1], sound=tone(1))
    reasons = {
        "missing.mp4": "no such file",
        "empty.mp4": "cannot be decoded",
        "text.mp4": "cannot be decoded",
        "cut.mp4": "cannot be decoded|cut short",
        "folder.mp4": "no such file",
        "silent.mp4": "silent audio",
        "no_audio.mp4": "no audio stream",
        "no_video.mp4": "no video stream",
        "no_face.mp4": "no face found",
        "short.mp4": "no face found|shorter than 2 frames",
    }
    clips = [ClipMeta(path) for path in [*reasons, "good.mp4"]]
    extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(PrepareSettings(), clips_per_shard=4))
    assert paths_of(tmp_path / "out") == ["good.mp4"]
    found = failures_of(tmp_path / "out")
    assert list(found) == list(reasons)
    for path, reason in reasons.items():
        assert re.search(reason, found[path]), (path, found[path])


def crash(clip, root, prepare):
    """Stands in for prepare_clip: some clips take their process down or hang."""
    if clip.path == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if clip.path == "hang.mp4":
        time.sleep(600)
    if clip.path == "strange.mp4":
        raise ZeroDivisionError("of a library")
    return dataclasses.replace(prepare_clip(ClipMeta("s4.mp4"), root, prepare), meta=clip)


def test_a_crash_or_a_hang_costs_its_clip_alone(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("extract.pipeline.prepare_clip", crash)
    names = ["a.mp4", "crash.mp4", "b.mp4", "hang.mp4", "strange.mp4", "c.mp4"]
    clips = [ClipMeta(name) for name in names]
    extract(clips, TESTDATA, tiny_checkpoint, tmp_path, settings(clip_timeout=15.0))
    assert paths_of(tmp_path) == ["a.mp4", "b.mp4", "c.mp4"]
    found = failures_of(tmp_path)
    assert "crashed" in found["crash.mp4"]
    assert "longer than 15 s" in found["hang.mp4"]
    assert found["strange.mp4"] == "unexpected ZeroDivisionError: of a library"


def test_features_that_are_not_finite_are_a_failure(tmp_path, tiny_checkpoint, monkeypatch):
    def encode(network, clips, multimodal=False):
        features = encode_clips(network, clips)
        return [
            f._replace(audio=f.audio * np.nan) if c.meta.path == "st48.mp4" else f
            for c, f in zip(clips, features, strict=True)
        ]

    monkeypatch.setattr("extract.pipeline.encode_clips", encode)
    extract([ClipMeta("s4.mp4"), ClipMeta("st48.mp4")], TESTDATA, tiny_checkpoint, tmp_path, settings())
    assert paths_of(tmp_path) == ["s4.mp4"]
    assert read_failures(tmp_path / "failures.jsonl") == [
        Failure("st48.mp4", "encode", "its audio features hold NaN or infinity")
    ]


def test_a_batch_too_large_for_memory_is_encoded_clip_by_clip(tmp_path, tiny_checkpoint, monkeypatch):
    def encode(network, clips, multimodal=False):
        if len(clips) > 1 or clips[0].meta.path == "st48.mp4":
            raise RuntimeError("out of memory")
        return encode_clips(network, clips)

    monkeypatch.setattr("extract.pipeline.encode_clips", encode)
    clips = [ClipMeta(name) for name in ("s4.mp4", "st48.mp4", "trim.mp4")]
    extract(clips, TESTDATA, tiny_checkpoint, tmp_path, settings())
    assert paths_of(tmp_path) == ["s4.mp4", "trim.mp4"]
    assert failures_of(tmp_path) == {"st48.mp4": "cannot be encoded: out of memory"}


def test_no_folder_of_media(tmp_path, tiny_checkpoint):
    with pytest.raises(InputError, match="no such folder"):
        extract([ClipMeta("a.mp4")], tmp_path / "none", tiny_checkpoint, tmp_path / "out", settings())


def killed_runs(tmp_path, tiny_checkpoint, kills: int, seed: int) -> None:
    """Extracts 12 clips into 6 shards, killed at random moments; the shards equal those of one unbroken run."""
    rng = random.Random(seed)
    media = tmp_path / "media"
    media.mkdir()
    for k in range(12):
        for suffix in ("_roi.mp4", ".wav"):
            shutil.copy(TESTDATA / f"{('s4', 'st48', 'trim')[k % 3]}{suffix}", media / f"c{k}{suffix}")
    (tmp_path / "clips.csv").write_text("path\n" + "".join(f"c{k}.mp4\n" for k in range(13)))  # one is missing

    def start(output):
        flags = {"clips": tmp_path / "clips.csv", "media": media, "avhubert": tiny_checkpoint, "output": output}
        flags |= {"input": "roi", "clips_per_shard": 2}
        command = [sys.executable, "-m", "launch.extract", *(f"--{k}={v}" for k, v in flags.items())]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "unbroken").wait() == 0
    duration = time.monotonic() - began
    for _ in range(kills):
        process = start(tmp_path / "broken")
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        assert not list((tmp_path / "broken").glob("failures.jsonl")) or process.returncode == 0
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "workers outlive a killed run"
    assert start(tmp_path / "broken").wait() == 0
    one, other = (list_shards(tmp_path / name) for name in ("unbroken", "broken"))
    assert [path.name for path in one] == [path.name for path in other]
    for a, b in zip(map(open_shard, one), map(open_shard, other), strict=True):
        assert repr(a.clips) == repr(b.clips)  # NaN equals nothing
        for name in ("visual", "audio", "offset"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("failures.jsonl",):
        assert (tmp_path / "unbroken" / name).read_text() == (tmp_path / "broken" / name).read_text()
    assert not list((tmp_path / "broken").glob(".*.part"))


def test_a_killed_extraction_goes_on(tmp_path, tiny_checkpoint):
    killed_runs(tmp_path, tiny_checkpoint, kills=2, seed=0)


@pytest.mark.slow
def test_an_extraction_killed_twenty_times_goes_on(tmp_path, tiny_checkpoint):
    killed_runs(tmp_path, tiny_checkpoint, kills=20, seed=1)
