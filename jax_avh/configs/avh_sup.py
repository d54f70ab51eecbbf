r"""AVH-Align/sup, trained on clips of both labels.

python -m launch.train --config.method=avh_sup --config.data.train=shards/train --config.data.val=shards/val \
    --workdir=run

The official program takes one clip a step: add --config.data.batch_clips=1.

Expected time: not measured.

Expected number: AUC untrimmed and trimmed (the paper's table 2): trained on AV-Deepfake1M, 100.0 % and 83.1 % on it,
77.5 % and 70.8 % on FakeAVCeleb; trained on FakeAVCeleb, 99.2 % and 99.2 % on it, 69.0 % and 63.6 % on AV-Deepfake1M.
"""

from jax_avh.config import Config, OptimizerConfig, TrainConfig
from jax_avh.methods.avh_sup import AVHSupConfig


def get_config() -> Config[AVHSupConfig]:
    """Returns the published settings."""
    return Config(
        AVHSupConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, plateau_factor=1.0),
        train=TrainConfig(epochs=100),
    )
