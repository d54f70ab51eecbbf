"""Detectors: a single clip gets the same scores as in its shards."""

import jax
import numpy as np
from flax import nnx

from avh_shards import ClipMeta
from jax_avh.data.source import source_of_clip
from jax_avh.inference import load_detector, score_shards
from jax_avh.models import AlignmentNetwork
from jax_avh.models.weights import save_weights
from jax_avh.parallel import compile_on_own_parts
from tests import rules
from tests.jax_avh.methods.test_methods import write_shard


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
        for frames in (2, 3, 40, 5000):
            visual, audio = np.random.default_rng(frames).standard_normal((2, frames, 9)).astype(np.float32)
            programs.append(0)
            detector.score(source_of_clip(ClipMeta("x.mp4"), visual, audio))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert programs[0] > 0
    assert programs[1:] == [0, 0, 0]
