"""Decoding of a media file's sound into a 16 kHz mono waveform on the timeline of `decode`."""

import dataclasses
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import av
import av.container
import av.stream
import numpy as np
import soxr
from jaxtyping import Float

from avh_shards.clip import SAMPLE_RATE
from avh_shards.errors import ClipError
from avh_shards.silence import first_sound
from extract.media.decode import MIN_DECODED, RESTART, opened, packets, timeline_start

MAX_SECONDS = 3600  # of sound
GAP = 0.02  # seconds by which samples may deviate from their timestamps; beyond, silence is added or samples dropped
SAMPLE_RATES = (1000, 768_000)  # Hz
SINGLE_CHANNEL = 1.05  # energy of the channels' sum / energy of the loudest: below, the others are silent or cancel it
DILUTED = SAMPLE_RATE // 100  # samples by which the mix may start later than a channel, as in official mixes
NO_SIZE = 0x7FFF0000  # bytes: WAV sizes from here on are placeholders that recorders write before the size is known


@dataclasses.dataclass(frozen=True)
class Sound:
    """Sound of a file at 16 kHz."""

    waveform: Float[np.ndarray, " S"]  # mono, in [-1, 1]
    silent: int  # samples before the first one louder than SILENCE in any channel; S if all are silent


def read_audio(path: str | os.PathLike) -> Float[np.ndarray, " S"]:
    """Decodes a file's sound and returns only the waveform of `read_sound`.

    Args:
      path: a media file.

    Returns:
      Mono samples at 16 kHz, float32 with full scale 1, from the time of the first frame of `iterate_video`.

    Raises:
      ClipError: the file is missing, damaged or cut short, has no sound, or has more than MAX_SECONDS of it.
    """
    return read_sound(path).waveform


def read_sound(path: str | os.PathLike) -> Sound:
    """Decodes the best audio stream of a file, as FFmpeg ranks them.

    Returns:
      The mean of the channels, resampled by soxr at quality HQ. The loudest channel replaces the mean where the others
      add nothing to it: they are silent (voice in one channel) or cancel it (opposite signs).

    Raises:
      ClipError: the file is missing, damaged or cut short, or has no sound.
    """
    runs = _decode_sound(path, itertools.repeat(None))
    if any(run.loudest_alone() is not None for run in runs):
        runs = _decode_sound(path, [run.loudest_alone() for run in runs])
    waveform = np.concatenate([piece for run in runs for piece in run.mixed])
    silent = first_sound(waveform)
    starts = np.cumsum([0, *(sum(map(len, run.mixed)) for run in runs)])
    in_channels = min(
        (int(start) + run.first for start, run in zip(starts, runs, strict=False) if run.first is not None),
        default=silent,
    )
    return Sound(waveform, in_channels if silent - in_channels > DILUTED else silent)


class _Run:
    """Converter to 16 kHz mono for a stretch of sound with a fixed sample rate and number of channels."""

    def __init__(self, rate: int, channels: int, channel: int | None):
        """Prepares to mix all channels, or to use only `channel`."""
        self.rate = rate
        self.channel = channel
        self.length = 0  # samples at `rate`
        self.mixed: list[np.ndarray] = []  # 16 kHz
        self.first: int | None = None  # first 16 kHz sample that is loud in any channel
        self.energies = np.zeros(channels)
        self.energy = 0.0  # of the mean of the channels
        self._waiting: list[np.ndarray] = []  # [C, N] at `rate`
        self._scouted = 0  # 16 kHz samples
        self._mixer = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._scout = soxr.ResampleStream(rate, SAMPLE_RATE, channels, dtype="float32", quality="HQ")

    def add(self, samples: Float[np.ndarray, "C N"]) -> None:
        """Appends samples in [-1, 1]."""
        self.length += samples.shape[1]
        self._waiting.append(samples)
        if sum(part.shape[1] for part in self._waiting) >= self.rate:
            self.mix()

    def add_silence(self, count: int) -> None:
        """Appends zeros, a second at a time."""
        for start in range(0, count, self.rate):
            self.add(np.zeros((len(self.energies), min(self.rate, count - start)), np.float32))

    def mix(self, last: bool = False) -> None:
        """Resamples the waiting samples; the call with `last` flushes the resamplers.

        Samples wait for a whole second because resampling a second costs hardly more than resampling a frame.
        """
        samples = np.concatenate([np.zeros((len(self.energies), 0), np.float32), *self._waiting], axis=1)
        self._waiting.clear()
        mean = samples.mean(axis=0)
        self.energies += np.square(samples, dtype=np.float64).sum(axis=1)
        self.energy += np.square(mean, dtype=np.float64).sum()
        mixed = mean if self.channel is None else np.ascontiguousarray(samples[self.channel])
        self.mixed.append(self._mixer.resample_chunk(mixed, last=last))
        if self.first is None and len(samples) > 1:
            heard = np.abs(self._scout.resample_chunk(np.ascontiguousarray(samples.T), last=last))
            loudest = heard.max(axis=1, initial=0)
            if (index := first_sound(loudest)) < len(loudest):
                self.first = self._scouted + index
            self._scouted += len(loudest)

    def loudest_alone(self) -> int | None:
        """Returns the loudest channel if the others add nothing to it, else None."""
        loudest = int(self.energies.argmax())
        together = len(self.energies) ** 2 * self.energy
        single = len(self.energies) > 1 and together < SINGLE_CHANNEL * self.energies[loudest]
        return loudest if single else None


def _decode_sound(path: str | os.PathLike, channels: Iterable[int | None]) -> list[_Run]:
    """Decodes a file's sound into runs of constant sample rate and number of channels.

    Args:
      path: a media file.
      channels: channel that replaces the mix, for each run; None for the mean.
    """
    channels = iter(channels)
    runs: list[_Run] = []
    with opened(path, "audio") as (container, stream):
        start = timeline_start(container)
        began = 0.0  # seconds: start of the last run
        kind = None
        to_float = av.AudioResampler(format="fltp")  # sample format only
        for frame in itertools.chain.from_iterable(packet.decode() for packet in packets(container, stream)):
            if kind != (frame.sample_rate, frame.layout.name, frame.format.name):
                kind = frame.sample_rate, frame.layout.name, frame.format.name
                to_float = av.AudioResampler(format="fltp")
            if not runs or (runs[-1].rate, len(runs[-1].energies)) != (frame.sample_rate, frame.layout.nb_channels):
                if not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                    raise ClipError("audio", f"its sound has {frame.sample_rate} samples per second")
                if runs:
                    began += runs[-1].length / runs[-1].rate
                    runs[-1].mix(last=True)
                runs.append(_Run(frame.sample_rate, frame.layout.nb_channels, next(channels, None)))
            run = runs[-1]
            gap = 0 if frame.time is None else round((frame.time - start - began) * run.rate) - run.length
            if began + (run.length + gap) / run.rate > MAX_SECONDS:
                raise ClipError("audio", f"its sound, or a gap in it, is longer than {MAX_SECONDS} s")
            beginning = len(runs) == 1 and not run.length
            if gap > GAP * run.rate or (beginning and gap > 0):
                run.add_silence(gap)
            samples = np.concatenate([part.to_ndarray() for part in to_float.resample(frame)], axis=1)
            run.add(samples[:, -gap if gap < -GAP * run.rate else 0 :])
        if not runs or not began + runs[-1].length:
            raise ClipError("audio", "its audio stream has no samples")
        _check_sound_whole(path, container, stream, began + runs[-1].length / runs[-1].rate)
    runs[-1].mix(last=True)
    return runs


def _check_sound_whole(
    path: str | os.PathLike, container: av.container.InputContainer, stream: av.AudioStream, seconds: float
) -> None:
    """Rejects sound that is shorter than the file's header says, for formats whose header gives a length."""
    if container.format.name == "wav":
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            head = file.read(8)
        promised = int.from_bytes(head[4:], "little") + 8
        if head.startswith(b"RIFF") and size < MIN_DECODED * promised and promised < NO_SIZE:
            raise ClipError("audio", f"is cut short: it has {size} of {promised} bytes")
    if container.format.name.startswith("mov") and stream.duration:
        promised = float(stream.duration * (stream.time_base or 0))
        if seconds < MIN_DECODED * promised - RESTART:
            raise ClipError("audio", f"its sound is cut short: {seconds:.2f} of {promised:.2f} s can be decoded")
