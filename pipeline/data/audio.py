"""Decoding of whatever libsndfile reads to what the shards hold: mono 16-bit PCM at one rate.

Shapes: S = samples of a block, C = channels of the source.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.data.containers import moved

WAV_HEADER_BYTES = 44
FULL_SCALE = 32768
BYTES_PER_FRAME = 2
SILENT_BELOW_DBFS = -80.0  # a peak of 3 steps of 16 bits: dither and DC offsets of dead recordings
TRUNCATED_BY_S = 0.1  # headers are off by a few frames in files that are whole
CHANNELS = ("mean", "first")
"""What is kept of a file's channels: their mean, or the first alone."""
SHORT_CLIPS = ("repeat", "pad")
"""What fills the window of a clip that is shorter than it; `fit_window` says what each does."""
_BLOCK_SAMPLES = 1 << 19  # 2 MB of float32: a three-hour file needs no more memory for decoding than a short one
_EXACT_SAMPLES = 1 << 22  # squares of 16 bits are at most 2 ** 30, float64 counts to 2 ** 53
_UNKNOWN_BYTES = 0x7FFFF000  # what encoders that write to a pipe put as the length
_OGG_TAIL_BYTES = 2 * 65_307  # the largest page, whole wherever the file ends, and something after it
_DATA_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+)\s*\(should be (\d+)\)", re.MULTILINE)
_RF64_FRAMES = re.compile(r"does not match value from 'ds64' chunk of (\d+)")


class UnusableAudio(Exception):
    """A clip's audio cannot be used; `reason` is one of `catalogs.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


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


def read_recording(
    source: str | Path | bytes, *, sample_rate_hz: int, min_duration_s: float, channels: str = "mean"
) -> Recording:
    """The mean of a file's channels, or the first, at `sample_rate_hz`, decoded and resampled (soxr HQ) by blocks.

    source: the file's path, or its bytes. channels: one of `CHANNELS`. Raises UnusableAudio for audio that is empty,
    undecodable, truncated, too short, too long, silent or not finite, PipelineError when the file itself cannot be
    opened, which is a matter of the disk and not of the clip, and ValueError for other `channels`.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels {channels!r}; one of {', '.join(CHANNELS)} was expected")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            is_empty = not file.read(1)
            file.seek(max(0, file.seek(0, io.SEEK_END) - _OGG_TAIL_BYTES))
            tail = file.read()
    except OSError as error:
        raise moved(str(source), error) from error
    if is_empty:
        raise UnusableAudio("empty", "file of 0 bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as audio:
            recording = _read(audio, sample_rate_hz, min_duration_s, channels)
            if audio.format == "OGG" and not ogg_ends(tail):
                raise UnusableAudio("truncated", "its last page is not marked as the end of the stream")
            return recording
    except soundfile.SoundFileError as error:
        raise UnusableAudio("undecodable", str(error)) from error


def ogg_ends(tail: bytes) -> bool:
    """True if the last bytes of an Ogg file hold a whole page that is marked as the end of a stream (RFC 3533, 6).

    libsndfile decodes what is left of a file that was cut off, without an error. Encoders set the mark; a recorder that
    was killed does not, and its files count as cut off, too.
    """
    start = len(tail)
    while (start := tail.rfind(b"OggS", 0, start)) >= 0:
        header = tail[start : start + 27]
        if len(header) == 27 and header[5] & 4:
            table = tail[start + 27 : start + 27 + header[26]]
            if len(table) == header[26] and start + 27 + len(table) + sum(table) <= len(tail):
                return True
    return False


def _read(source: soundfile.SoundFile, sample_rate_hz: int, min_duration_s: float, channels: str) -> Recording:
    wav = io.BytesIO()
    wav.write(bytes(WAV_HEADER_BYTES))
    resampler = None
    if source.samplerate != sample_rate_hz:
        resampler = soxr.ResampleStream(source.samplerate, sample_rate_hz, 1, dtype="float32", quality="HQ")
    # A product with constant weights is the mean of the channels: 0.23 ms for 10 s of stereo, numpy's mean takes 6.5.
    weights_C = np.full(source.channels, 1 / source.channels, np.float32)
    buffer_SC = np.empty((max(1, _BLOCK_SAMPLES // source.channels), source.channels), np.float32)
    decoded, peak, energy = 0, 0, 0
    while True:
        block_SC = source.read(out=buffer_SC)
        decoded += len(block_SC)
        is_last = len(block_SC) == 0
        is_one = source.channels == 1 or channels == "first"
        mono_S = np.ascontiguousarray(block_SC[:, 0]) if is_one else block_SC @ weights_C
        if resampler is not None:
            mono_S = resampler.resample_chunk(mono_S, last=is_last)
        if not np.isfinite(mono_S).all():  # a NaN or infinite sample stays so in the mean and the filter
            raise UnusableAudio("not_finite", f"NaN or infinite samples before frame {decoded}")
        samples_S = to_int16(mono_S)
        if len(samples_S):
            peak = max(peak, int(samples_S.max()), -int(samples_S.min()))
            energy += _energy(samples_S)
            wav.write(samples_S.astype("<i2").data)
        if wav.tell() > 0xFFFFFFFF:
            raise UnusableAudio("too_long", "more than 4 GB of samples")
        if is_last:
            break
    frames = (wav.tell() - WAV_HEADER_BYTES) // BYTES_PER_FRAME
    if decoded == 0 or frames == 0:
        raise UnusableAudio("empty", f"{decoded} frames")
    announced = source.frames if source.frames < 1 << 48 else 0  # streamed FLAC announces the largest number
    announced = max(announced, announced_frames(source.extra_info, decoded))
    if announced - decoded > TRUNCATED_BY_S * source.samplerate:
        raise UnusableAudio("truncated", f"{decoded} of {announced} frames")
    if decoded < min_duration_s * source.samplerate:
        raise UnusableAudio("too_short", f"{decoded / source.samplerate:.3f} s of at least {min_duration_s:g} s")
    peak_dbfs = dbfs(peak)
    if peak_dbfs < SILENT_BELOW_DBFS:
        raise UnusableAudio("silent", f"peak {peak_dbfs:.1f} dBFS")
    wav.seek(0)
    wav.write(wav_header(frames, sample_rate_hz))
    return Recording(
        wav=wav.getvalue(),
        sample_rate_hz=sample_rate_hz,
        source_sample_rate_hz=source.samplerate,
        source_channels=source.channels,
        peak_dbfs=peak_dbfs,
        rms_dbfs=dbfs(math.sqrt(energy / frames)),
    )


def announced_frames(log: str, decoded: int) -> int:
    """Frames that a WAV, RF64, AIFF or AU header announces, where libsndfile noticed that the file holds fewer.

    It reads a file that ends early without an error and notes it in its log, which is read here.
    """
    if match := _RF64_FRAMES.search(log):
        return int(match[1])
    match = _DATA_CHUNK.search(log)
    if match is None or int(match[1]) >= _UNKNOWN_BYTES or int(match[2]) == 0:
        return decoded
    return round(decoded * int(match[1]) / int(match[2]))


def fit_window(samples_S: NDArray[Any], frames: int, short_clips: str) -> NDArray[Any]:
    """The window (frames,) that begins with these samples; of fewer samples `short_clips` says what follows them.

    `repeat` begins again with the first, as often as it takes, as ms-clap does; `pad` adds silence. What a model was
    trained with is its `short_clips`. Raises ValueError for any other way.
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
