"""Writes the zip file that AV-Deepfake1M's evaluation server takes: clip scores and proposed segments."""

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

SCORES_MEMBER = "prediction.txt"  # name in the zip
SEGMENTS = "prediction.json"  # name in the zip
SEPARATOR = ";"  # between a file's name and its score
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold; a fixed time keeps the bytes reproducible


def submit(scores: str | os.PathLike, test_files: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes a submission from a score file; see write_submission.

    Args:
      scores: the score file.
      test_files: the released `test_files.txt`.
      output: the .zip file to write.

    Returns:
      A sentence that says what was written.

    Raises:
      UserError: an input is missing, damaged or wrong, or the output is an input or cannot be written.
    """
    check_outputs({output: ZIP}, [scores, test_files])
    with locked(output, file_lock(output)):
        return write_submission(open_scores(scores), test_files, output)


def write_submission(table: ScoreTable, test_files: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes a submission: `prediction.txt` (a line `file;score` per clip) and `prediction.json` (proposals by file).

    A listed file is the clip of the same path, or else the only clip whose path ends with it after some folders:
    `000001.mp4` is `test/000001.mp4`. Scores are the method's own, mapped into (0, 1) in the same order, because the
    official program applies a sigmoid to others, which makes high ones equal. Times refer to the original file: the
    duration trimmed off its start is added (none if unknown).

    Args:
      table: scores, with frame scores, of at least the listed clips.
      test_files: the released `test_files.txt`, one file name per line.
      output: the .zip file to write.

    Returns:
      A sentence that says what was written.

    Raises:
      UserError: the method has no frame scores, the list is wrong, a listed clip is missing or ambiguous, or the
        output is not a .zip path.
    """
    if table.frame is None:
        raise UserError(
            f"{table.method}: has no frame scores, from which a submission's segments are made; use a method that has"
        )
    if as_path(output).suffix != ".zip":
        raise UserError(f"{output}: is not the name of a zip file; name it .zip")
    files = _read_list(Path(test_files))
    row = _find_clips(files, [clip.path for clip in table.clips], Path(test_files))
    segments = table_proposals(table)
    clips = {file: table.clips[n] for file, n in zip(files, row, strict=True)}
    scores = zip(files, confidence(table.clip[row]).tolist(), strict=True)
    with atomic_write(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_lines(archive, SCORES_MEMBER, (f"{file}{SEPARATOR}{score!r}\n" for file, score in scores))
        archive.comment = caveat(table.attributes).encode()  # the files that the server reads have no room for it
        _write_lines(archive, SEGMENTS, _json_lines((file, _rows(segments, clip)) for file, clip in clips.items()))
    count = sum(len(segments[clip.path]) for clip in clips.values())
    others = len(table.clips) - len(clips)
    summary = f"{output}: {len(clips)} clips, {count} segments; {others} scored clips are not in {test_files}"
    return f"{summary}. {caveat(table.attributes)}".rstrip(" .")


def _read_list(path: Path) -> list[str]:
    """Reads the file names of `test_files.txt`, which must be distinct."""
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
    """Finds the table row of every listed file."""
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
            raise UserError(f"{source}: {file!r} matches {a!r} and {b!r}; score only the test split")
        if (other := chosen.setdefault(row, file)) != file:
            raise UserError(f"{source}: {other!r} and {file!r} are the same clip, {paths[row]!r}; list it once")
    return list(chosen)


def _rows(segments: dict[str, np.ndarray], clip: ClipMeta) -> list[list[float]]:
    """Returns (confidence, start, end) of a clip's segments in the original's time, with as few digits as possible."""
    shift = max(clip.trimmed_frames, 0) / FRAME_RATE
    rows = segments[clip.path] + np.array([0, shift, shift])
    return [[float(str(value)) for value in row] for row in rows.astype(np.float32)]


def _json_lines(members: Iterable[tuple[str, list]]) -> Iterable[str]:
    """Yields a JSON object one member per line, so that the text of a million clips is never held in memory."""
    start = "{\n"
    for name, value in members:
        yield f"{start}{json.dumps(name)}: {json.dumps(value)}"
        start = ",\n"
    yield "\n}\n"


def _write_lines(archive: zipfile.ZipFile, name: str, lines: Iterable[str]) -> None:
    """Writes a compressed file into the zip, with a fixed time and fixed permissions."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3  # Unix
    with archive.open(info, "w", force_zip64=True) as file:  # the size is not known beforehand and may exceed 2 GiB
        for line in lines:
            file.write(line.encode())
