r"""AVAD, trained on the window scores of real clips by a trained AVH-Align.

python -m launch.train --config.method=avad --config.method.sync_weights=run --config.data.train=shards/train \
    --config.data.val=shards/val --workdir=avad

The paper states neither the number of epochs nor the length of the warm-up, so both are guesses.

Expected time: 289 clips a second on two CPU cores (benchmarks/RESULTS.md), once their window scores are computed.

Expected number: unknown, since ours has a different synchronisation network. The published system has an AUC of 84.5 %
untrimmed and 84.7 % trimmed on FakeAVCeleb, 54.3 % either way on AV-Deepfake1M (the paper's table 2).
"""

from jax_avh.config import Config, DataConfig, OptimizerConfig, TrainConfig
from jax_avh.methods.avad import AVADConfig


def get_config() -> Config[AVADConfig]:
    """Returns the published settings."""
    return Config(
        AVADConfig(),
        data=DataConfig(batch_examples=16),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-6, schedule="cosine", warmup_epochs=5),
        train=TrainConfig(epochs=100),
    )
