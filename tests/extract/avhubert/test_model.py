"""The encoder: parity with the official program, and padded batches that equal single clips."""

import numpy as np
import pytest
import torch

from extract.avhubert import AVHubert, AVHubertConfig, load_avhubert
from tests import rules
from tests.conftest import TESTDATA

TOLERANCE = {"tiny": 1e-4, "base": 5e-4}
MIDDLE_LAYER = {"tiny": 1, "base": 6}


@pytest.fixture(scope="module", params=["tiny", "base"])
def filled(request, tmp_path_factory):
    """(size, rule-filled network, official outputs); the tiny network is loaded from a file in the official format."""
    if request.param == "tiny":
        path = tmp_path_factory.mktemp("official") / "tiny.pt"
        torch.save(rules.encoder_checkpoint(True, rules.TINY_SETTINGS, torch.float32), path)
        network = load_avhubert(path)
    else:
        network = AVHubert(getattr(AVHubertConfig, request.param)())
        network.load_state_dict(rules.encoder_weights(network))
    return request.param, network, np.load(TESTDATA / f"fill_{request.param}.npz")


@pytest.fixture(scope="module")
def inputs():
    audio = np.random.RandomState(2).standard_normal((1, 50, 104)).astype(np.float32)
    video = np.random.RandomState(1).standard_normal((1, 50, 88, 88)).astype(np.float32)
    return torch.from_numpy(audio), torch.from_numpy(video)


def test_every_pass_equals_the_official_one(filled, inputs):
    size, network, official = filled
    audio, video = inputs
    passes = {"audio": network(audio=audio), "visual": network(video=video), "multimodal": network(audio, video)}
    for name, output in passes.items():
        np.testing.assert_allclose(output[0], official[name], rtol=0, atol=TOLERANCE[size], err_msg=name)


def test_trunk_and_middle_layer_equal_the_official_ones(filled, inputs):
    size, network, official = filled
    seen = {}
    layer = network.encoder.layers[MIDDLE_LAYER[size] - 1]
    hook = layer.register_forward_hook(lambda module, args, output: seen.update(layer=output))
    trunk = network.feature_extractor_video.resnet.register_forward_hook(
        lambda module, args, output: seen.update(trunk=output)
    )
    network(video=inputs[1])
    hook.remove()
    trunk.remove()
    np.testing.assert_allclose(seen["trunk"][0], official["trunk"], rtol=0, atol=TOLERANCE[size])
    name = f"visual_layer_{MIDDLE_LAYER[size]}"
    np.testing.assert_allclose(seen["layer"][0], official[name], rtol=0, atol=TOLERANCE[size])


def test_state_dict_has_the_official_names(shared):
    names = {"tiny": AVHubertConfig.tiny(), "base": AVHubertConfig.base(), "large": AVHubertConfig.large()}
    for size, config in names.items():
        official = {}
        for line in shared(f"avhubert/keys_{size}.txt").read_text().split("# seq2seq")[0].splitlines():
            if not line.startswith("#"):
                name, shape, _ = line.split("\t")
                official[name] = tuple(int(n) for n in shape.strip("()").split(",") if n)
        with torch.device("meta"):
            ours = {name: tuple(value.shape) for name, value in AVHubert(config).state_dict().items()}
        unused = ("mask_emb", "label_embs_concat", "final_proj")
        assert ours == {name: shape for name, shape in official.items() if not name.startswith(unused)}


def test_padded_batch_equals_clips_one_by_one(tiny_encoder):
    rng = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 20, 1, 13])
    # Garbage instead of zeros beyond each clip's end must not affect the clip.
    audio = torch.randn((4, 20, 104), generator=rng)
    video = torch.randn((4, 20, 88, 88), generator=rng)
    for a, v in ((audio, None), (None, video), (audio, video)):
        batch = tiny_encoder(a, v, lengths)
        for n, length in enumerate(lengths):
            single = tiny_encoder(*(x[n : n + 1, :length] if x is not None else None for x in (a, v)))
            torch.testing.assert_close(batch[n, :length], single[0], rtol=0, atol=1e-5)


def test_missing_modality_differs_from_a_silent_one(tiny_encoder):
    video = torch.randn((1, 5, 88, 88), generator=torch.Generator().manual_seed(0))
    silent = tiny_encoder(torch.zeros(1, 5, 104), video)  # its projection has a bias
    assert (tiny_encoder(video=video) - silent).abs().max() > 1e-3


def test_no_modality_at_all_is_refused(tiny_encoder):
    with pytest.raises(AssertionError, match="modality"):
        tiny_encoder()
