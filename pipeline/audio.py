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

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import PipelineError

WAV_HEADER_BYTES = 44
FULL_SCALE = 32768
BYTES_PER_FRAME = 2
SILENT_BELOW_DBFS = -80.0  # a peak of 3 steps of 16 bits: dither and DC offsets of dead recordings
TRUNCATED_BY_S = 0.1  # headers are off by a few frames in files that are whole
_BLOCK_SAMPLES = 1 << 19  # 2 MB of float32: a three-hour file needs no more memory for decoding than a short one
_UNKNOWN_BYTES = 0x7FFFF000  # what encoders that write to a pipe put as the length
_DATA_CHUNK = re.compile(r"^\s*(?:data|SSND)\s*:\s*(\d+)\s*\(should be (\d+)\)", re.MULTILINE)


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


def read_recording(path: str | Path, *, sample_rate_hz: int, min_duration_s: float) -> Recording:
    """The mean of a file's channels at `sample_rate_hz`, decoded and resampled (soxr HQ) block by block.

    Raises UnusableAudio for audio that is empty, undecodable, truncated, too short, too long, silent or not finite, and
    PipelineError when the file itself cannot be opened, which is a matter of the disk and not of the clip.
    """
    try:
        with open(path, "rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be opened ({error.strerror}); "
            "if the files moved since index_audio, delete the catalog and make it again"
        ) from error
    if is_empty:
        raise UnusableAudio("empty", "file of 0 bytes")
    try:
        with soundfile.SoundFile(path) as source:
            return _read(source, sample_rate_hz, min_duration_s)
    except soundfile.SoundFileError as error:
        raise UnusableAudio("undecodable", str(error)) from error


def _read(source: soundfile.SoundFile, sample_rate_hz: int, min_duration_s: float) -> Recording:
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
        mono_S = block_SC[:, 0] if source.channels == 1 else block_SC @ weights_C
        if resampler is not None:
            mono_S = resampler.resample_chunk(mono_S, last=is_last)
        if not np.isfinite(mono_S).all():  # a NaN or infinite sample stays so in the mean and the filter
            raise UnusableAudio("not_finite", f"NaN or infinite samples before frame {decoded}")
        samples_S = to_int16(mono_S)
        if len(samples_S):
            wide_S = samples_S.astype(np.int64)  # exact sums: the same figures on every machine
            peak = max(peak, int(np.abs(wide_S).max()))
            energy += int(wide_S @ wide_S)
            wav.write(samples_S.astype("<i2").data)
        if wav.tell() > 0xFFFFFFFF:
            raise UnusableAudio("too_long", "more than 4 GB of samples")
        if is_last:
            break
    frames = (wav.tell() - WAV_HEADER_BYTES) // BYTES_PER_FRAME
    if decoded == 0 or frames == 0:
        raise UnusableAudio("empty", f"{decoded} frames")
    announced = source.frames if source.frames < 1 << 48 else 0  # streamed FLAC announces the largest number
    announced = max(announced, round(decoded * _announced_ratio(source.extra_info)))
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


def _announced_ratio(log: str) -> float:
    """Bytes of samples that a WAV or AIFF header announces over those in the file.

    libsndfile reads a file that ends early without an error and notes it in its log, which is read here.
    """
    match = _DATA_CHUNK.search(log)
    if match is None or int(match[1]) >= _UNKNOWN_BYTES or int(match[2]) == 0:
        return 1.0
    return int(match[1]) / int(match[2])


def to_int16(samples_S: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples of full scale 1 as 16-bit integers, rounded and clipped; those of a 16-bit source come back exactly."""
    scaled_S = np.rint(samples_S * np.float32(FULL_SCALE))
    return np.clip(scaled_S, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


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
