"""Extraction end to end: every clip is in a shard or the failure log, whatever the clip or machine does."""

import dataclasses
import errno
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time

import av
import cv2
import numpy as np
import psutil
import pytest
import torch

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.errors import ClipError, Failure
from avh_shards.format import Variant, list_shards
from avh_shards.paths import as_path
from extract.avhubert.encoder import Encoder, EncodeSettings, start_encoding
from extract.check.contact_sheet import CAPTION, draw_clip
from extract.prepare import PreparedClip, PrepareSettings, prepare_clip
from extract.run.job import ExtractSettings, Job, encode_shard, merge_sets
from extract.run.job import extract as extract_job
from extract.run.pool import Prepared, PrepareTask, attempt
from extract.store.shard import ShardWriter, failure_log, read_failures, write_failures
from tests.conftest import ROOT, TESTDATA
from tests.extract.run.crashing import CrashingTask
from tests.media import ramp, tone, write_media
from tests.sets import assert_same_set, make_media, start_extract

ROI = PrepareSettings(input="roi")


def extract(clips, media, avhubert, output, settings):
    """Runs a job on this machine and returns the summary of its only set."""
    (summary,) = extract_job(Job(clips, str(media), str(output), settings), avhubert)
    return summary


def settings(prepare=ROI, **options):
    return ExtractSettings(**{"prepare": prepare, "dtype": "float32", "processes": 2} | options)


def give(source, folder, *names):
    """Copies s4 under these names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        for suffix in ("_roi.mp4", ".wav"):
            shutil.copy(source / f"s4{suffix}", folder / f"{name}{suffix}")


def failures_of(folder) -> dict[str, str]:
    return {failure.path: failure.reason for failure in read_failures(folder / "failures.jsonl")}


def paths_of(folder) -> list[str]:
    return [clip.path for path in list_shards(folder) for clip in open_shard(path).clips]


def test_shards_hold_the_features_of_the_list(tmp_path, tiny_checkpoint, tiny_encoder, short_clips):
    names = ["s4", "none", "st48", "trim", "s4"]
    for k, name in enumerate(names[:1] + names[2:]):
        for suffix in ("_roi.mp4", ".wav"):
            shutil.copy(short_clips / f"{name}{suffix}", tmp_path / f"c{k}{suffix}")
    clips = [ClipMeta(f"c{k}.mp4", label=k % 2, identity=f"id{k}") for k in range(4)]
    clips.insert(1, ClipMeta("none.mp4"))
    summary = extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(clips_per_shard=2))
    assert (summary.clips, summary.stored, summary.failed, summary.shards) == (5, 4, 1, 3)
    assert dataclasses.asdict(summary) == json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert [len(open_shard(path).clips) for path in list_shards(tmp_path / "out")] == [1, 2, 1]
    assert paths_of(tmp_path / "out") == [f"c{k}.mp4" for k in range(4)]
    assert list(failures_of(tmp_path / "out")) == ["none.mp4"]
    shard = open_shard(tmp_path / "out" / "features-00001.h5")
    for n, clip in enumerate(shard.clips):
        prepared = prepare_clip(ClipMeta(clip.path), tmp_path, ROI)
        wanted = start_encoding(tiny_encoder, [prepared])()[0]
        rows = slice(*shard.offset[n : n + 2])
        np.testing.assert_allclose(shard.visual[rows], wanted.visual, rtol=0, atol=1e-5)
        np.testing.assert_allclose(shard.audio[rows], wanted.audio, rtol=0, atol=1e-5)
    assert [(c.label, c.identity) for c in shard.clips] == [(1, "id1"), (0, "id2")]


def test_trimming_reaches_the_shard(tmp_path, tiny_checkpoint, short_clips):
    clips = [ClipMeta("trim.mp4", segments=((0.1, 0.9),)), ClipMeta("s4.mp4")]
    for trimmed in (False, True):
        options = settings(trimmed=str(trimmed).lower())
        extract(clips, short_clips, tiny_checkpoint, tmp_path / str(trimmed), options)
        shard = open_shard(tmp_path / str(trimmed) / "features-00000.h5")
        assert shard.attributes["trimmed"] == trimmed
        assert [clip.trimmed_frames for clip in shard.clips] == [16 * trimmed, 0]
        assert np.diff(shard.offset).tolist() == [25 - 16 * trimmed, 25]
        assert shard.clips[0].leading_silence == pytest.approx(0.613)
        np.testing.assert_allclose(shard.clips[0].segments, [(0, 0.26)] if trimmed else [(0.1, 0.9)], atol=1e-6)


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


def strange(clip, root, prepare):
    """Replaces read_clip."""
    raise ZeroDivisionError("of a\nlibrary")


def test_a_crash_or_a_hang_costs_its_clip_alone(tmp_path, tiny_checkpoint, short_clips, monkeypatch):
    names = ["a.mp4", "crash.mp4", "b.mp4", "hang.mp4", "c.mp4"]
    give(short_clips, tmp_path, "a", "b", "c")
    monkeypatch.setattr(Job, "task", property(lambda job: CrashingTask(job.media, ROI, (Variant.UNTRIMMED,), 6.0)))
    extract([ClipMeta(name) for name in names], tmp_path, tiny_checkpoint, tmp_path / "out", settings())
    assert paths_of(tmp_path / "out") == ["a.mp4", "b.mp4", "c.mp4"]
    found = failures_of(tmp_path / "out")
    assert "crashed (exit status -11)" in found["crash.mp4"]
    assert "longer than 6 s" in found["hang.mp4"]


@pytest.mark.parametrize(("kind", "loaded"), [("media", 1), ("roi", 0)])
def test_workers_find_the_models_loaded_if_they_need_them_and_no_torch(kind, loaded):
    script = f"""
import sys, launch.extract
sys.modules["__main__"].__spec__ = launch.extract.__spec__  # as in python -m launch.extract
from extract.run.pool import PrepareSettings, PrepareTask, open_pool
with open_pool(PrepareTask("", PrepareSettings(input="{kind}"), ()), 1) as pool:
    modules = "__import__('sys').modules"
    models = modules + "['extract.face.landmarks'].predictor.cache_info().currsize"
    print(*(pool.schedule(eval, [text]).result() for text in (models, "'torch' in " + modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (f"{loaded} False\n", "")


def test_whatever_a_library_raises_is_the_clips_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("extract.run.pool.read_clip", strange)
    task = PrepareTask(str(tmp_path), ROI, tuple(Variant))
    failure = Failure("a.mp4", "prepare", "unexpected ZeroDivisionError: of a library", passing=False)
    assert task(ClipMeta("a.mp4")).outcomes == dict.fromkeys(Variant, failure)


def encode_or(monkeypatch, change):
    """Calls `change` before the encoder, with (network, clips, multimodal, piece)."""
    monkeypatch.setattr("extract.avhubert.encoder.start_encoding", change)


def test_features_that_are_not_finite_are_a_failure(tmp_path, tiny_checkpoint, short_clips, monkeypatch):
    def encode(network, clips, *options):
        features = start_encoding(network, clips, *options)()
        return lambda: [
            f._replace(audio=f.audio * np.nan) if c.meta.path == "st48.mp4" else f
            for c, f in zip(clips, features, strict=True)
        ]

    encode_or(monkeypatch, encode)
    extract([ClipMeta("s4.mp4"), ClipMeta("st48.mp4")], short_clips, tiny_checkpoint, tmp_path, settings())
    assert paths_of(tmp_path) == ["s4.mp4"]
    assert read_failures(tmp_path / "failures.jsonl") == [
        Failure("st48.mp4", "encode", "its audio features hold NaN or infinity")
    ]


def test_a_batch_too_large_for_memory_is_halved(tmp_path, tiny_checkpoint, short_clips, monkeypatch):
    sizes = []

    def encode(network, clips, *options):
        sizes.append(len(clips))
        if len(clips) > 1 or clips[0].meta.path == "st48.mp4":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return start_encoding(network, clips, *options)

    encode_or(monkeypatch, encode)
    clips = [ClipMeta(name) for name in ("s4.mp4", "st48.mp4", "trim.mp4")]
    extract(clips, short_clips, tiny_checkpoint, tmp_path, settings())
    assert sizes == [3, 1, 2, 1, 1]
    assert paths_of(tmp_path) == ["s4.mp4", "trim.mp4"]
    assert "cannot be encoded: [enforce fail]" in failures_of(tmp_path)["st48.mp4"]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_clip_too_large_for_memory_goes_through_in_pieces(tmp_path, tiny_checkpoint, monkeypatch, error):
    """A clip of 120 frames where 80 fit is halved once, and the shard records it."""
    monkeypatch.setattr("extract.avhubert.encoder.CONTEXT", 50)

    def encode(network, clips, multimodal, piece):
        if (piece or len(clips[0].audio)) > 80:
            raise error
        return start_encoding(network, clips, multimodal, piece)

    rng = np.random.default_rng(0)
    crops, audio = rng.integers(0, 256, (120, 96, 96), dtype=np.uint8), rng.standard_normal((120, 104), np.float32)
    clip = PreparedClip(ClipMeta("long.mp4"), crops, audio, np.zeros(1, np.int16))
    encoder = Encoder(tiny_checkpoint)
    ((_, wanted),) = encoder.encode([clip])
    encode_or(monkeypatch, encode)
    writer = ShardWriter(tmp_path, "float32", encoder.attributes)
    encode_shard(0, [clip.meta], [Prepared({Variant.UNTRIMMED: [clip]}, {})], encoder, {Variant.UNTRIMMED: writer})()
    shard = open_shard(tmp_path / "features-00000.h5")
    assert json.loads(shard.attributes["pieces"]) == {"long.mp4": 60}
    cosine = (shard.visual * wanted.visual).sum(1) / np.prod(
        [np.linalg.norm(x, axis=1) for x in (shard.visual, wanted.visual)], axis=0
    )
    assert 0.97 < cosine.min() < 0.9999999  # the error due to the pieces


def test_both_forms_are_made_from_one_preparation(tmp_path, tiny_checkpoint, short_clips):
    """Each of the two sets equals the set of a separate run."""
    clips = [ClipMeta(f"{name}.mp4", segments=((0.1, 2.0),)) for name in ("trim", "none", "s4")]
    options = {"store": ("crops", "multimodal", "waveform")}
    job = Job(clips, str(short_clips), str(tmp_path / "both"), settings(trimmed="both", **options))
    summaries = extract_job(job, tiny_checkpoint)
    assert [(s.stored, s.failed, s.frames) for s in summaries] == [(2, 1, 50), (2, 1, 34)]
    for form, folder in (("false", "untrimmed"), ("true", "trimmed")):
        extract(clips, short_clips, tiny_checkpoint, tmp_path / form, settings(trimmed=form, **options))
        one, two = (open_shard(path / "features-00000.h5") for path in (tmp_path / form, tmp_path / "both" / folder))
        assert repr(one.clips) == repr(two.clips)  # NaN is not equal to itself
        for name in ("visual", "audio", "multimodal"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=0, atol=1e-5)
        for name in ("waveform", "crops"):
            np.testing.assert_array_equal(getattr(one, name).value, getattr(two, name).value)


def test_tasks_of_an_array_make_the_shards_of_one_run(tmp_path, tiny_checkpoint, short_clips):
    give(short_clips, tmp_path, *(f"c{k}" for k in range(5)))
    clips = [ClipMeta(f"c{k}.mp4") for k in range(6)]  # the last is missing
    job = Job(clips, str(tmp_path), str(tmp_path / "array"), settings(clips_per_shard=2))
    assert extract_job(job, tiny_checkpoint, 1, 2) == [None]
    assert [path.name for path in list_shards(job.output)] == ["features-00001.h5"]
    with pytest.raises(UserError, match="shards are missing"):
        merge_sets(job.output)
    (merged,) = extract_job(job, tiny_checkpoint, 0, 2)  # the last task writes the summary
    assert (merged.stored, merged.failed) == (5, 1)
    assert merge_sets(job.output) == [merged]
    extract(clips, tmp_path, tiny_checkpoint, tmp_path / "one", settings(clips_per_shard=2))
    assert_same_set(tmp_path / "one", tmp_path / "array")


def raised_from(cause: BaseException) -> ClipError:
    error = ClipError("video", "cannot be decoded")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (MemoryError(), True),
        (cv2.error("Insufficient memory"), False),  # OpenCV's own errors have a code, see below
        (ClipError("media", "no such file: a.mp4", passing=True), True),
        (ClipError("landmarks", "no face found"), False),
        (raised_from(av.error.InvalidDataError(1094995529, "Invalid data")), False),
        (raised_from(av.error.PermissionError(errno.EACCES, "Permission denied")), True),
        (raised_from(av.error.PermissionError(errno.EPERM, "Operation not permitted")), False),
        (raised_from(MemoryError()), True),
        (OSError(errno.EINVAL, "Invalid argument"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_a_failure_of_the_machine_is_a_passing_one(error, passing):
    def work(clip):
        raise error

    assert attempt("a.mp4", work, ClipMeta("a.mp4")).passing is passing


def test_memory_that_opencv_lacks_is_a_passing_failure():
    def work(clip):
        error = cv2.error("Insufficient memory")
        error.code = cv2.Error.StsNoMem
        raise error

    assert attempt("a.mp4", work, ClipMeta("a.mp4")).passing


def test_a_restart_tries_clips_again_that_failed_for_passing_reasons(tmp_path, tiny_checkpoint, short_clips):
    """Tests both variants, and the repair of a run killed between a failure log and its shard."""
    clips = [ClipMeta(f"{name}.mp4") for name in "abc"]
    give(short_clips, tmp_path / "media", "a", "c")
    job = Job(clips, str(tmp_path / "media"), str(tmp_path / "out"), settings(trimmed="both", clips_per_shard=2))
    assert [(s.stored, s.passing) for s in extract_job(job, tiny_checkpoint)] == [(2, 1)] * 2
    give(short_clips, tmp_path / "media", "b")
    write_failures(failure_log(tmp_path / "out" / "trimmed" / "features-00000.h5"), [])
    with pytest.raises(UserError, match="shards are missing"):
        merge_sets(job.output)
    assert [s.stored for s in extract_job(job, tiny_checkpoint)] == [3, 3]
    extract_job(dataclasses.replace(job, output=str(tmp_path / "whole")), tiny_checkpoint)
    for form in ("trimmed", "untrimmed"):
        assert_same_set(tmp_path / "whole" / form, tmp_path / "out" / form)


def test_a_run_in_which_no_clip_succeeded_is_told(tmp_path, tiny_checkpoint, launch):
    (tmp_path / "media").mkdir()
    (tmp_path / "c.csv").write_text("path\na.mp4\nb.mp4\n")
    flags = {"clips": tmp_path / "c.csv", "output": tmp_path / "out", "clips_per_shard": 1}
    flags |= {"media": tmp_path / "media", "avhubert": tiny_checkpoint}
    for extra in ([], ["--merge"]):
        status, output = launch("extract", *(f"--{name}={value}" for name, value in flags.items()), *extra)
        assert status == 1
        assert "\n0 of 2 clips succeeded\n" in output
        assert "2 of them may be transient" in output


def test_shards_at_a_url_are_those_of_a_folder(tmp_path, tiny_checkpoint, short_clips):
    clips = [ClipMeta("s4.mp4"), ClipMeta("none.mp4"), ClipMeta("st48.mp4")]
    options = settings(clips_per_shard=2)
    extract(clips, short_clips, tiny_checkpoint, "memory://bucket/set", options)
    as_path("memory://bucket/set/features-00001.h5").unlink()
    summary = extract(clips, short_clips, tiny_checkpoint, "memory://bucket/set", options)
    assert (summary.stored, summary.failed) == (2, 1)
    as_path("memory://bucket/set").fs.get("/bucket/set/", str(tmp_path / "copy"), recursive=True)
    extract(clips, short_clips, tiny_checkpoint, tmp_path / "local", options)
    assert_same_set(tmp_path / "local", tmp_path / "copy")


def test_sets_from_before_faces_were_counted_are_resumed(tmp_path, tiny_checkpoint):
    """Where no clip can fail because of few faces, the shards' settings are unchanged."""
    for output, prepare in {"roi": ROI, "any": PrepareSettings(min_face_share=0.0)}.items():
        extract([ClipMeta("s4.mp4")], TESTDATA, tiny_checkpoint, tmp_path / output, settings(prepare))
        recorded = json.loads(open_shard(tmp_path / output / "features-00000.h5").attributes["settings"])
        assert "min_face_share" not in recorded
    with pytest.raises(UserError, match="min_face_share"):
        extract([ClipMeta("s4.mp4")], TESTDATA, tiny_checkpoint, tmp_path / "any", settings(PrepareSettings()))


def test_a_contact_sheet_draws_mouths_points_and_reasons():
    rng = np.random.default_rng(0)
    points = np.tile(rng.uniform(20, 70, (68, 2)).astype(np.float32), (30, 1, 1))
    crops = np.full((30, 96, 96), 100, np.uint8)
    clip = PreparedClip(ClipMeta("a.mp4"), crops, np.zeros((30, 104), np.float32), np.zeros(1, np.int16), points=points)
    row = draw_clip(clip.meta, Prepared({Variant.UNTRIMMED: [clip]}, {}))
    assert row.shape == (CAPTION + 2 * 96, 8 * 2 * 96, 3)
    for x, y in (2 * points[0][[33, *range(48, 68)]]).round().astype(int):
        assert np.ptp(row[CAPTION + y, x].astype(int)) > 50, "a coloured point in the grey crop"
    reason = draw_clip(clip.meta, Prepared({Variant.UNTRIMMED: Failure("a.mp4", "landmarks", "no face found")}, {}))
    assert reason.shape == (CAPTION, 8 * 2 * 96, 3)
    assert reason.std() > 10


def test_no_folder_of_media(tmp_path, tiny_checkpoint):
    with pytest.raises(UserError, match="no such folder"):
        extract([ClipMeta("a.mp4")], tmp_path / "none", tiny_checkpoint, tmp_path / "out", settings())


def test_a_shard_is_written_while_the_next_is_encoded(tmp_path, tiny_checkpoint, short_clips, monkeypatch):
    """The first write waits for the second shard, which is not written, nor the third encoded, before it ends."""
    give(short_clips, tmp_path, *"abc")
    events = []
    second = threading.Event()

    def encode(network, clips, *options):
        events.append(f"encode {clips[0].meta.path}")
        if clips[0].meta.path == "b.mp4":
            second.set()
        return start_encoding(network, clips, *options)

    def write(writer, shard, listed, *rest):
        events.append(f"write {listed[0].path}")
        assert second.wait(60)
        written(writer, shard, listed, *rest)
        events.append(f"wrote {listed[0].path}")

    written = ShardWriter.write
    encode_or(monkeypatch, encode)
    monkeypatch.setattr(ShardWriter, "write", write)
    clips = [ClipMeta(f"{name}.mp4") for name in "abc"]
    summary = extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(clips_per_shard=1))
    assert summary.stored == 3
    assert events.index("encode b.mp4") < events.index("wrote a.mp4")
    assert events.index("wrote a.mp4") < min(events.index("write b.mp4"), events.index("encode c.mp4"))


def test_a_shard_that_cannot_be_written_ends_the_run_within_the_next(
    tmp_path, tiny_checkpoint, short_clips, monkeypatch
):
    names = [f"c{k}" for k in range(12)]
    give(short_clips, tmp_path, *names)
    failed = threading.Event()
    encoded = []

    def encode(network, clips, *options):
        encoded.extend(clip.meta.path for clip in clips)
        assert len(encoded) <= 6 or failed.wait(60)
        return start_encoding(network, clips, *options)

    def write(writer, shard, *rest):
        failed.set()
        raise UserError("out: cannot be written: no space left on device")

    encode_or(monkeypatch, encode)
    monkeypatch.setattr(ShardWriter, "write", write)
    options = settings(encode=EncodeSettings(batch_frames=1), clips_per_shard=6)
    with pytest.raises(UserError, match="out: cannot be written: no space left"):
        extract([ClipMeta(f"{name}.mp4") for name in names], tmp_path, tiny_checkpoint, tmp_path / "out", options)
    assert 6 <= len(encoded) < 12


def test_a_run_that_fails_while_a_shard_is_written_leaves_it_whole(tmp_path, tiny_checkpoint, short_clips, monkeypatch):
    give(short_clips, tmp_path, "a", "b")
    clips = [ClipMeta("a.mp4"), ClipMeta("b.mp4")]
    failing = threading.Event()

    def encode(network, batch, *options):
        if batch[0].meta.path == "b.mp4":
            failing.set()
            raise RuntimeError("device lost")
        return start_encoding(network, batch, *options)

    def write(*arguments):
        assert failing.wait(60)
        written(*arguments)

    written = ShardWriter.write
    with monkeypatch.context() as patch:
        encode_or(patch, encode)
        patch.setattr(ShardWriter, "write", write)
        with pytest.raises(UserError, match="the encoder failed: device lost"):
            extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(clips_per_shard=1))
    assert paths_of(tmp_path / "out") == ["a.mp4"]
    assert extract(clips, tmp_path, tiny_checkpoint, tmp_path / "out", settings(clips_per_shard=1)).stored == 2


def killed_runs(tmp_path, tiny_checkpoint, source, clips: int, kills: int, seed: int) -> None:
    """Kills an extraction with two clips per shard at random; the shards equal those of an uninterrupted run."""
    rng = random.Random(seed)
    media = tmp_path / "media"
    make_media(media, clips, source)

    def start(output):
        return start_extract(media, tiny_checkpoint, output)

    began = time.monotonic()
    assert start(tmp_path / "unbroken").wait() == 0
    duration = time.monotonic() - began
    for _ in range(kills):
        process = start(tmp_path / "broken")
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        whole = len(list((tmp_path / "broken").glob("features-*.h5"))) == clips // 2 + 1
        assert whole or not (tmp_path / "broken" / "failures.jsonl").exists()  # written only once complete
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "workers outlive a killed run"
    assert start(tmp_path / "broken").wait() == 0
    assert_same_set(tmp_path / "unbroken", tmp_path / "broken")


def test_a_killed_extraction_goes_on(tmp_path, tiny_checkpoint, short_clips):
    killed_runs(tmp_path, tiny_checkpoint, short_clips, clips=6, kills=2, seed=0)


@pytest.mark.slow
def test_an_extraction_killed_twenty_times_goes_on(tmp_path, tiny_checkpoint):
    killed_runs(tmp_path, tiny_checkpoint, TESTDATA, clips=12, kills=20, seed=1)


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({}, "uses 1 of 8 GPUs; to use all, start it with torchrun --nproc_per_node=8 -m launch.extract ...\n"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, ""),
    ],
)
def test_gpus_that_stay_idle_are_reported(tmp_path, tiny_checkpoint, monkeypatch, capsys, environment, printed):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    extract([ClipMeta("none.mp4")], tmp_path, tiny_checkpoint, tmp_path / "out", settings())
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert "".join(line for line in lines if "GPU" in line) == printed


def test_processes_that_share_a_machine_share_its_cores(monkeypatch):
    cores = ExtractSettings().processes
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert ExtractSettings().processes == 1
    assert ExtractSettings(processes=3).processes == 3
