"""Decode the formats that libsndfile does not read (MP4, Matroska, ...) with FFmpeg's libraries, through PyAV.

The samples are those that the command `ffmpeg -i FILE` writes: an encoder's delay at the start is cut off.
"""

# S = samples of a block, C = channels

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.data.layouts import AudioBytes, end_of_sound, top_boxes
from pipeline.data.unusable import TRUNCATED_BY_S, UnusableAudio

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


class Track:
    """The audio track of an open file, and how much of it was decoded and lost."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        self._container, self._stream = container, stream
        self.sample_rate_hz, self.channels = 0, 0
        """Of the first frame: the header of HE-AAC names half the rate."""
        self.decoded = 0
        """Samples."""
        self.lost_s = 0.0
        """Length of the packets that could not be decoded, and of the gaps between time stamps."""
        self.end_s = 0.0
        """End of the last frame, by its time stamp."""
        self.packet_bytes = 0
        self.error: str | None = None
        """Why reading ended before the end of the file."""

    def frames(self) -> Iterator[av.AudioFrame]:
        """The decoded frames. Raises UnusableAudio where the sample rate or the channels change."""
        for packet in self._packets():
            self.packet_bytes += packet.size
            try:
                frames = self._stream.decode(packet)
            except av.error.MemoryError:
                raise
            except av.FFmpegError:
                self.lost_s += float((packet.duration or 0) * packet.time_base)
                continue
            for frame in frames:
                self._count(frame)
                yield frame

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self._container.demux(self._stream)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            self.error = error.strerror

    def _count(self, frame: av.AudioFrame) -> None:
        rate_hz, channels = frame.sample_rate, frame.layout.nb_channels
        start_s = self.end_s if frame.time is None else frame.time
        if self.decoded == 0:
            self.sample_rate_hz, self.channels, self.end_s = rate_hz, channels, start_s
        if (rate_hz, channels) != (self.sample_rate_hz, self.channels):
            found = f"{rate_hz} Hz and {channels} channels after {self.sample_rate_hz} Hz and {self.channels}"
            raise UnusableAudio("changes_format", found)
        if start_s - self.end_s > TRUNCATED_BY_S:  # time stamps are rounded to milliseconds in some formats
            self.lost_s += start_s - self.end_s
        self.end_s = start_s + frame.samples / rate_hz
        self.decoded += frame.samples

    def announced_frames(self) -> int | None:
        """The frames of the track by the file's header, once its first frame was decoded; None as `announced_s`."""
        end_s = self.announced_s()
        start_s = self.end_s - self.decoded / self.sample_rate_hz
        return None if end_s is None or end_s <= start_s else round((end_s - start_s) * self.sample_rate_hz)

    def announced_s(self) -> float | None:
        """The time at which the track ends by the file's header; None where that is open or an estimate."""
        stream, kind = self._stream, self._container.format.name
        start_s = self.end_s - self.decoded / self.sample_rate_hz - self.lost_s
        if kind.startswith("mov") or kind == "wv":
            if stream.duration is None or stream.time_base is None:
                return None
            return start_s + float(stream.duration * stream.time_base)
        if not kind.startswith("matroska"):
            return None
        try:
            hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        except ValueError:
            duration = self._container.duration if len(self._container.streams) == 1 else None
            return None if duration is None else duration / av.time_base


@contextlib.contextmanager
def open_track(file: BinaryIO, demuxer: str) -> Iterator[tuple[Track, Iterator[NDArray[np.float32]]]]:
    """The only audio track of a file, and its samples in blocks (S, C) of full scale 1, one block per frame.

    demuxer: FFmpeg's name of the format. Raises UnusableAudio, as the blocks do, for a file that is undecodable,
    truncated, damaged, inconsistent or of changing format, and for one without an audio track or with several.
    """
    data = AudioBytes(file)
    _check_size(data, demuxer)
    file.seek(0)
    try:
        container = av.open(file, "r", format=demuxer, metadata_errors="replace")
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        name = av.format.ContainerFormat(demuxer, "r").long_name
        raise UnusableAudio("undecodable", f"{error.strerror}, as {name}; is it cut off?") from error
    with container:
        streams = container.streams.audio
        if not streams:
            raise UnusableAudio("undecodable", "it has no audio track")
        if len(streams) > 1:
            advice = "ffmpeg -i IN -map 0:a:0 -c copy OUT keeps the first"
            raise UnusableAudio("undecodable", f"it has {len(streams)} audio tracks; {advice}")
        track = Track(container, streams[0])
        frames = track.frames()
        first = next(frames, None)
        if first is None:
            raise UnusableAudio("undecodable", f"its audio track cannot be decoded ({track.error or 'no samples'})")
        yield track, _blocks(track, first, frames, data, demuxer)


def _blocks(
    track: Track, first: av.AudioFrame, frames: Iterator[av.AudioFrame], data: AudioBytes, demuxer: str
) -> Iterator[NDArray[np.float32]]:
    resampler = av.AudioResampler(format="flt")  # of the sample format alone
    frame: av.AudioFrame | None = first
    while frame is not None:
        for converted in resampler.resample(frame):
            yield converted.to_ndarray().reshape(-1, track.channels).astype(np.float32, copy=False)
        frame = next(frames, None)
    for converted in resampler.resample(None):
        yield converted.to_ndarray().reshape(-1, track.channels).astype(np.float32, copy=False)
    _check_end(track, data, demuxer)


def _check_size(data: AudioBytes, demuxer: str) -> None:
    """Raise UnusableAudio for a file that is not as long as it says, or that others were joined to."""
    if demuxer == "mov":
        boxes = top_boxes(data)
        if sum(name == b"moov" for name, _ in boxes) > 1:
            raise UnusableAudio("inconsistent", "it is several files that were joined, of which FFmpeg reads the first")
        for name, end in boxes:
            if name in (b"mdat", b"moof", b"moov") and end > data.size:
                raise UnusableAudio("truncated", f"{data.size} of at least {end} bytes")
    if demuxer == "asf":
        place = data.at(0, 1 << 16).find(_ASF_FILE_PROPERTIES)
        header = data.at(place + 40, 8) if place >= 0 else b""
        announced = struct.unpack("<Q", header)[0] if len(header) == 8 else 0
        if announced and announced > data.size:
            raise UnusableAudio("truncated", f"{data.size} of {announced} bytes")
        if announced and any(block.strip(b"\0") for block in data.blocks(announced, data.size)):
            raise UnusableAudio("inconsistent", f"{data.size - announced} bytes follow the end that its header names")


def _check_end(track: Track, data: AudioBytes, demuxer: str) -> None:
    """Raise UnusableAudio where more than a tenth of a second of the track was lost."""
    lost_s = track.lost_s
    if demuxer in ("aac", "amr") and track.packet_bytes:  # frames one after another: other bytes took the place of some
        others = end_of_sound(data) - track.packet_bytes - data.tags_bytes()
        lost_s += max(0, others) * track.decoded / track.sample_rate_hz / track.packet_bytes
    if lost_s > TRUNCATED_BY_S:
        raise UnusableAudio("damaged", f"{lost_s:.1f} s of the track cannot be decoded")
    announced_s = track.announced_s()
    if announced_s is not None and announced_s - track.end_s > TRUNCATED_BY_S:
        raise UnusableAudio("truncated", f"{track.end_s:.1f} of {announced_s:.1f} s")
    if track.error is not None:
        raise UnusableAudio("truncated", f"after {track.end_s:.1f} s it cannot be read further ({track.error})")
