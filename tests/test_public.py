"""Tests that the public Python names exist in these modules, are documented and work together."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import avh
from avh_shards import ClipMeta, UserError, leading_silence, open_shard, read_clip_list
from extract.avhubert import AVHubert, AVHubertConfig, load_avhubert
from extract.face import crop_mouths, detect_landmarks
from extract.media import iterate_video, read_audio, read_video
from extract.prepare import PrepareSettings, filterbank_frames, prepare_clip
from tests.conftest import TESTDATA
from tests.media import pretended_face, ramp, tone, write_media

PUBLIC = {
    "avh": tuple(avh.__all__),
    "avh_shards": ("ClipMeta", "UserError", "leading_silence", "open_shard", "read_clip_list"),
    "extract.avhubert": ("AVHubert", "AVHubertConfig", "load_avhubert"),
    "extract.face": ("crop_mouths", "detect_landmarks"),
    "extract.media": ("iterate_video", "read_audio", "read_video"),
    "extract.prepare": ("filterbank_frames", "prepare_clip"),
    "jax_avh.evaluation": ("POOLINGS", "evaluate"),
    "jax_avh.inference": ("load_detector", "score_shards"),
    "jax_avh.models": ("AlignmentNetwork", "windowed_softmax_loss"),
    "jax_avh.reference": ("Judgement", "Reference", "read_reference"),
    "jax_avh.training": ("train",),
}


def test_the_api_imports_nothing_before_it_is_used():
    code = "import sys, avh; print(len({'numpy', 'jax', 'torch'} & {*sys.modules}), dir(avh) == sorted(avh.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0 True\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        avh.nothing  # noqa: B018
    assert avh.MODULES.keys() == set(avh.__all__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_names_exist_and_are_documented(module, name):
    found = importlib.import_module(module)
    assert name in getattr(found, "__all__", [name])
    assert getattr(found, name).__doc__


def test_a_file_becomes_frames_sound_mouths_and_audio_frames(tmp_path):
    sound = tone(0.8, silence=0.2)
    path = write_media(tmp_path / "x.mkv", ramp([k / 25 for k in range(20)]), sound=sound, audio_codec="pcm_s16le")
    frames = read_video(path)
    assert frames.shape == (20, 16, 1024, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, np.stack(list(iterate_video(path, fps_policy="resample"))))
    sound = read_audio(path)
    assert sound.ndim == 1
    assert leading_silence(sound) == pytest.approx(0.2, abs=0.01)
    assert filterbank_frames(sound).shape == (20, 104)
    points = detect_landmarks(frames, pretended_face())
    assert points.shape == (20, 68, 2)
    assert crop_mouths(frames, points).crops.shape == (20, 96, 96)


def test_a_prepared_clip_is_what_the_encoder_reads(tmp_path, tiny_checkpoint, rule_shards):
    (tmp_path / "c.csv").write_text("path,label\ns4.mp4,real\n")
    (clip,) = read_clip_list(tmp_path / "c.csv")
    assert clip == ClipMeta("s4.mp4", label=0)
    prepared = prepare_clip(clip, TESTDATA, PrepareSettings(input="roi"))
    network = load_avhubert(tiny_checkpoint)
    assert isinstance(network, AVHubert)
    assert network.config == AVHubertConfig.tiny()
    assert network(audio=torch.from_numpy(prepared.audio)[None]).shape == (1, len(prepared.crops), network.config.width)
    assert len(open_shard(rule_shards["val"] / "features-00000.h5").clips)
    with pytest.raises(UserError, match="no such file"):
        open_shard(tmp_path / "none.h5")
