"""A lone clip is scored as it is in its shards."""

import numpy as np

from jax_avh.data.source import source_of_clip
from jax_avh.inference import load_detector, score_shards
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
