"""What a run starts from, and what must fit before it does."""

import jax
from flax import nnx

from extract.schema import InputError
from jax_avh.config import Config
from jax_avh.data import FeatureSource
from jax_avh.data.source import SET_ATTRIBUTES
from jax_avh.models import AlignmentNetwork, load_weights


def initial_network(config: Config, width: int) -> AlignmentNetwork:
    """The network before training: of a file, or drawn from the seed.

    Raises:
      InputError: the file does not do, or the precision is switched off.
    """
    if config.train.precision == "float64" and not jax.config.jax_enable_x64:
        raise InputError("--config.train.precision=float64 needs JAX_ENABLE_X64=1 in the environment")
    if config.init:
        return load_weights(config.init, config.train.precision)
    return AlignmentNetwork(width, rngs=nnx.Rngs(config.seed), precision=config.train.precision)


def check_fit(config: Config, width: int, devices: int, train: FeatureSource, val: FeatureSource) -> None:
    """Refuses features that fit neither each other nor the network, and batches that fit not the devices.

    Raises:
      InputError: saying which.
    """
    if any(train.attributes.get(name) != val.attributes.get(name) for name in SET_ATTRIBUTES):
        raise InputError(f"{val.path}: from another encoder or trimming than {train.path}")
    for source in (train, val):
        if source.width != width:
            raise InputError(f"{source.path}: features of width {source.width}, but the network takes {width}")
    if config.data.batch_frames < devices:
        raise InputError(
            f"--config.data.batch_frames={config.data.batch_frames}: fewer than the {devices} devices, each of which "
            "needs a frame"
        )
