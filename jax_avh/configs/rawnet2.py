r"""RawNet2, trained on the sound of clips of both labels, which the shards must hold (--store=waveform).

python -m launch.train --config.method=rawnet2 --config.data.train=shards/train --config.data.val=shards/val \
    --workdir=run

Expected time: 17 clips a second on two CPU cores (benchmarks/RESULTS.md).

Expected number: AUC untrimmed and trimmed, trained and tested within a data set (the paper's table 1): 99.9 % and
97.3 % on FakeAVCeleb, 99.9 % and 88.1 % on AV-Deepfake1M.
"""

from jax_avh.config import Config, DataConfig, OptimizerConfig, TrainConfig
from jax_avh.methods.rawnet2 import RawNet2Config


def get_config() -> Config[RawNet2Config]:
    """Returns the published settings."""
    return Config(
        RawNet2Config(),
        data=DataConfig(batch_examples=32),
        optimizer=OptimizerConfig(learning_rate=1e-4, plateau_factor=1.0, weight_decay=1e-4),
        train=TrainConfig(epochs=100),
    )
