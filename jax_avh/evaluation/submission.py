"""Scores -> the zip file that AV-Deepfake1M's evaluation server takes: clip scores and proposed segments."""

import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FRAME_RATE
from avh_shards.clip_list import rows_by_ending
from avh_shards.format import caveat
from avh_shards.lists import read_lines
from avh_shards.paths import ZIP, as_path, atomic_write, check_outputs, file_lock, locked
from jax_avh.evaluation.localisation import confidence, table_proposals
from jax_avh.scores import ScoreTable, open_scores

SCORES_MEMBER = "prediction.txt"  # names in the zip
SEGMENTS = "prediction.json"
SEPARATOR = ";"  # between a file's name and its score
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip: the same scores give the same bytes


def submit(scores: str | os.PathLike, test_files: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes a submission from a score file; see write_submission.

    Raises:
      UserError: what is read is missing, damaged or wrong, or the output is an input or cannot be written.
    """
    check_outputs({output: ZIP}, [scores, test_files])
    with locked(output, file_lock(output)):
        return write_submission(open_scores(scores), test_files, output)


def write_submission(table: ScoreTable, test_files: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes a submission: `prediction.txt`, a line `file;score` a clip, and `prediction.json`, proposals by file.

    A file of the list is the clip of the same path, else the only clip whose path ends with it after some folders:
    `000001.mp4` is `test/000001.mp4`. Scores are the clips' own, mapped into (0, 1) in their order, because the
    official program puts others through a sigmoid, which makes high ones equal. Times are those of the original file:
    what was trimmed off its start is added (nothing where that is unknown).

    Args:
      table: scores of at least the clips of the list, with frame scores.
      test_files: the released `test_files.txt`, a file name a line.
      output: the .zip file to write.

    Returns:
      What was written, in a sentence.

    Raises:
      UserError: the method has no frame scores, the list is wrong, or a clip of it is missing or ambiguous.
    """
    if table.frame is None:
        raise UserError(f"{table.method}: has no frame scores, but a submission wants segments; use a method that has")
    if as_path(output).suffix != ".zip":
        raise UserError(f"{output}: a submission is a zip file; name it .zip")
    files = _read_list(Path(test_files))
    row = _find_clips(files, [clip.path for clip in table.clips], Path(test_files))
    segments = table_proposals(table)
    clips = {file: table.clips[n] for file, n in zip(files, row, strict=True)}
    scores = zip(files, confidence(table.clip[row]).tolist(), strict=True)
    with atomic_write(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_lines(archive, SCORES_MEMBER, (f"{file}{SEPARATOR}{score!r}\n" for file, score in scores))
        archive.comment = caveat(table.attributes).encode()  # what the server reads has no room for it
        _write_lines(archive, SEGMENTS, _json_lines((file, _rows(segments, clip)) for file, clip in clips.items()))
    count = sum(len(segments[clip.path]) for clip in clips.values())
    others = len(table.clips) - len(clips)
    summary = f"{output}: {len(clips)} clips, {count} segments; {others} scored clips are not in {test_files}"
    return f"{summary}. {caveat(table.attributes)}".rstrip(" .")


def _read_list(path: Path) -> list[str]:
    """Reads the file names of `test_files.txt`, each of which must occur once."""
    lines: dict[str, int] = {}
    for number, file in read_lines(path, "it comes with the data set"):
        if SEPARATOR in file:
            raise UserError(f"{path}, line {number}: {file!r} is not a file name; correct or remove the line")
        if (first := lines.setdefault(file, number)) != number:
            raise UserError(f"{path}, line {number}: {file!r} is also in line {first}; list each file once")
    if not lines:
        raise UserError(f"{path}: names no file; use the test_files.txt of the data set")
    return list(lines)


def _find_clips(files: Sequence[str], paths: Sequence[str], source: Path) -> list[int]:
    """Finds the row in the table of every file of the list."""
    rows = rows_by_ending(paths, files)
    if missing := [file for file in files if file not in rows]:
        raise UserError(
            f"{source}: {len(missing)} of its {len(files)} files have no score, the first is {missing[0]!r}; "
            "score the whole test split"
        )
    chosen: dict[int, str] = {}
    for file in files:
        row, *more = rows[file]
        if more:
            a, b = paths[row], paths[more[0]]
            raise UserError(f"{source}: {file!r} may be the clip {a!r} or {b!r}; score the test split alone")
        if (other := chosen.setdefault(row, file)) != file:
            raise UserError(f"{source}: {other!r} and {file!r} mean one clip, {paths[row]!r}; list it once")
    return list(chosen)


def _rows(segments: dict[str, np.ndarray], clip: ClipMeta) -> list[list[float]]:
    """Returns (confidence, start, end) of a clip in the original's time, in as few digits as float32 needs."""
    shift = max(clip.trimmed_frames, 0) / FRAME_RATE
    rows = segments[clip.path] + np.array([0, shift, shift])
    return [[float(str(value)) for value in row] for row in rows.astype(np.float32)]


def _json_lines(members: Iterable[tuple[str, list]]) -> Iterable[str]:
    """Yields a JSON object piece by piece, a line a member: that of a million clips need not be in memory."""
    start = "{\n"
    for name, value in members:
        yield f"{start}{json.dumps(name)}: {json.dumps(value)}"
        start = ",\n"
    yield "\n}\n"


def _write_lines(archive: zipfile.ZipFile, name: str, lines: Iterable[str]) -> None:
    """Writes a compressed file into the zip, with a time and rights that never change."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3  # Unix
    with archive.open(info, "w", force_zip64=True) as file:  # its size is not known beforehand, and may pass 2 GiB
        for line in lines:
            file.write(line.encode())
