"""Released data sets, a module each: folder + metadata -> clips."""

from extract.datasets.common import of_splits
from extract.datasets.registry import DATASETS, read_dataset, select

__all__ = ["DATASETS", "of_splits", "read_dataset", "select"]
