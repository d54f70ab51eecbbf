"""Encoding of clips: official outputs, batches that equal single clips, no duplicate work."""

import copy
import dataclasses
import importlib.util

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError
from avh_shards.format import Variant
from extract.avhubert import AVHubert, AVHubertConfig, load_avhubert
from extract.avhubert.encoder import POOL_BATCHES, Encoder, _in_pieces, batches, start_encoding
from extract.prepare import PreparedClip, PrepareSettings, prepare_clip
from tests import rules
from tests.conftest import TESTDATA


@pytest.fixture(scope="module")
def prepared():
    names = {"s4": Variant.UNTRIMMED, "st48": Variant.UNTRIMMED, "trim": Variant.TRIMMED}
    return [
        prepare_clip(ClipMeta(f"{name}.mp4"), TESTDATA, PrepareSettings(input="roi"), variant)
        for name, variant in names.items()
    ]


@pytest.fixture(scope="module")
def short(prepared):
    """Beginnings of the same clips, with different lengths."""
    return [
        dataclasses.replace(clip, crops=clip.crops[:frames], audio=clip.audio[:frames])
        for clip, frames in zip(prepared, (30, 21, 12), strict=True)
    ]


@pytest.mark.parametrize("file", ["tiny_pretrain_fp16.pt", "tiny_seq2seq_fp16.pt"])
def test_features_equal_the_official_ones(shared, prepared, file):
    network = load_avhubert(shared(f"avhubert/{file}"))  # neither fairseq nor sentencepiece is installed
    assert not any(importlib.util.find_spec(name) for name in ("fairseq", "sentencepiece"))
    for clip, features in zip(prepared, start_encoding(network, prepared, multimodal=True)(), strict=True):
        official = np.load(TESTDATA / f"features_{clip.meta.path[:-4]}.npz")
        for name in features._fields:
            np.testing.assert_allclose(getattr(features, name), official[name], rtol=0, atol=1e-3)


def test_a_batch_equals_its_clips(tiny_encoder, short):
    for clip, features in zip(short, start_encoding(tiny_encoder, short)(), strict=True):
        for together, single in zip(features[:2], start_encoding(tiny_encoder, [clip])()[0][:2], strict=True):
            np.testing.assert_allclose(together, single, rtol=0, atol=1e-5)


def test_the_front_end_runs_once_and_the_transformer_once(tiny_encoder, short, monkeypatch):
    monkeypatch.setattr("extract.avhubert.encoder.FRONT_END_FRAMES", 40)
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
        for name, module in tiny_encoder.named_modules()
        if name in ("feature_extractor_video.resnet", "encoder")
    ]
    start_encoding(tiny_encoder, short, multimodal=True)()
    for hook in hooks:
        hook.remove()
    windows = -(-(sum(len(clip.audio) for clip in short) + 4) // 40)
    assert sorted(calls) == ["encoder", *["feature_extractor_video.resnet"] * windows]


def test_the_multimodal_pass_is_made_on_request_only(tiny_encoder, prepared):
    assert start_encoding(tiny_encoder, prepared[:1])()[0].multimodal is None


def clips_of(lengths) -> list[PreparedClip]:
    return [
        PreparedClip(
            ClipMeta(str(k)),
            np.zeros((n, 96, 96), np.uint8),
            np.zeros((n, 104), np.float32),
            np.zeros(640 * n, np.int16),
        )
        for k, n in enumerate(lengths)
    ]


@hypothesis.given(st.lists(st.integers(1, 120), max_size=60))
def test_batches_hold_clips_of_similar_length_within_their_size(lengths):
    groups = list(batches(clips_of(lengths), batch_frames=100))
    assert sorted(int(clip.meta.path) for group in groups for clip in group) == list(range(len(lengths)))
    sizes = [[len(clip.audio) for clip in group] for group in groups]
    assert all(len(group) * max(group) <= 100 or len(group) == 1 for group in sizes)
    if sum(lengths) < POOL_BATCHES * 100:  # sorted as one
        assert [length for group in sizes for length in group] == sorted(lengths)


def test_clips_are_taken_a_bounded_number_ahead():
    taken = []
    clips = (taken.append(clip) or clip for clip in clips_of([50] * 1000))
    next(batches(clips, batch_frames=100))
    assert len(taken) == 2 * POOL_BATCHES


@pytest.mark.parametrize("frames", [7, 40, 1000])
def test_where_the_front_end_is_cut_changes_nothing(tiny_encoder, short, monkeypatch, frames):
    whole = start_encoding(tiny_encoder, short)()
    monkeypatch.setattr("extract.avhubert.encoder.FRONT_END_FRAMES", frames)
    for a, b in zip(start_encoding(tiny_encoder, short)(), whole, strict=True):
        np.testing.assert_allclose(a.visual, b.visual, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.999), ("float16", 0.99999)])
def test_half_precision_stays_close(tiny_encoder, short, precision, cosine):
    half = copy.deepcopy(tiny_encoder).hold(getattr(torch, precision))
    assert half.encoder.layers[0].fc1.weight.dtype == getattr(torch, precision)
    rounded = start_encoding(half, short[1:], True)()
    for a, b in zip(rounded, start_encoding(tiny_encoder, short[1:], True)(), strict=True):
        for name in a._fields:
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == np.float32
            assert ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min() >= cosine


def test_pieces_are_close_to_the_whole():
    """Error due to pieces, in a small network: small except for frames near a cut."""
    network = AVHubert(AVHubertConfig(layers=4, width=256, ffn_width=1024, heads=4))
    network.load_state_dict(rules.encoder_weights(network))
    fused = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3000, 256)).astype(np.float32))
    with torch.inference_mode():
        whole, pieces = network.contextualise(fused), _in_pieces(network.contextualise, fused, 1000)
        np.testing.assert_array_equal(whole, _in_pieces(network.contextualise, fused, 3000))
    cosine = torch.nn.functional.cosine_similarity(whole, pieces, dim=-1)
    print("cosine of pieces and whole: least", cosine.min().item(), "median", cosine.median().item())
    assert cosine.min() > 0.99


def test_encoding_keeps_no_graph(tiny_encoder, prepared):
    assert not any(parameter.requires_grad for parameter in tiny_encoder.parameters())
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ...",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_lack_of_memory_is_recognised_in_every_wording(tiny_checkpoint, short, monkeypatch, message):
    short = [dataclasses.replace(clip, crops=clip.crops[:5], audio=clip.audio[:5]) for clip in short]
    sizes = []

    def encode(network, clips, *options):
        sizes.append(len(clips))
        if len(clips) > 1:
            raise RuntimeError(message)
        return start_encoding(network, clips, *options)

    monkeypatch.setattr("extract.avhubert.encoder.start_encoding", encode)
    encoded = {clip.meta.path: features for clip, features in Encoder(tiny_checkpoint).encode(short)}
    assert sizes == [3, 1, 2, 1, 1]
    assert {path: len(features.audio) for path, features in encoded.items()} == {
        clip.meta.path: len(clip.audio) for clip in short
    }


SRUN = {"SLURM_STEP_ID": "0", "SLURM_LOCALID": "5", "SLURM_STEP_TASKS_PER_NODE": "8"}


@pytest.mark.parametrize(
    ("environment", "gpus", "wanted"),
    [
        ({}, 0, "cpu"),
        ({}, 8, "cuda:0"),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, 8, "cuda:3"),
        (SRUN, 8, "cuda:5"),
        (SRUN, 1, "cuda:0"),  # the task sees only its own
        (SRUN | {"LOCAL_RANK": "3"}, 8, "cuda:3"),  # torchrun, started by srun
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "6"}, 8, "cuda:6"),
    ],
)
def test_each_process_of_a_launcher_encodes_on_its_own_gpu(tiny_checkpoint, monkeypatch, environment, gpus, wanted):
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(AVHubert, "to", lambda network, device: moved.append(str(device)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Encoder(tiny_checkpoint)
    assert moved == [wanted]


def test_a_gpu_too_full_for_the_weights_is_one_sentence(tiny_checkpoint, monkeypatch):
    def fail(network, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(AVHubert, "to", fail)
    with pytest.raises(UserError, match="the encoder: does not fit into the free memory of cpu; end other programs"):
        Encoder(tiny_checkpoint)
