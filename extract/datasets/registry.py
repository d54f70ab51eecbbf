"""The data sets by name, and reading one of them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from avh_shards import ClipMeta, UserError
from extract.datasets.av_deepfake1m import read_av_deepfake1m
from extract.datasets.avlips import read_avlips
from extract.datasets.fakeavceleb import read_fakeavceleb
from extract.datasets.folder import read_folder
from extract.datasets.lavdf import read_lavdf
from extract.datasets.selection import select

Reader = Callable[[Path, tuple[str, ...]], list[ClipMeta]]

DATASETS: dict[str, Reader] = {
    "av_deepfake1m": read_av_deepfake1m,
    "fakeavceleb": read_fakeavceleb,
    "avlips": read_avlips,
    "lavdf": read_lavdf,
    "folder": read_folder,
}


def read_dataset(
    name: str,
    root: str | os.PathLike,
    splits: Sequence[str] = (),
    selection: str | os.PathLike | None = None,
) -> list[ClipMeta]:
    """Reads a data set as it was released.

    Args:
      name: of DATASETS.
      root: its folder; the clips' paths are relative to it.
      splits: the data set's own names; none = all that are there.
      selection: a list of AVH-Align's; None = all clips.

    Returns:
      The clips, each path once, in the metadata's order, or in that of the selection.

    Raises:
      UserError: there is no such data set, folder or split, or a file of it or the selection is wrong.
    """
    if name not in DATASETS:
        raise UserError(f"{name!r} is no data set of ours; choose of {', '.join(DATASETS)}")
    try:
        if not (root := Path(root)).is_dir():
            raise UserError(f"{root}: no such folder; name the folder of the data set")
        clips = DATASETS[name](root, tuple(splits))
    except OSError as error:  # of looking whether a file is there
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); name a folder that can be") from None
    return clips if selection is None else select(clips, selection)
