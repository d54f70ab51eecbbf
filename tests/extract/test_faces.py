"""Faces of a video as clips of their own: who speaks, whether anybody does, and how they are extracted and resumed."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.clip import SAMPLES_PER_FRAME, listed_path, track_key, track_numbers, video_of
from avh_shards.errors import Failure
from avh_shards.format import Variant, list_shards
from extract.check.shards import inspect
from extract.faces import NO_FACE, NO_SPEECH, lip_rhythm, read_faces, speech_frames
from extract.prepare import PrepareSettings, cut_clip, prepare_clip
from extract.run.job import ExtractSettings, Job, extract
from extract.run.pool import PrepareTask
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip, failure_log, read_failures
from tests.media import tone, write_media
from tests.sets import assert_same_set

TALK = ClipMeta("talk.mp4", label=1, category="dub", split="train", identity="id1", segments=((0.4, 4.0), (4.2, 4.4)))


@pytest.fixture(scope="module")
def media(cast, talk, tmp_path_factory) -> Path:
    """The film with the voice of the person on the left, a film of a wall, and one of a person and a tone."""
    folder = tmp_path_factory.mktemp("films")
    cast.write(folder / "talk.mp4", talk.frames, "movie")
    cast.write(folder / "end.mp4", talk.frames[85:], "movie")
    cast.write(folder / "wall.mp4", cast.shot(30, 3), "movie")
    write_media(folder / "tone.mp4", cast.pictures["jwp"][:26], sound=tone(1.04))
    return folder


@pytest.fixture
def read(media, talk, monkeypatch):
    """Returns a function from a choice of faces to the film's shots and clips."""
    monkeypatch.setattr("extract.faces.find_tracks", lambda *_: talk.shots)  # found once for all tests
    return lambda faces: read_faces(TALK, media, PrepareSettings(faces=faces))


def test_each_face_is_a_clip_with_the_sound_of_the_same_frames(read, cast):
    shots, clips = read("all")
    keys = ["talk.mp4#shot1.face1", "talk.mp4#shot1.face2", "talk.mp4#shot3.face1"]
    assert [face.key for shot in shots for face in shot.faces] == [clip.meta.path for clip in clips] == keys
    left, right, single = clips
    assert len(left.sound.waveform) == len(right.sound.waveform) == shots[0].stop * SAMPLES_PER_FRAME
    assert len(left.mouths.crops) == len(right.mouths.crops) == shots[0].stop
    for clip, start in ((left, 0), (single, shots[2].start)):
        wanted = cast.sound("movie", 125)[start * SAMPLES_PER_FRAME :]
        common = min(len(wanted), len(clip.sound.waveform))
        assert np.corrcoef(clip.sound.waveform[:common], wanted[:common])[0, 1] > 0.95
    for clip in clips:
        prepared = cut_clip(clip, Variant.UNTRIMMED)
        assert len(prepared.crops) == len(prepared.audio) == len(clip.mouths.crops)
    assert (left.meta.label, left.meta.category, left.meta.split, left.meta.identity) == (1, "dub", "train", "id1")
    np.testing.assert_allclose(left.meta.segments, [(0.4, shots[0].stop / 25)])
    np.testing.assert_allclose(single.meta.segments, [(0, 0.2), (0.4, 0.6)], atol=0.081)


def test_the_speaker_is_the_face_whose_lips_follow_the_sound(talk, cast):
    points = [track.mouths.points for track in talk.shots[0].tracks]
    for voice, speaker in (("movie", 0), ("obama", 1)):
        rhythm = [lip_rhythm(each, cast.sound(voice, len(each))) for each in points]
        assert int(np.argmax(rhythm)) == speaker, voice
        assert rhythm[speaker] > 2 * abs(rhythm[1 - speaker]), voice
    assert lip_rhythm(points[0], np.zeros(99, np.float32)) == 0


def test_the_flag_chooses_among_the_faces_that_can_be_compared(read, talk, monkeypatch):
    def chosen(faces: str) -> list[str]:
        return [clip.meta.path.removeprefix("talk.mp4#") for clip in read(faces).clips]

    assert chosen("all") == ["shot1.face1", "shot1.face2", "shot3.face1"]
    assert chosen("speaker") == ["shot1.face1", "shot3.face1"]
    areas = [(track.boxes[:, 2:] - track.boxes[:, :2]).prod(axis=1).mean() for track in talk.shots[0].tracks]
    assert chosen("largest") == [f"shot1.face{1 + int(np.argmax(areas))}", "shot3.face1"]
    monkeypatch.setattr("extract.faces.speech_frames", lambda waveform: np.arange(len(waveform) // 640) > 90)
    assert chosen("all") == chosen("speaker") == chosen("largest") == ["shot3.face1"]
    assert [face.remark for face in read("all").shots[0].faces] == [NO_SPEECH] * 2


def test_speech_is_told_from_other_sounds(cast):
    assert speech_frames(cast.sound("movie", 50)).mean() > 0.8
    assert not speech_frames(tone(2)[0]).any()
    assert not speech_frames(np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)).any()
    assert len(speech_frames(np.zeros(640 * 7 + 1, np.float32))) == 8
    assert len(speech_frames(np.zeros(0, np.float32))) == 0


def test_one_face_without_a_cut_has_the_features_of_the_whole_video(media, cast):
    cast.write(media / "one.mp4", cast.pictures["movie"][:30], "movie")
    whole = prepare_clip(ClipMeta("one.mp4"), media, PrepareSettings())
    (clip,) = read_faces(ClipMeta("one.mp4"), media, PrepareSettings(faces="speaker")).clips
    track = cut_clip(clip, Variant.UNTRIMMED)
    assert track.meta.path == "one.mp4#shot1.face1"
    assert track.meta.leading_silence == whole.meta.leading_silence
    for name in ("crops", "audio", "waveform", "points"):
        np.testing.assert_array_equal(getattr(track, name), getattr(whole, name))


def test_only_faces_that_are_too_short_are_left_out(media, read, monkeypatch):
    task = PrepareTask(str(media), PrepareSettings(faces="all"), (Variant.TRIMMED,))
    faces = read("all")
    first, *others = faces.clips
    silent = dataclasses.replace(first.sound, silent=len(first.sound.waveform))
    clips = [dataclasses.replace(first, sound=silent), *others]
    monkeypatch.setattr("extract.run.pool.read_faces", lambda *_: faces._replace(clips=clips))
    keys = [clip.meta.path for clip in task.prepare(TALK).outcomes[Variant.TRIMMED]]
    assert keys == ["talk.mp4#shot1.face2", "talk.mp4#shot3.face1"]

    def cut(clip, variant):
        if clip.meta.path.endswith("shot3.face1"):
            raise MemoryError("full")
        return cut_clip(clip, variant)

    monkeypatch.setattr("extract.run.pool.cut_clip", cut)
    failure = task.prepare(TALK).outcomes[Variant.TRIMMED]
    assert failure == Failure("talk.mp4", "prepare", "unexpected MemoryError: full", True)


@pytest.fixture(scope="module")
def job(media, tmp_path_factory):
    clips = [ClipMeta(f"{name}.mp4", label=1, split="train", identity="id1") for name in ("wall", "end", "tone")]
    settings = ExtractSettings(PrepareSettings(faces="speaker"), dtype="float32", clips_per_shard=3, processes=1)
    return Job(clips, str(media), str(tmp_path_factory.mktemp("sets") / "set"), settings)


def test_every_video_ends_in_a_shard_or_in_the_failure_log(job, tiny_checkpoint):
    """The keys of faces lead back to their videos, also when the run is repeated, and when a set is inspected."""
    (summary,) = extract(job, tiny_checkpoint)
    assert (summary.clips, summary.stored, summary.failed, summary.tracks) == (3, 1, 2, 1)
    (shard,) = map(open_shard, list_shards(job.output))
    assert [clip.path for clip in shard.clips] == ["end.mp4#shot1.face1"]
    assert {(clip.label, clip.split, clip.identity) for clip in shard.clips} == {(1, "train", "id1")}
    assert json.loads(shard.attributes["settings"])["faces"] == "speaker"
    failures = {failure.path: failure.reason for failure in read_failures(Path(job.output) / "failures.jsonl")}
    assert failures == {"wall.mp4": NO_FACE, "tone.mp4": f"{NO_SPEECH} while a face is visible"}
    before = [path.stat().st_mtime_ns for path in list_shards(job.output)]
    extract(job, tiny_checkpoint)
    assert [path.stat().st_mtime_ns for path in list_shards(job.output)] == before
    assert inspect(job.output).damage == []


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["none", "ray"])
def test_a_cluster_and_a_resumed_run_store_the_same_faces(media, tiny_checkpoint, tmp_path, cluster):
    """A cluster, and a run whose first shard was lost, write the shards of an undisturbed run."""
    clips = media.with_suffix(".csv")
    clips.write_text("path\ntalk.mp4\nwall.mp4\ntone.mp4\n")

    def run(output: Path, cluster: str = "none") -> None:
        flags = {"clips": clips, "media": media, "avhubert": tiny_checkpoint, "output": output, "clips_per_shard": 2}
        flags |= {"faces": "all", "cluster": cluster}
        command = [sys.executable, "-m", "launch.extract", *(f"--{name}={value}" for name, value in flags.items())]
        subprocess.run(command, check=True)

    run(tmp_path / "whole")
    assert [len(open_shard(path).clips) for path in list_shards(tmp_path / "whole")] == [3, 0]
    if cluster == "none":
        shutil.copytree(tmp_path / "whole", tmp_path / "again")
        (tmp_path / "again" / "features-00000.h5").unlink()
    run(tmp_path / "again", cluster)
    assert_same_set(tmp_path / "whole", tmp_path / "again")


def test_a_video_of_which_one_face_cannot_be_encoded_fails_whole(tmp_path):
    """Otherwise it would be in a shard and in the failure log."""
    attributes = {"encoder": "e", "weights_sha256": "0", "width": 2, "trimmed": False, "settings": "{}"}
    features = ClipFeatures(*np.zeros((2, 3, 2), np.float32))
    a = [StoredClip(ClipMeta(track_key("a.mp4", shot, face)), features) for shot, face in ((10, 1), (2, 11), (2, 3))]
    b = [StoredClip(ClipMeta("b.mp4#shot1.face1"), features), Failure("b.mp4#shot1.face2", "encode", "no memory", True)]
    writer = ShardWriter(tmp_path, "float32", attributes)
    listed = [ClipMeta("b.mp4"), ClipMeta("a.mp4")]
    writer.write(0, listed, [*a, *b])
    shard = open_shard(writer.path(0))
    assert [clip.path for clip in shard.clips] == ["a.mp4#shot2.face3", "a.mp4#shot2.face11", "a.mp4#shot10.face1"]
    assert read_failures(failure_log(writer.path(0))) == [Failure("b.mp4", "encode", "no memory", True)]
    writer.write(0, listed, [*b[:1], Failure("a.mp4", "video", "gone", True)])  # a is kept, b is not lost
    assert [clip.path for clip in open_shard(writer.path(0)).clips] == [clip.path for clip in shard.clips]
    assert [failure.path for failure in read_failures(failure_log(writer.path(0)))] == ["b.mp4"]


def test_keys_of_faces():
    key = track_key("a/b #shot1.mp4", 12, 3)
    assert key == "a/b #shot1.mp4#shot12.face3"
    assert (video_of(key), track_numbers(key)) == ("a/b #shot1.mp4", (12, 3))
    assert (video_of("a.mp4"), track_numbers("a.mp4")) == ("a.mp4", (0, 0))
    assert listed_path("a#shot1.face2", {"a#shot1.face2", "a"}) == "a#shot1.face2"


@pytest.mark.parametrize(
    ("options", "path", "reason"),
    [
        ({"input": "roi"}, "a.mp4", "needs videos and --landmarks="),
        ({"landmarks": "."}, "a.mp4", "needs videos and --landmarks="),
        ({}, "a#shot1.face2", "is named like a face of a video"),
    ],
)
def test_faces_need_videos_of_plain_names(tmp_path, tiny_checkpoint, options, path, reason):
    settings = ExtractSettings(PrepareSettings(faces="all", **options))
    with pytest.raises(UserError, match=reason):
        extract(Job([ClipMeta(path)], str(tmp_path), str(tmp_path / "out"), settings), tiny_checkpoint)
