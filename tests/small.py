"""Small networks that replace those of the methods, with the same layers and fewer channels."""

import dataclasses

import pytest
from flax import nnx

from jax_avh.methods import METHODS
from jax_avh.models.mds import MDS
from jax_avh.models.rawnet2 import RawNet2

NETWORKS = {
    "rawnet2": lambda seed, precision: RawNet2(nnx.Rngs(seed), precision, widths=(4, 4), hidden=8),
    "mds": lambda seed, precision: MDS(nnx.Rngs(seed), 32, precision, width_multiplier=1 / 64),
}


def use_small_networks(patch: pytest.MonkeyPatch) -> None:
    """Replaces the methods' networks until the patch is undone."""
    patch.setattr("jax_avh.models.alignment.PROJECTION_WIDTH", 16)
    patch.setattr("jax_avh.models.alignment.HIDDEN_WIDTHS", (16, 8, 8))
    for name, network in NETWORKS.items():
        method = dataclasses.replace(
            METHODS[name],
            make_model=lambda config, source, network=network: network(config.seed, config.train.precision),
            model_of=lambda notes, precision, network=network: network(0, precision),
        )
        patch.setitem(METHODS, name, method)
