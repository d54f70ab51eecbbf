"""AVH-Align, trained on real clips only.

python -m launch.train --config.data.train=shards/train --config.data.val=shards/val --workdir=run

Expected time: an epoch of AV-Deepfake1M's 10.3 million training frames takes 47 minutes on two CPU cores (3,600 frames
a second) and 8 to 53 seconds on one H200, at the speeds that benchmarks/RESULTS.md reports.

Expected number: trained on AV-Deepfake1M, AUC 85.9 % on its untrimmed and 83.5 % on its trimmed clips, and 94.6 % on
both kinds of FakeAVCeleb's clips (the paper's table 2).
"""

from jax_avh.config import Config
from jax_avh.methods.avh_align import AVHAlignConfig


def get_config() -> Config[AVHAlignConfig]:
    """Returns the published settings."""
    return Config(AVHAlignConfig())
