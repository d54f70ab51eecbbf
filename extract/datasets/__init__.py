"""Released data sets, a module each: folder + metadata -> clips."""

from extract.datasets.av_deepfake1m import read_av_deepfake1m
from extract.datasets.avlips import read_avlips
from extract.datasets.common import of_splits
from extract.datasets.fakeavceleb import read_fakeavceleb
from extract.datasets.folder import read_folder
from extract.datasets.lavdf import read_lavdf
from extract.datasets.registry import DATASETS, Reader, read_dataset
from extract.datasets.selection import select

__all__ = [
    "DATASETS",
    "Reader",
    "of_splits",
    "read_av_deepfake1m",
    "read_avlips",
    "read_dataset",
    "read_fakeavceleb",
    "read_folder",
    "read_lavdf",
    "select",
]
