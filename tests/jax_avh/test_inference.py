"""Detectors and score files: the same scores for a single clip, and for any processes, devices and tasks."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from avh_shards import ClipMeta, UserError
from jax_avh.data.source import source_of_clip
from jax_avh.inference import Detector, load_detector, make_job, score_shards
from jax_avh.models import AlignmentNetwork
from jax_avh.models.weights import save_weights
from jax_avh.parallel import compile_on_own_parts
from jax_avh.scores import open_scores
from tests import rules
from tests.jax_avh.data.test_batches import make_source
from tests.jax_avh.methods.test_methods import write_shard
from tests.runs import finish, start_processes

# Frames of clips in shards of three: of 5,105, 4,541 and 7; a step takes 2,048 frames on each device.
LENGTHS = [3000, 5, 2100, 40, 1, 4500, 7]
SLOW = pytest.mark.slow


def test_a_lone_clip_has_the_scores_that_it_has_in_shards(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=8)
    rng = np.random.default_rng(0)
    clips = [(f"{n}.mp4", 0, *rng.standard_normal((2, n, 8)).astype(np.float32)) for n in (3, 50, 1)]
    table = score_shards(write_shard(tmp_path / "s", clips), tmp_path / "s.h5", weights=weights)
    detector = load_detector(weights)
    for n, (_, _, visual, audio) in enumerate(clips):
        frame, clip = detector.score(source_of_clip(table.clips[n], visual, audio))
        np.testing.assert_allclose(frame, table.frame[slice(*table.offset[n : n + 2])], atol=1e-6)
        np.testing.assert_allclose(clip, table.clip[n : n + 1], atol=1e-6)


def test_detectors_of_one_kind_share_their_programs(tmp_path):
    rng = np.random.default_rng(0)
    shards = write_shard(tmp_path / "s", [("a.mp4", 0, *rng.standard_normal((2, 5, 8)).astype(np.float32))])
    programs = []
    for name in ("one", "two"):
        weights = tmp_path / f"{name}.safetensors"
        save_weights(AlignmentNetwork(8, rngs=nnx.Rngs(len(programs))), weights, {"method": "avh_align"})
        score_shards(shards, tmp_path / "scores.h5", weights=weights)
        programs.append(compile_on_own_parts.cache_info().currsize)
    assert programs[0] == programs[1] > 0


def test_clips_of_any_length_share_their_programs(tmp_path):
    detector = load_detector(rules.write_alignment_weights(tmp_path / "w.safetensors", width=9))
    programs = []

    def count(event, *_, **__):
        programs[-1] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for frames in (2, 3, 40, 5000, 9000):
            visual, audio = np.random.default_rng(frames).standard_normal((2, frames, 9)).astype(np.float32)
            programs.append(0)
            detector.score(source_of_clip(ClipMeta("x.mp4"), visual, audio))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert programs[0] > 0
    assert programs[3] == 1  # with more frames per step
    assert programs[1:3] + programs[4:] == [0, 0, 0]


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Returns the flags that score some shards, and the score file that one process makes of them on one device."""
    folder = tmp_path_factory.mktemp("scored")
    source = make_source(folder / "shards", LENGTHS)
    weights = rules.write_alignment_weights(folder / "w.safetensors", width=source.width)
    flags = [f"--features={source.path}", f"--weights={weights}"]
    finish(start_processes("score", flags, [f"--output={folder}/one.h5"], folder / "one"), folder / "one")
    assert not list(folder.glob("*.pieces"))
    return flags, (folder / "one.h5").read_bytes()


def job_of(scored, output):
    features, weights = (flag.partition("=")[2] for flag in scored[0])
    return make_job(features, output, weights=weights)


def pieces_of(output: Path) -> list[str]:
    return sorted(path.name for path in output.with_name(f"{output.name}.pieces").glob("*.h5"))


@pytest.mark.parametrize(
    ("processes", "devices"),
    [(1, 3), (2, 1), pytest.param(3, 2, marks=SLOW), pytest.param(2, 4, marks=SLOW), pytest.param(5, 1, marks=SLOW)],
)
def test_any_processes_and_devices_write_one_file(tmp_path, scored, processes, devices):
    flags, wanted = scored
    output = tmp_path / "s.h5"
    finish(start_processes("score", flags, [f"--output={output}"] * processes, output, devices), output)
    assert output.read_bytes() == wanted
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".log"] == ["s.h5"]
    assert ["clips" in Path(f"{output}.{k}.log").read_text() for k in range(processes)] == [True] + [False] * (
        processes - 1
    )


def test_a_job_array_writes_the_same_file(tmp_path, scored, launch):
    flags, wanted = scored
    output = tmp_path / "s.h5"
    job = job_of(scored, output)
    for index in (2, 0):
        job.score(index, 3)
    missing = r"s.h5.pieces: 1 of 3 shards are not scored yet, the first is .*features-00001.h5; run the remaining"
    with pytest.raises(UserError, match=missing):
        job.merge()
    assert not output.exists()
    array = {"SLURM_ARRAY_TASK_ID": "1"}
    status, said = launch("score", *flags, f"--output={output}", "--task_count=3", environment=array)
    assert status == 0
    assert "s.h5: task 1 of 3 has ended; after all tasks, give --merge" in said
    status, said = launch("score", *flags, f"--output={output}", "--merge")
    assert status == 0
    assert "s.h5: avh_align, 7 clips, 9653 frames" in said
    assert output.read_bytes() == wanted
    assert list(tmp_path.iterdir()) == [output]


def test_a_stopped_job_continues_with_what_is_missing(tmp_path, scored, monkeypatch):
    output = tmp_path / "s.h5"
    score = Detector.score
    seen = []

    def stopped_at_the_second(detector, source):
        seen.append(source.shards[0].path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return score(detector, source)

    monkeypatch.setattr(Detector, "score", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        job_of(scored, output).run()
    assert pieces_of(output) == ["scores-00000.h5"]
    assert len(open_scores(tmp_path / "s.h5.pieces" / "scores-00000.h5").clips) == 3
    job_of(scored, output).run()
    assert seen == ["features-00000.h5", "features-00001.h5", "features-00001.h5", "features-00002.h5"]
    assert len(open_scores(output).clips) == len(LENGTHS)
    assert list(tmp_path.iterdir()) == [output]


def test_pieces_of_other_weights_are_not_used(tmp_path, scored):
    output = tmp_path / "s.h5"
    job = job_of(scored, output)
    save_weights(AlignmentNetwork(4, rngs=nnx.Rngs(1)), tmp_path / "w.safetensors", {"method": "avh_align"})
    other = make_job(job.source.path, output, weights=tmp_path / "w.safetensors")
    for index in range(2):
        other.score(index, 2)
    with pytest.raises(UserError, match=r"scores-00000.h5: is not of these features and weights; run its task again"):
        job.merge()
    assert not output.exists()
    job.run()
    assert open_scores(output).attributes["alignment_sha256"] == job.attributes["alignment_sha256"]


def test_pieces_at_a_url(tmp_path):
    source = make_source(tmp_path / "s", [5, 9, 3, 4, 8])
    job = make_job(source.path, "memory://bucket/scored/s.h5", "clip_length")
    job.score(1, 2)
    with pytest.raises(UserError, match=r"memory://bucket/scored/s.h5.pieces: 1 of 2 shards are not scored yet"):
        job.merge()
    job.score(0, 2)
    job.merge()
    assert open_scores(job.output).clip == pytest.approx([0.2, 0.36, 0.12, 0.16, 0.32])
    assert [path.name for path in job.output.parent.glob("**/*.h5")] == ["s.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_killed_and_restarted_end_with_the_same_file(tmp_path, scored, processes):
    """Kills the last process once a first piece exists, then the others, as a scheduler does."""
    flags, wanted = scored
    output = tmp_path / "s.h5"
    started = start_processes("score", flags, [f"--output={output}"] * processes, output)
    while not pieces_of(output):
        assert started[-1].poll() is None
        time.sleep(0.01)
    for process in reversed(started):
        process.kill()
    assert [process.wait() for process in started] == [-signal.SIGKILL] * processes
    assert not output.exists()
    finish(start_processes("score", flags, [f"--output={output}"] * processes, output), output)
    assert output.read_bytes() == wanted


def test_a_share_that_fails_ends_all_processes_with_one_sentence_each(tmp_path, scored):
    """Damages a shard of the second process after the shards were opened: its features are not finite."""
    source = make_source(tmp_path / "shards", [9] * 6)
    table = source.shards[1]
    with table.path.open("r+b") as file:
        file.seek(table.features["visual"].start)
        file.write(np.array([np.nan], np.float32).tobytes())
    flags = [f"--features={source.path}", scored[0][1]]
    started = start_processes("score", flags, [f"--output={tmp_path}/s.h5"] * 2, tmp_path / "s")
    assert [process.wait(timeout=60) for process in started] == [2, 2]
    said = [(tmp_path / f"s.{k}.log").read_text() for k in range(2)]
    assert f"--output={tmp_path}/s.h5: process 1 failed; see the message there" in said[0]
    assert "features-00001.h5: the features of 'c3.mp4' hold NaN or infinity" in said[1]
    assert all(text.count("error:") == 1 and "Traceback" not in text for text in said)
    assert not (tmp_path / "s.h5").exists()


def test_a_score_file_that_not_all_processes_see_is_refused(tmp_path, scored):
    outputs = [tmp_path / name / "s.h5" for name in ("a", "b")]
    outputs[1].parent.mkdir()
    started = start_processes("score", scored[0], [f"--output={output}" for output in outputs], tmp_path / "s")
    assert [process.wait(timeout=60) for process in started] == [2, 2]
    for number, output in enumerate(outputs):
        said = (tmp_path / f"s.{number}.log").read_text()
        assert f"--output={output}: process 1 does not see what process 0 writes there; give a folder" in said
        assert "Traceback" not in said
    assert not list(tmp_path.glob("*/*"))


def test_scores_record_which_faces_were_extracted(tmp_path):
    for faces in ("speaker", ""):
        source = make_source(tmp_path / f"s{faces}", [5, 9], settings=json.dumps({"faces": faces} if faces else {}))
        score_shards(source.path, tmp_path / f"{faces}.h5", method="factor")
        assert open_scores(tmp_path / f"{faces}.h5").attributes.get("faces", "") == faces
