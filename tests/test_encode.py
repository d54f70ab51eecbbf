"""Clips -> features: official outputs, batches equal to single clips, no work done twice."""

import importlib.util

import numpy as np
import pytest
import torch

from extract.avhubert import encode_clips, load_avhubert
from extract.avhubert.encode import batches
from extract.prepare import PreparedClip, PrepareSettings, prepare_clip
from extract.schema import ClipMeta
from tests.conftest import TESTDATA


@pytest.fixture(scope="module")
def prepared():
    names = {"s4": False, "st48": False, "trim": True}
    return [
        prepare_clip(ClipMeta(f"{name}.mp4"), TESTDATA, PrepareSettings(input="roi", trimmed=trimmed))
        for name, trimmed in names.items()
    ]


@pytest.mark.parametrize("file", ["tiny_pretrain_fp16.pt", "tiny_seq2seq_fp16.pt"])
def test_features_equal_the_official_ones(shared, prepared, file):
    network = load_avhubert(shared(f"avhubert/{file}"))  # neither fairseq nor sentencepiece is installed
    assert not any(importlib.util.find_spec(name) for name in ("fairseq", "sentencepiece"))
    for clip, features in zip(prepared, encode_clips(network, prepared, multimodal=True), strict=True):
        official = np.load(TESTDATA / f"features_{clip.meta.path[:-4]}.npz")
        for name in features._fields:
            np.testing.assert_allclose(getattr(features, name), official[name], rtol=0, atol=1e-3)


def test_a_batch_equals_its_clips(tiny_encoder, prepared):
    for clip, features in zip(prepared, encode_clips(tiny_encoder, prepared), strict=True):
        for together, alone in zip(features[:2], encode_clips(tiny_encoder, [clip])[0][:2], strict=True):
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_the_front_end_runs_once_and_the_transformer_once(tiny_encoder, prepared):
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
        for name, module in tiny_encoder.named_modules()
        if name in ("feature_extractor_video.resnet", "encoder")
    ]
    encode_clips(tiny_encoder, prepared, multimodal=True)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["encoder", "feature_extractor_video.resnet"]


def test_the_multimodal_pass_is_made_on_request_only(tiny_encoder, prepared):
    assert encode_clips(tiny_encoder, prepared[:1])[0].multimodal is None


def test_batches_stay_within_their_size_and_in_order():
    lengths = [30, 30, 50, 200, 10, 10, 10, 10, 99]
    clips = [
        PreparedClip(ClipMeta(str(k)), np.zeros((n, 96, 96), np.uint8), np.zeros((n, 104), np.float32))
        for k, n in enumerate(lengths)
    ]
    groups = list(batches(clips, batch_frames=100))
    assert [clip.meta.path for group in groups for clip in group] == [str(k) for k in range(len(lengths))]
    padded = [len(group) * max(len(clip.audio) for clip in group) for group in groups]
    assert all(size <= 100 or len(group) == 1 for size, group in zip(padded, groups, strict=True))
    assert [len(group) for group in groups] == [2, 1, 1, 4, 1]


def test_encoding_keeps_no_graph(tiny_encoder, prepared):
    assert not any(parameter.requires_grad for parameter in tiny_encoder.parameters())
    assert not torch.is_inference_mode_enabled()
