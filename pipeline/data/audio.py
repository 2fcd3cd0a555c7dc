"""Audio files as the shards hold them: mono 16-bit PCM at one rate.

Shapes: S = samples of a block, C = channels of the source.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.data.decoding import AudioStream, Source, open_audio, source_name
from pipeline.data.unusable import UnusableAudio
from pipeline.errors import PipelineError

WAV_HEADER_BYTES = 44
FULL_SCALE = 32768
BYTES_PER_FRAME = 2
SILENT_BELOW_DBFS = -80.0  # a peak of 3 steps of 16 bits: dither and DC offsets of dead recordings
CLIPPED_SHARE = 0.9
"""Of the samples that are not 0: a clip with more of them at full scale is `clipped`.

It finds samples at another scale, such as float samples up to 32768: more than 99% of them are beyond 1. Loud sound
stays below: 7% at most in 86 recordings, 54% in music's distribution of samples 24 dB too loud, 84% in a sine 12 dB
too loud.
"""
CHANNELS = ("mean", "first")
"""Ways to make one channel of several: their mean, or the first alone."""
SHORT_CLIPS = ("repeat", "pad")
"""Ways to fill a window that is longer than the clip; see `fit_window`."""
_RESAMPLED_AT_ONCE = 1 << 24
"""Samples. soxr crashes where it would give 2 ** 31 of them, as for a block of a file at a few hertz."""
_EXACT_SAMPLES = 1 << 22  # squares of 16 bits are at most 2 ** 30, float64 counts to 2 ** 53
_MAX_WAV_BYTES = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A decoded clip."""

    wav: bytes
    """A whole WAV file: 44 bytes of header, then 16-bit mono PCM. One buffer, because clips may be hours long."""
    sample_rate_hz: int
    source_sample_rate_hz: int
    source_channels: int
    peak_dbfs: float
    """Of the 16-bit samples, against 32768."""
    rms_dbfs: float

    @property
    def samples_S(self) -> NDArray[np.int16]:
        """The samples, a read-only view of the WAV."""
        return np.frombuffer(self.wav, "<i2", offset=WAV_HEADER_BYTES)


def read_recording(source: Source, *, sample_rate_hz: int, min_duration_s: float, channels: str = "mean") -> Recording:
    """The mean of a file's channels, or the first, at `sample_rate_hz`, decoded and resampled (soxr HQ) by blocks.

    source: as of `open_audio`. channels: one of `CHANNELS`. Raises UnusableAudio for audio that
    `decoding.open_audio` refuses, and for audio that is too short, too long, silent, clipped or not finite. Raises
    PipelineError when the file itself cannot be read, which is a matter of the disk and not of the clip, and
    ValueError for other `channels`.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels {channels!r}; one of {', '.join(CHANNELS)} was expected")
    try:
        with open_audio(source) as audio:
            clip = Clip(audio, sample_rate_hz, channels)
            for block_SC in audio.blocks:
                clip.add(block_SC)
            clip.end()
            clip.check(min_duration_s)
            return clip.recording()
    except MemoryError as error:
        name = source_name(source)
        raise PipelineError(f"{name}: memory ran out while it was decoded; give the job more memory") from error


class Clip:
    """A clip in the making: blocks of a source go in, and one channel of 16 bits at `sample_rate_hz` comes out.

    After the last block, call `end`, then `check` where unusable sound matters, and `recording`.
    """

    def __init__(self, audio: AudioStream, sample_rate_hz: int, channels: str) -> None:
        self.source_sample_rate_hz, self._source_channels = audio.sample_rate_hz, audio.channels
        self._sample_rate_hz = sample_rate_hz
        # A product with constant weights is the mean of the channels: 0.23 ms for 10 s of stereo, numpy's mean takes
        # 6.5.
        self._weights_C = np.full(audio.channels, 1 / audio.channels, np.float32)
        self._is_first = audio.channels == 1 or channels == "first"
        self._resampler = None
        if (source_hz := audio.sample_rate_hz) != sample_rate_hz:
            self._resampler = soxr.ResampleStream(source_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
        self._most_frames = max(1, _RESAMPLED_AT_ONCE * source_hz // sample_rate_hz)
        self._wav = io.BytesIO()
        self._wav.write(bytes(WAV_HEADER_BYTES))
        self._levels = _Levels()
        self._channels_peak = 0.0  # of all channels, as long as their mean is silent
        self.decoded = 0
        """Frames of the source."""

    def add(self, block_SC: NDArray[np.float32]) -> None:
        """Append frames of the source. Raises UnusableAudio for samples that are not finite, or too many."""
        for first in range(0, len(block_SC), self._most_frames):
            self._add(block_SC[first : first + self._most_frames])

    def _add(self, block_SC: NDArray[np.float32]) -> None:
        self.decoded += len(block_SC)
        if self._is_first:
            self._write(np.ascontiguousarray(block_SC[:, 0]), is_last=False)
            return
        self._write(block_SC @ self._weights_C, is_last=False)
        if self._levels.peak_dbfs < SILENT_BELOW_DBFS:
            self._channels_peak = max(self._channels_peak, float(block_SC.max()), -float(block_SC.min()))

    def end(self) -> None:
        """Append what is left in the resampler."""
        self._write(np.empty(0, np.float32), is_last=True)
        header = wav_header(self.frames, self._sample_rate_hz)
        self._wav.seek(0)
        self._wav.write(header)
        self._wav.seek(0, io.SEEK_END)

    def _write(self, mono_S: NDArray[np.float32], *, is_last: bool) -> None:
        if self._resampler is not None:
            mono_S = self._resampler.resample_chunk(mono_S, last=is_last)
        if not np.isfinite(mono_S).all():  # a NaN or infinite sample stays so in the mean and the filter
            raise UnusableAudio("not_finite", f"NaN or infinite samples before frame {self.decoded}")
        samples_S = to_int16(mono_S)
        self._levels.add(samples_S)
        self._wav.write(samples_S.astype("<i2", copy=False).data)
        if self._wav.tell() > _MAX_WAV_BYTES:
            raise UnusableAudio("too_long", "more than 4 GB of samples")

    @property
    def frames(self) -> int:
        """Samples so far, at the new rate."""
        return (self._wav.tell() - WAV_HEADER_BYTES) // BYTES_PER_FRAME

    def check(self, min_duration_s: float) -> None:
        """Raise UnusableAudio for a clip that is empty, too short, silent or clipped."""
        if self.decoded == 0 or self.frames == 0:
            raise UnusableAudio("empty", f"{self.decoded} frames")
        if self.decoded < min_duration_s * self.source_sample_rate_hz:
            duration_s = self.decoded / self.source_sample_rate_hz
            raise UnusableAudio("too_short", f"{duration_s:.3f} s of at least {min_duration_s:g} s")
        self._levels.check(dbfs(self._channels_peak * FULL_SCALE))

    def recording(self) -> Recording:
        """The clip with its levels, after `end`."""
        return Recording(
            wav=self._wav.getvalue(),
            sample_rate_hz=self._sample_rate_hz,
            source_sample_rate_hz=self.source_sample_rate_hz,
            source_channels=self._source_channels,
            peak_dbfs=self._levels.peak_dbfs,
            rms_dbfs=dbfs(math.sqrt(self._levels.energy / max(1, self.frames))),
        )


@dataclass(slots=True)
class _Levels:
    """Peak, energy and clipped samples of a clip."""

    peak: int = 0
    energy: int = 0
    at_full_scale: int = 0
    """Samples."""
    not_zero: int = 0
    """Samples."""

    def add(self, samples_S: NDArray[np.int16]) -> None:
        """Count more samples, in any number."""
        if len(samples_S) == 0:
            return
        peak = max(int(samples_S.max()), -int(samples_S.min()))
        self.peak = max(self.peak, peak)
        self.energy += _energy(samples_S)
        self.not_zero += int(np.count_nonzero(samples_S))
        if peak >= FULL_SCALE - 1:
            at_full_scale_S = (samples_S >= FULL_SCALE - 1) | (samples_S <= 1 - FULL_SCALE)
            self.at_full_scale += int(np.count_nonzero(at_full_scale_S))

    @property
    def peak_dbfs(self) -> float:
        return dbfs(self.peak)

    def check(self, channels_peak_dbfs: float) -> None:
        """Raise UnusableAudio for a clip that is silent or clipped. channels_peak_dbfs: of its loudest channel."""
        if self.peak_dbfs < SILENT_BELOW_DBFS:
            if channels_peak_dbfs >= SILENT_BELOW_DBFS:
                detail = f"the mean's peak is {self.peak_dbfs:.1f} dBFS, a channel's {channels_peak_dbfs:.1f} dBFS"
                raise UnusableAudio("out_of_phase", f"{detail}; shards.channels: first keeps one")
            raise UnusableAudio("silent", f"peak {self.peak_dbfs:.1f} dBFS")
        if self.at_full_scale > CLIPPED_SHARE * self.not_zero:
            share = self.at_full_scale / self.not_zero
            raise UnusableAudio("clipped", f"{share:.0%} of the samples are at full scale; are they scaled to 1?")


def fit_window(samples_S: NDArray[Any], frames: int, short_clips: str) -> NDArray[Any]:
    """The window (frames,) that begins with these samples; of fewer samples `short_clips` says what follows them.

    `repeat` begins again with the first, as often as it takes, as ms-clap does; `pad` adds silence. Use the
    model's `short_clips`. Raises ValueError for any other way.
    """
    if short_clips not in SHORT_CLIPS:
        raise ValueError(f"short_clips {short_clips!r}; one of {', '.join(SHORT_CLIPS)} was expected")
    if short_clips == "repeat" or len(samples_S) >= frames:
        return np.resize(samples_S, frames)
    return np.pad(samples_S, (0, frames - len(samples_S)))


def to_int16(samples_S: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples of full scale 1 as 16-bit integers, rounded and clipped; those of a 16-bit source come back exactly."""
    scaled_S = np.clip(samples_S, -1, 1)  # first, for float samples may be too large to multiply
    scaled_S *= np.float32(FULL_SCALE)
    np.rint(scaled_S, out=scaled_S)
    np.minimum(scaled_S, FULL_SCALE - 1, out=scaled_S)
    return scaled_S.astype(np.int16)


def _energy(samples_S: NDArray[np.int16]) -> int:
    """The exact sum of squares, the same on every machine: float64 holds that of _EXACT_SAMPLES in any order of adding.

    Three times as fast as in int64, which no BLAS multiplies.
    """
    parts = (samples_S[first : first + _EXACT_SAMPLES] for first in range(0, len(samples_S), _EXACT_SAMPLES))
    return sum(int(wide_S @ wide_S) for wide_S in (part.astype(np.float64) for part in parts))


def dbfs(amplitude: float) -> float:
    """A 16-bit amplitude in decibels below full scale; minus infinity for zero."""
    return 20 * math.log10(amplitude / FULL_SCALE) if amplitude > 0 else -math.inf


def wav_header(frames: int, sample_rate_hz: int) -> bytes:
    """The 44 bytes before the samples of a mono 16-bit WAV file; always as many, so that PCM offsets are known."""
    data = frames * BYTES_PER_FRAME
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", WAV_HEADER_BYTES - 8 + data, b"WAVE",
        b"fmt ", 16, 1, 1, sample_rate_hz, sample_rate_hz * BYTES_PER_FRAME, BYTES_PER_FRAME, 8 * BYTES_PER_FRAME,
        b"data", data,
    )  # fmt: skip


def flac_of(recording: Recording) -> bytes:
    """The recording as a 16-bit FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, recording.samples_S, recording.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
