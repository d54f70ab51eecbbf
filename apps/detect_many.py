"""Verdicts on many videos: a line of JSON for each, by which a killed run resumes, and pages with an index."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

import cv2
import numpy as np
from jaxtyping import Float

from apps.detect import (
    INDEX,
    NO_PROBABILITY,
    NO_REFERENCE,
    DetectSettings,
    load_models,
    page_paths,
    preparation,
    score_prepared,
    write_page,
)
from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import inside
from avh_shards.errors import Failure
from avh_shards.format import results_folder
from avh_shards.machine import own_cores
from avh_shards.paths import (
    HTML,
    AnyPath,
    FilePath,
    append,
    as_path,
    atomic_write,
    check_outputs,
    file_lock,
    file_sha256,
    local_file,
    locked,
)
from avh_shards.text import one_line
from extract.avhubert.encoder import Encoder
from extract.media.decode import timed_pictures
from extract.progress import ProgressBar
from extract.run.pool import attempt, prepare_all, running_pool
from jax_avh.inference import Detector
from jax_avh.report.index import JPEG, Entry, write_index
from jax_avh.report.video import Verdict, page_settings

VIDEO_SUFFIXES = {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
VIDEO_SUFFIXES |= {".ogv", ".ts", ".webm", ".wmv"}
RESULTS = rb'\{"path"'  # start of a file of results
THUMBNAIL = ".thumbnail.jpg"  # suffix of the picture next to a page
THUMBNAIL_WIDTH = 160  # pixels
THUMBNAIL_QUALITY = 60  # of JPEG, from 0 to 100


def find_videos(folder: str | os.PathLike) -> list[ClipMeta]:
    """Lists the videos in a folder and its subfolders by path, without hidden ones.

    Raises:
      UserError: there are none.
    """
    files = (file for file in Path(folder).rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
    names = [file.relative_to(folder) for file in files]
    shown = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{folder}: holds no videos ({kinds}); list files with other names in --clips")
    return [ClipMeta(name) for name in sorted(shown)]


def detect_many(
    videos: Sequence[ClipMeta],
    media: str | os.PathLike,
    settings: DetectSettings,
    results: AnyPath,
    pages: AnyPath | None = None,
    retry_failed: str = "passing",
) -> int:
    """Scores the videos of a list or a folder, while worker processes prepare the next ones.

    A run that was killed resumes: it skips the videos that `results` holds, unless they lack a page that can be made.

    Args:
      videos: the videos, with paths relative to `media`.
      media: their folder.
      settings: how they are scored.
      results: file to which one line of JSON is appended for each video.
      pages: folder for the videos' pages, in folders like those of the videos, and for their index; None = none.
      retry_failed: which failures of earlier runs to retry, of scores or pages, from errors.RETRIED.

    Returns:
      Exit status: 0, or 2 if a video could not be scored, now or in an earlier run.

    Raises:
      UserError: as for `detect`; or `results` holds verdicts of other settings, or something else.
    """
    if not Path(media).is_dir():
        raise UserError(f"{media}: no such folder; name the folder of the videos")
    results = as_path(results)
    folder = None if pages is None else results_folder(pages)
    names = [] if folder is None else page_paths([PurePath(video.path) for video in videos])
    written = {} if folder is None else {v.path: folder / name for v, name in zip(videos, names, strict=True)}
    outputs: dict[AnyPath, bytes] = {results: RESULTS}
    if folder is not None:
        outputs |= dict.fromkeys((folder / INDEX, *written.values()), HTML)
        outputs |= {page.with_suffix(THUMBNAIL): JPEG for page in written.values()}
    check_outputs(outputs, [*(Path(media, video.path) for video in videos), *settings.inputs])
    task = preparation(media, settings.landmarks, settings.faces)
    processes = min(own_cores(), len(videos))
    with locked(results, file_lock(results)), running_pool(task, processes) as pool:
        encoder, detector, reference = load_models(settings)
        record = _record(settings, encoder, detector)
        digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
        missing = {path for path, page in written.items() if page_settings(page) != digest}
        done = _resume(results, record, {video.path for video in videos}, missing, retry_failed)
        left = [video for video in videos if video.path not in done]
        for path in missing:  # if this run were killed, pages of other settings could be mistaken for its own
            written[path].unlink(missing_ok=True)
            written[path].with_suffix(THUMBNAIL).unlink(missing_ok=True)
        if folder is not None and left:
            (folder / INDEX).unlink(missing_ok=True)
        try:
            with ProgressBar(len(videos), len(videos) - len(left), title="videos") as progress:
                for video, prepared in zip(left, prepare_all(pool, left, task, processes), strict=True):
                    verdict, frame = score_prepared(video.path, prepared, encoder, detector, settings.faces)
                    if reference is not None:
                        verdict = verdict.compared(frame, reference, settings.two_sided, settings.rates)
                    if written and not verdict.error:
                        file = inside(media, video.path)
                        try:
                            failure = attempt(
                                video.path, _write_pages, written[video.path], file, verdict, frame, digest
                            )
                        except UserError as error:  # the folder is full or read-only, which costs no score
                            failure = Failure(video.path, "page", str(error), passing=True)
                        if failure is not None:
                            verdict = dataclasses.replace(verdict, no_page=failure.reason, passing=failure.passing)
                    fields = dataclasses.asdict(verdict) | {"faces": verdict.faces, "settings": record}
                    append(results, (json.dumps(fields) + "\n").encode())
                    done[video.path] = Entry.of(fields)
                    progress.write(verdict.line())
                    progress.add(1, len(frame), bool(verdict.error))
        finally:
            if folder is not None:
                shown = [(v.path, name) for v, name in zip(videos, names, strict=True) if v.path in done]
                entries = [(done[path], name.as_posix() if written[path].exists() else "") for path, name in shown]
                write_index(folder / INDEX, entries, THUMBNAIL)
    if not all(done[video.path].error for video in videos):
        print(f"note: {NO_REFERENCE if reference is None else NO_PROBABILITY}", file=sys.stderr)
    return 2 if any(done[video.path].error for video in videos) else 0


def _record(settings: DetectSettings, encoder: Encoder, detector: Detector) -> dict[str, object]:
    """Returns what all verdicts of a file share."""
    record: dict[str, object] = {
        "encoder": encoder.digest,
        "weights": detector.attributes["alignment_sha256"],
        "landmarks": settings.landmarks,
    }
    if settings.faces:
        record["faces"] = settings.faces
    if settings.reference is not None:
        with local_file(settings.reference) as file:
            record["reference"] = file_sha256(file)
        record |= {"two_sided": settings.two_sided, "false_alarms": list(settings.rates)}
    return record


def _resume(
    results: FilePath,
    record: Mapping[str, object],
    videos: Collection[str],
    missing: Collection[str],
    retry_failed: str,
) -> dict[str, Entry]:
    """Reads the results of earlier runs, and drops what is scored again: retried failures, and videos without a page.

    A last line that a killed run left incomplete is dropped, too.

    Args:
      results: the file, which need not exist.
      record: settings of this run.
      videos: paths of the videos of this run; results of others are kept.
      missing: those whose page is missing, or of other settings.
      retry_failed: which failures to retry, from errors.RETRIED.

    Returns:
      The entries of the finished videos.

    Raises:
      UserError: the file holds verdicts of other settings, or something else.
    """
    data = results.read_bytes() if results.exists() else b""
    done: dict[str, Entry] = {}
    kept = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            fields = json.loads(line)
            entry, found = Entry.of(fields), dict(fields["settings"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"line {number} is not a verdict ({one_line(error)})"
            raise UserError(f"{results}: {reason}; name another file") from None
        if different := [name for name in sorted({*record, *found}) if found.get(name) != record.get(name)]:
            before, now = (one_line(settings.get(different[0])) for settings in (found, record))
            reason = f"holds verdicts with other settings ({different[0]}: {before} instead of {now})"
            raise UserError(f"{results}: {reason}; name another file")
        again = bool(entry.error) or entry.path in missing
        if failed := entry.error or entry.no_page:
            again = again and Failure(entry.path, "", failed, entry.passing).retried(retry_failed)
        if not again or entry.path not in videos:
            done[entry.path] = entry
            kept.append(line + b"\n")
    if b"".join(kept) != data:
        with atomic_write(results) as temporary:
            temporary.write_bytes(b"".join(kept))
    return done


def _write_pages(page: FilePath, video: Path, verdict: Verdict, frame: Float[np.ndarray, " T"], settings: str) -> None:
    """Writes a video's page, after a small picture of its most suspicious second for the index."""
    shown = None
    for time, picture in timed_pictures(video):
        if shown is not None and time > verdict.worst_second[0]:
            break
        shown = picture
    assert shown is not None, "a scored video has pictures"
    height, width = shown.shape[:2]
    size = (THUMBNAIL_WIDTH, max(round(height * THUMBNAIL_WIDTH / width), 1))
    small = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    )
    with atomic_write(page.with_suffix(THUMBNAIL)) as temporary:
        temporary.write_bytes(jpeg.tobytes())
    write_page(page, video, verdict, frame, settings)
