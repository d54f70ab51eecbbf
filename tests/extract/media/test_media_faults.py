"""Odd but complete media from practice: pictures and sound match the clean clip, or fail with a reason."""

import itertools
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from avh_shards import ClipMeta
from avh_shards.errors import ClipError
from extract import prepare as clip_module
from extract.media import iterate_video, read_audio
from extract.media.audio import read_sound
from extract.prepare import PrepareSettings, prepare_clip
from tests.media import pretended_face, ramp, read_frames, rotate, shown_times, tone, write_media

STEP = 0.011  # seconds: time resolution of the ramp's bar
LATE = 0.04  # largest offset of sound and picture in seconds
SILENT = 800  # samples at 16 kHz before the sound starts
RATE = 48_000
FRAMES = 100
LOSSLESS = "-c:v libx264 -crf 4 -preset veryfast -bf 0"
B_FRAMES = "-c:v libx264 -crf 4 -preset veryfast -bf 3 -b_strategy 0 -g 25"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with the clean clip base.mkv: four seconds of a ramp, and noise after a short silence."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    sound = np.cumsum(rng.normal(0, 1, 4 * RATE))  # red noise: most of it survives any codec and rate
    sound = sound - np.convolve(sound, np.ones(960) / 960, mode="same")
    sound = (0.2 * sound / np.abs(sound).max()).astype(np.float32)
    sound[: SILENT * 3] = 0
    times = [k / 25 for k in range(FRAMES)]
    write_media(folder / "base.mkv", ramp(times), times, sound[None], RATE, audio_codec="pcm_s16le")
    return folder


@pytest.fixture(scope="module")
def ffmpeg(folder):
    """Returns a function that runs ffmpeg on the clean clip or others and returns the path of its output."""
    if subprocess.run(["which", "ffmpeg"], capture_output=True, check=False).returncode:
        pytest.skip("ffmpeg is not installed")

    def run(options: str, name: str, source: str = "-i base.mkv") -> Path:
        subprocess.run(
            ["ffmpeg", "-y", "-v", "error", *source.split(), *options.split(), name],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return folder / name

    return run


def picture_lag(path: Path, count: int = FRAMES) -> np.ndarray:
    """Returns the lag in seconds of each of the first `count` frames at 25 Hz behind its own time."""
    shown = shown_times(read_frames(path))[:count]
    assert len(shown) >= count - 1
    return np.arange(len(shown)) / 25 - shown


def sound_lag(folder: Path, path: Path) -> np.ndarray:
    """Returns the lag in seconds of stretches of the clean clip's sound."""
    clean, found = read_audio(folder / "base.mkv"), read_audio(path)
    found = np.pad(found, (1600, 4800))
    lags = []
    for start in range(1600, 56_000, 6400):
        piece, place = clean[start : start + 3200], found[start : start + 6400]
        products = np.abs(np.correlate(place, piece, mode="valid"))
        norms = np.sqrt(np.convolve(place**2, np.ones(len(piece)), mode="valid"))
        lags.append((int((products / (norms + 1e-6)).argmax()) - 1600) / 16_000)
    return np.array(lags)


ORDERS = {
    "b_frames.avi": (B_FRAMES, "-i base.mkv"),
    "sixteen_b_frames.avi": (f"{LOSSLESS} -bf 16 -b_strategy 0 -x264-params b-pyramid=0", "-i base.mkv"),
    "hevc.avi": ("-c:v libx265 -preset veryfast -crf 8 -x265-params log-level=error -tag:v hvc1", "-i base.mkv"),
    "mpeg4.avi": ("-c:v mpeg4 -q:v 1 -bf 2", "-i base.mkv"),
    "remuxed.mkv": ("-c copy", "-fflags +genpts -i b_frames.avi"),
    "remuxed.mov": ("-c copy", "-fflags +genpts -i b_frames.avi"),
    "invented.mp4": (
        "-map 0:v -map 1:a -c:v copy -c:a aac",
        "-fflags +genpts -r 25 -i raw.h264 -i base.mkv",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_pictures_without_presentation_times(folder, ffmpeg, name):
    if name.startswith("remuxed"):
        ffmpeg(f"{B_FRAMES} -c:a pcm_s16le", "b_frames.avi")
    if name.startswith("invented"):
        ffmpeg(f"{B_FRAMES} -an", "raw.h264")
    options, source = ORDERS[name]
    path = ffmpeg(options if "-c:a" in options or "copy" in options else f"{options} -c:a pcm_s16le", name, source)
    late = 0 if path.suffix == ".avi" else LATE  # AVI stores order instead of times; remuxed files are a frame late
    assert np.abs(picture_lag(path)).max() <= late + STEP
    lost = 2 if name == "invented.mp4" else 0  # an edit list drops two pictures, also with ffmpeg
    frames = list(iterate_video(path))
    assert len({id(frame) for frame in frames}) >= FRAMES - lost
    shown = shown_times(read_frames(path, "native"))
    assert (np.diff(shown) > 0).all()


@pytest.mark.parametrize("name", ["varying.mp4", "varying.mkv"])
def test_true_times_of_reordered_pictures_stay(ffmpeg, name):
    path = ffmpeg(f"-vf select='mod(n\\,3)*mod(n\\,7)' -vsync vfr {B_FRAMES} -c:a aac", name)
    times = np.array([k / 25 for k in range(FRAMES) if k % 3 and k % 7])
    shown = shown_times(read_frames(path))
    wanted = np.arange(len(shown)) / 25
    nearest = np.abs(times[None] - wanted[:, None]).min(axis=1)
    assert (np.abs(shown - wanted) <= nearest + LATE + STEP).all()


def test_sound_of_joined_pieces(folder, ffmpeg):
    pieces = [f"piece_{k}.mp4" for k in range(8)]
    for k, piece in enumerate(pieces):
        ffmpeg(f"{LOSSLESS} -c:a aac -b:a 192k", piece, f"-ss {0.48 * k:.2f} -t 0.48 -i base.mkv")
    (folder / "pieces.txt").write_text("".join(f"file {piece}\n" for piece in pieces))
    path = ffmpeg("-c copy", "joined.mp4", "-f concat -i pieces.txt")
    assert np.abs(sound_lag(folder, path)).max() <= LATE
    assert np.abs(picture_lag(path, 96)).max() <= 2 * LATE + STEP  # ffmpeg itself delays some of them by two frames


@pytest.mark.parametrize("clock", [0.98, 1.02])
def test_a_clock_of_sound_that_is_fast_or_slow(folder, clock):
    """A recorder's sound card delivers more or fewer samples per second than it reports."""
    samples = read_audio(folder / "base.mkv")
    path = folder / f"clock_{clock}.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 16_000)
        counted = np.interp(np.arange(0, len(samples), 1 / clock), np.arange(len(samples)), samples)
        for place in range(0, len(counted) - 800, 800):
            part = (counted[place : place + 800] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, round(place / clock), Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert abs(len(read_audio(path)) - len(samples)) < LATE * 16_000 + 800
    assert np.abs(sound_lag(folder, path)).max() <= LATE


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("-c:a aac -ar 44100", "-c:a aac -ar 48000"),
        ("-c:a mp2 -ar 48000", "-c:a mp2 -ar 32000"),
        ("-c:a aac -ac 1", "-c:a aac -ac 2"),
    ],
)
def test_sound_that_changes_its_rate_or_layout(folder, ffmpeg, first, second):
    a = ffmpeg(f"-t 2 {LOSSLESS} {first} -muxdelay 0", "a.ts")
    b = ffmpeg(f"{LOSSLESS} {second} -muxdelay 0 -output_ts_offset 2", "b.ts", "-ss 2 -i base.mkv")
    (folder / "changes.ts").write_bytes(a.read_bytes() + b.read_bytes())
    assert abs(len(read_audio(folder / "changes.ts")) / 16_000 - 4) < 0.05
    assert np.abs(sound_lag(folder, folder / "changes.ts")).max() <= LATE
    assert np.abs(picture_lag(folder / "changes.ts")).max() <= LATE + STEP


def test_a_recorder_that_starts_anew(folder, ffmpeg):
    """Concatenates two recordings with the same start time in one file."""
    a = ffmpeg(f"-t 2 {B_FRAMES} -c:a mp2", "a.ts")
    b = ffmpeg(f"{B_FRAMES} -c:a mp2", "b.ts", "-ss 2 -i base.mkv")
    (folder / "anew.ts").write_bytes(a.read_bytes() + b.read_bytes())
    assert np.abs(sound_lag(folder, folder / "anew.ts")).max() <= LATE
    assert np.abs(picture_lag(folder / "anew.ts")).max() <= LATE + STEP


@pytest.fixture
def prepare(monkeypatch):
    """Returns a function that prepares a clip without searching for faces."""
    monkeypatch.setitem(clip_module.FINDERS, "dlib-tracked", pretended_face)
    return lambda path, **options: prepare_clip(ClipMeta(path.name), path.parent, PrepareSettings(**options))


@pytest.mark.parametrize(
    "options",
    [
        "-output_ts_offset 3 -c:a aac x.mkv",
        "-output_ts_offset 40 -c:a pcm_s16le x.mkv",
        "-output_ts_offset 0.5 -c:v libvpx -b:v 2M -deadline realtime -cpu-used 8 -c:a libopus x.webm",
        "-output_ts_offset 3 -c:a aac x.flv",
        "-g 25 -c:a aac -f segment -segment_time 1 part_%d.mkv",
    ],
)
def test_files_that_do_not_start_at_zero(folder, ffmpeg, prepare, options):
    *options, name = options.split()
    ffmpeg(" ".join([*LOSSLESS.split(), *options]), name)
    path = folder / name.replace("%d", "2")
    seconds = 1 if name.startswith("part") else 4
    assert abs(len(prepare(path).crops) - 25 * seconds) <= 3
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError, match=r"cut short|no samples|cannot be decoded"):
        prepare(path)


@pytest.fixture(scope="module")
def picture(folder) -> np.ndarray:
    """Returns a picture that looks different in every orientation, [48, 64, 3]."""
    coarse = np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)


def as_ffmpeg_shows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, *shape)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


STRAIGHT = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
ON_ITS_SIDE = [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]


@pytest.mark.parametrize("orientation", STRAIGHT + ON_ITS_SIDE)
def test_all_orientations_are_shown_as_ffmpeg_does(folder, ffmpeg, picture, orientation):
    whole = write_media(folder / "upright.mp4", [picture] * 5)
    turned = rotate(whole, folder / "turned.mp4", orientation)
    frames = read_frames(turned)
    assert frames.shape == (5, 64, 48, 3) if orientation in ON_ITS_SIDE else (5, 48, 64, 3)
    shown = as_ffmpeg_shows(turned, frames.shape[1:])
    assert min(correlation(a, b) for a, b in zip(frames, shown, strict=True)) > 0.99


@pytest.mark.parametrize("turn", ["rotate=90", "rotate=180", "flip=horizontal"])
def test_an_orientation_that_only_the_first_picture_carries(folder, ffmpeg, picture, turn):
    stored = {
        "rotate=90": np.rot90(picture, -1),
        "rotate=180": picture[::-1, ::-1],
        "flip=horizontal": picture[:, ::-1],
    }[turn]
    write_media(folder / "stored.mp4", [np.ascontiguousarray(stored)] * 8)
    path = ffmpeg(f"-c copy -bsf:v h264_metadata=display_orientation=insert:{turn}", "sei.mp4", "-i stored.mp4")
    frames = read_frames(path)
    assert len(frames) == 8
    assert min(correlation(frame, picture) for frame in frames) > 0.99


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        ("-vf scale=1024:18,setsar=2/3", "low.mp4", (27, 1024)),
        ("-vf scale=720:16,setsar=64/45", "pal.mp4", (16, 1024)),
        ("-vf scale=512:16,setsar=2/1", "half.mkv", (16, 1024)),
        ("-vf scale=704:16,setsar=10/11", "ntsc.ts", (18, 704)),
        ("-vf setsar=1000/1", "absurd.mp4", (16, 1024)),
        ("-vf setsar=1215/1216", "nearly_square.mp4", (16, 1024)),
        ("-vf setsar=0/1", "unknown.mp4", (16, 1024)),
    ],
)
def test_pixels_that_are_not_square(ffmpeg, options, name, size):
    codec = "" if "-c:v" in options else LOSSLESS
    path = ffmpeg(f"{options} {codec} -c:a mp2", name)
    frames = read_frames(path)
    assert frames.shape[1:3] == size
    shown = shown_times(frames) * 1024 / size[1]
    assert np.abs(shown - np.arange(len(shown)) / 25).max() <= LATE + STEP


CHANNELS = {
    "opposite.mov": "pan=stereo|c0=c0|c1=-1*c0",
    "nearly_opposite.mov": "pan=stereo|c0=c0|c1=-0.9*c0",
    "left.mkv": "pan=stereo|c0=c0",
    "right.mkv": "pan=stereo|c1=c0",
    "centre.mkv": "pan=5.1|FC=c0",
    "opposite_rears.mkv": "pan=5.1|BL=c0|BR=-1*c0",
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_cancel_or_dilute_each_other(folder, ffmpeg, name):
    path = ffmpeg(f"{LOSSLESS} -filter_complex [0:a]{CHANNELS[name]}[a] -map 0:v -map [a] -c:a pcm_s16le", name)
    sound, clean = read_sound(path), read_sound(folder / "base.mkv")
    assert sound.silent == clean.silent
    np.testing.assert_allclose(sound.waveform, clean.waveform, rtol=0, atol=1e-3)


def test_silence_ends_with_the_first_channel_that_is_heard(tmp_path):
    """A whisper in one of six channels is hidden by their mean."""
    sound = tone(1, silence=0.5, channels=6)
    sound[2, 1600:8000] = 0.002 * np.sin(np.arange(6400))
    sound = read_sound(write_media(tmp_path / "x.mkv", sound=sound, audio_codec="pcm_s16le"))
    assert abs(sound.silent - 1600) <= 2
    assert np.abs(sound.waveform[:7900]).max() < 0.0005


@pytest.mark.parametrize("second", [1.0, 0.3, 0.05, -0.5])
def test_ordinary_stereo_is_the_mean(tmp_path, second):
    sound = tone(1, silence=0.1, channels=2)
    sound[1] = second * sound[1] + 0.01 * np.random.default_rng(0).normal(size=16_000)
    found = read_sound(write_media(tmp_path / "x.wav", sound=sound, audio_codec="pcm_s16le"))
    np.testing.assert_allclose(found.waveform, sound.mean(axis=0), rtol=0, atol=1e-4) if second > 0 else None
    assert found.silent <= 1600


def test_one_picture_with_sound(folder, ffmpeg, prepare):
    path = ffmpeg(f"-frames:v 1 {LOSSLESS} -c:a aac", "one_picture.mp4")
    with pytest.raises(ClipError, match="its video is a single picture"):
        prepare(path)


@pytest.mark.parametrize("size", ["32:24", "96:72", "64:24", "24:48"])
def test_a_size_that_changes_midway_stretches_nothing(folder, ffmpeg, picture, size):
    write_media(folder / "still.mp4", [picture] * 10)
    a = ffmpeg("-c:v mpeg2video -q:v 1 -muxdelay 0", "a.ts", "-i still.mp4")
    width, height = map(int, size.split(":"))
    pad = f"pad={width}:{height}:-1:-1" if width * 3 != height * 4 else "null"
    inner = f"scale={width}:{height}:force_original_aspect_ratio=decrease,{pad}"
    options = f"-vf {inner} -c:v mpeg2video -q:v 1 -muxdelay 0 -output_ts_offset 0.4"
    b = ffmpeg(options, "b.ts", "-i still.mp4")
    (folder / "sizes.ts").write_bytes(a.read_bytes() + b.read_bytes())
    frames = read_frames(folder / "sizes.ts")
    assert frames.shape[1:3] == (48, 64)
    shown = frames[-3].astype(int)
    lit = np.argwhere(shown.max(axis=2) > 40)
    (top, left), (bottom, right) = lit.min(axis=0), lit.max(axis=0) + 1
    assert (right - left) / (bottom - top) == pytest.approx(4 / 3, abs=0.35)
    inside = cv2.resize(frames[-3][top:bottom, left:right], (64, 48))
    assert correlation(inside, picture) > 0.85


@pytest.mark.parametrize("rate", [25, 30, 50])
def test_crops_at_another_rate_are_taken_by_time(tmp_path, rate):
    levels = np.linspace(20, 220, 2 * rate).astype(np.uint8)
    write_media(
        tmp_path / "x_roi.mp4",
        [np.full((96, 96, 3), level, np.uint8) for level in levels],
        [k / rate for k in range(2 * rate)],
    )
    write_media(tmp_path / "x.wav", sound=tone(2), audio_codec="pcm_s16le")
    crops = prepare_clip(ClipMeta("x.mp4"), tmp_path, PrepareSettings(input="roi")).crops
    assert len(crops) == 50
    assert np.abs(crops.mean(axis=(1, 2)) - np.linspace(20, 220, 50)).max() < 6


def test_a_wav_file_of_which_half_is_missing(tmp_path):
    path = write_media(tmp_path / "x.wav", sound=tone(2), audio_codec="pcm_s16le")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError, match="cut short"):
        read_audio(path)
    data = whole.index(b"data") + 4
    unknown = b"\xff" * 4  # sizes in a file written to a pipe
    path.write_bytes(whole[:4] + unknown + whole[8:data] + unknown + whole[data + 4 :])
    assert len(read_audio(path)) == 32_000


NAMES = ["12:30.mp4", "file:x.mp4", "concat:x.mp4", "subfile,,start,0,end,9,,:x.mp4", "x%03d.mp4", "-i.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(tmp_path, monkeypatch, prepare, name):
    write_media(tmp_path / "x.mp4", ramp([0, 1, 2]), sound=tone(0.12)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(prepare(Path(name)).crops) == 3


@pytest.mark.parametrize("name", ["file:{}/x.mp4", "http:/host/x.mp4", "concat:x.mp4|x.mp4", "data:x"])
def test_no_name_leads_to_a_protocol(tmp_path, monkeypatch, name):
    write_media(tmp_path / "x.mp4", ramp([0, 1, 2]), sound=tone(0.12))
    monkeypatch.chdir(tmp_path)
    for read in (read_frames, read_audio):
        with pytest.raises(ClipError, match="no such file"):
            read(name.format(tmp_path))


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n", "v=0\nc=IN IP4 {}\n"])
def test_lists_of_other_files(tmp_path, text):
    path = write_media(tmp_path / "x.mp4", ramp([0, 1, 2]), sound=tone(0.12))
    for target in (path.name, path, f"file:{path}", "http://localhost:9/x.mp4"):
        (tmp_path / "list.m3u8").write_text(text.format(target))
        with pytest.raises(ClipError, match=r"list of other files|cannot be decoded|holds no"):
            read_audio(tmp_path / "list.m3u8")
