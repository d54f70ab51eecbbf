"""The device mesh, and where arrays lie on it: the one place that builds shardings."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """All devices along one axis: training is data parallel."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """For the state: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_chunk(mesh: Mesh) -> NamedSharding:
    """For batches: each device holds its own chunks (the leading axis)."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))
