"""MDS, trained on mouth crops and sound of clips of both labels, which the shards must hold (--store=waveform,crops).

python -m launch.train --config.method=mds --config.data.train=shards/train --config.data.val=shards/val --workdir=run

Expected time: 1.8 seconds of video a second on two CPU cores (benchmarks/RESULTS.md), so use a GPU, where it is
not measured. A TPU convolves in three passes of bfloat16 (docs/training.md, "Precision").

Expected number: unknown, since ours sees grey mouth crops. The published system, which sees faces, has an AUC of 90.4 %
untrimmed and 73.8 % trimmed on FakeAVCeleb, 99.2 % and 54.9 % on AV-Deepfake1M, trained and tested within a data set
(the paper's table 1).
"""

from jax_avh.config import Config, DataConfig, OptimizerConfig, TrainConfig
from jax_avh.methods.mds import MDSConfig


def get_config() -> Config[MDSConfig]:
    """Returns the published settings."""
    return Config(
        MDSConfig(),
        data=DataConfig(batch_examples=8),
        optimizer=OptimizerConfig(learning_rate=1e-3, plateau_factor=1.0, weight_decay=1e-5),
        train=TrainConfig(epochs=100),
    )
