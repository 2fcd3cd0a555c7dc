"""Decode all the sound that a file holds, block by block, with libsndfile.

libsndfile reads as much as a header says. Where `layouts` finds more in the file, libsndfile is given that.
"""

# S = samples of a block, C = channels

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.data import layouts
from pipeline.data.containers import moved
from pipeline.data.layouts import AudioBytes, MpegPart, SoundData
from pipeline.errors import PipelineError

TRUNCATED_BY_S = 0.1  # headers are off by a few frames in files that are whole
_BLOCK_SAMPLES = 1 << 19  # 2 MB of float32: a three-hour file needs no more memory for decoding than a short one
_READ_BYTES = 1 << 20
_UNKNOWN_FRAMES = 1 << 48  # streamed FLAC and MP3 announce the largest number
_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip
_OTHER_FORMATS = (  # offset, bytes and name of what people have under the names of audio files
    (4, b"ftyp", "an MP4 or M4A file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"0&\xb2u", "a Windows Media file"),
    (0, b"\xff\xf1", "an AAC file"),
    (0, b"\xff\xf9", "an AAC file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"<", "a text file"),
    (0, b"{", "a text file"),
)
_stderr_lock = threading.Lock()


class UnusableAudio(Exception):
    """A clip's audio cannot be used; `reason` is one of `catalogs.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Stream(soundfile.SoundFile):
    """A sound file that is only read forwards: soundfile seeks after every read, which an unknown length forbids."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Section:
    """A stretch of a file that libsndfile decodes as one."""

    open: Callable[[], AbstractContextManager[soundfile.SoundFile]]
    held_frames: int | None = None
    """Frames in the file; None where libsndfile's own count is right."""


@dataclass(frozen=True, slots=True)
class AudioStream:
    """An opened audio file."""

    sample_rate_hz: int
    channels: int
    blocks: Iterator[NDArray[np.float32]]
    """All samples in blocks (S, C) of full scale 1; a block is overwritten by the next. Raises as `open_audio`."""


@contextlib.contextmanager
def open_audio(source: str | Path | bytes) -> Iterator[AudioStream]:
    """The sound of a file, given by its path or its bytes.

    Raises UnusableAudio for a file that is empty, not regular, undecodable, truncated, damaged, inconsistent or of
    changing format, and PipelineError if the file itself cannot be read, a matter of the disk and not of the clip.
    """
    with _opened(source) as file, contextlib.ExitStack() as stack:
        with _explained(source, file):
            data = AudioBytes(file)
            if not data.at(0, 1):
                raise UnusableAudio("empty", "file of 0 bytes")
            sections = _sections(file, data)
            first = stack.enter_context(sections[0].open())
        yield AudioStream(first.samplerate, first.channels, _blocks(source, file, first, sections))


def _opened(source: str | Path | bytes) -> BinaryIO:
    """The open file, unbuffered."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # opening a named pipe would wait for its other end
            raise UnusableAudio("undecodable", "not a regular file")
        return open(source, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(source, error) from error


@contextlib.contextmanager
def _explained(source: str | Path | bytes, file: BinaryIO) -> Iterator[None]:
    """Errors of libsndfile become UnusableAudio; PipelineError, if the disk is to blame, which it does not report."""
    try:
        try:
            yield
        except (soundfile.SoundFileError, UnusableAudio) as error:
            file.seek(0)
            while file.read(_READ_BYTES):
                pass
            if isinstance(error, UnusableAudio):
                raise
            if "malloc" in str(error):
                raise MemoryError from error
            raise UnusableAudio("undecodable", _reason(file, error)) from error
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str | Path | bytes, error: OSError) -> PipelineError:
    """The error for a file that cannot be read, which is not the clip's fault."""
    name = "a clip" if isinstance(source, bytes) else str(source)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PipelineError(f"{name}: too many files are open; raise the limit (ulimit -n)")
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOTDIR):
        return moved(name, error)
    return PipelineError(f"{name}: cannot be read ({error.strerror}); check the disk that it is on")


def _reason(file: BinaryIO, error: soundfile.SoundFileError) -> str:
    """Why libsndfile cannot decode a file, with what the file is instead where that is known."""
    file.seek(0)
    head = file.read(16)
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    names = [name for offset, magic, name in _OTHER_FORMATS if head[offset : offset + len(magic)] == magic]
    return f"{text.rstrip('.')}: it is {names[0]}, which is not read" if names else text


def _blocks(
    source: str | Path | bytes, file: BinaryIO, first: soundfile.SoundFile, sections: Sequence[_Section]
) -> Iterator[NDArray[np.float32]]:
    """The blocks of all sections, the first of which is open; see `AudioStream.blocks`."""
    rate_hz, channels = first.samplerate, first.channels
    buffer_SC = np.empty((max(1, _BLOCK_SAMPLES // channels), channels), np.float32)
    with _explained(source, file):
        for number, section in enumerate(sections):
            with section.open() if number else contextlib.nullcontext(first) as sound:
                if (sound.samplerate, sound.channels) != (rate_hz, channels):
                    found = f"{sound.samplerate} Hz and {sound.channels} channels after {rate_hz} Hz and {channels}"
                    raise UnusableAudio("changes_format", found)
                decoded = 0
                while len(block_SC := _read(sound, buffer_SC)):
                    decoded += len(block_SC)
                    yield block_SC
                held = section.held_frames
                if held is None:
                    held = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
                if decoded and held - decoded > TRUNCATED_BY_S * rate_hz:
                    raise UnusableAudio("truncated", f"{decoded} of {held} frames")


def _read(sound: soundfile.SoundFile, buffer_SC: NDArray[np.float32]) -> NDArray[np.float32]:
    if sound.format != "MP3":
        return sound.read(out=buffer_SC)
    with _quiet_libmpg123():
        return sound.read(out=buffer_SC)


# --- sections --------------------------------------------------------------------------------------------------------


def _sections(file: BinaryIO, data: AudioBytes) -> list[_Section]:
    """The stretches of a file, at least one, that are decoded one after another."""
    start = 0
    while size := layouts.tag_bytes(data, start):
        start += size
    magic = data.at(start, 4)
    if magic == b"OggS":
        return _ogg_sections(file, data)
    if magic == b"fLaC":
        return [_flac_section(file, data, start)]
    if (sound := layouts.sound_data(data)) is not None:
        return [_sound_data_section(file, data, sound)]
    if parts := layouts.mpeg_parts(data, start):
        return _mpeg_sections(file, parts, start)
    return [_Section(lambda: _whole(file))]


def _whole(file: BinaryIO, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    """The whole file as libsndfile reads it, by descriptor: by path it would also believe the name's extension."""
    file.seek(0)
    with _quiet_libmpg123():
        return kind(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False)


def _ogg_sections(file: BinaryIO, data: AudioBytes) -> list[_Section]:
    links = layouts.ogg_links(data)
    if not all(layouts.ogg_ends(data, *link) for link in links):
        with _whole(file) if len(links) == 1 else contextlib.nullcontext():  # what is no sound at all is not truncated
            raise UnusableAudio("truncated", "its last page is not marked as the end of the stream")
    if len(links) < 2:
        return [_Section(lambda: _whole(file))]
    return [_Section(lambda part=link: soundfile.SoundFile(_range(file, *part))) for link in links]  # type: ignore[misc]


def _flac_section(file: BinaryIO, data: AudioBytes, start: int) -> _Section:
    """The FLAC stream without the tags after it, at which libFLAC would lose its way."""
    end = layouts.end_of_sound(data)
    first_sample = layouts.flac_first_sample(data, start)

    def opened() -> soundfile.SoundFile:
        return _whole(file, _Stream) if end == data.size else _Stream(_range(file, 0, end))

    if first_sample == 0:
        return _Section(opened)
    with opened() as sound:
        return _Section(opened, max(0, sound.frames - first_sample) if sound.frames < _UNKNOWN_FRAMES else 0)


def _sound_data_section(file: BinaryIO, data: AudioBytes, place: SoundData) -> _Section:
    """A WAV, AIFF, AU or CAF file; from the first sample on as raw samples, where its header says too little."""
    with _whole(file) as sound:
        rate_hz, channels, subtype, endian = sound.samplerate, sound.channels, sound.subtype, sound.endian
        frames = sound.frames
    if subtype in _SAMPLE_BYTES:
        frame_bytes = float(_SAMPLE_BYTES[subtype] * channels)
    else:
        frame_bytes = place.held / frames if frames else 1.0  # compressed in blocks
    tolerated = TRUNCATED_BY_S * rate_hz * frame_bytes
    if place.unexplained > tolerated:
        raise UnusableAudio("inconsistent", f"{place.unexplained} bytes follow the samples that its header announces")
    if place.announced is not None and place.held and place.announced - place.held > tolerated:
        expected = round(place.announced / frame_bytes)
        raise UnusableAudio("truncated", f"{round(place.held / frame_bytes)} of {expected} frames")
    if place.held - frames * frame_bytes <= tolerated:
        return _Section(lambda: _whole(file))
    if subtype not in _SAMPLE_BYTES:
        raise UnusableAudio("inconsistent", f"{place.held} bytes of {subtype} where its header announces none")
    if endian == "FILE":
        endian = "BIG" if place.is_big_endian else "LITTLE"
    held_frames = int(place.held // frame_bytes)

    def opened() -> soundfile.SoundFile:
        end = place.start + held_frames * int(frame_bytes)
        raw = _range(file, place.start, end)
        return soundfile.SoundFile(raw, "r", rate_hz, channels, subtype, endian, "RAW")

    return _Section(opened, held_frames)


def _mpeg_sections(file: BinaryIO, parts: Sequence[MpegPart], start: int) -> list[_Section]:
    """An MP3 file: whole if libmpg123 finds all that it holds, otherwise by parts, as streams of frames.

    start: where its tags end.
    """
    for part in parts:
        if part.gap_s > TRUNCATED_BY_S:
            raise UnusableAudio("damaged", f"{part.gap_bytes} bytes between its frames are no MP3")
        if (part.sample_rate_hz, part.channels) != (parts[0].sample_rate_hz, parts[0].channels):
            found = f"{part.sample_rate_hz} Hz and {part.channels} channels after {parts[0].sample_rate_hz} Hz"
            raise UnusableAudio("changes_format", f"{found} and {parts[0].channels}")
        tolerated = TRUNCATED_BY_S * part.sample_rate_hz
        missing = ((part.announced_frames or 0) - part.frames) * part.frame_samples
        if missing > tolerated:
            raise UnusableAudio("truncated", f"{part.frames} of {part.announced_frames} MP3 frames")
        if -missing > tolerated:
            part.announced_frames = None  # one without a header was joined, or the header was never filled in
    only = parts[0] if len(parts) == 1 else None
    if only is not None and len(only.ranges) == 1 and only.ranges[0][0] == start:
        held = only.samples if only.announced_frames is None else 0
        with contextlib.suppress(soundfile.LibsndfileError), _whole(file) as sound:  # it knows no APE tag at the start
            if held <= sound.frames:
                return [_Section(lambda: _whole(file), held or None)]
    return [_mpeg_section(file, part) for part in parts]


def _mpeg_section(file: BinaryIO, part: MpegPart) -> _Section:
    """A part as a stream, of which libmpg123 estimates no length."""
    if part.announced_frames is not None:
        return _Section(lambda: _streamed(file, part.ranges))
    (start, end), *others = part.ranges
    ranges = [(start + part.info_bytes, end), *others]
    return _Section(lambda: _streamed(file, ranges), part.samples)


# --- what libsndfile reads -------------------------------------------------------------------------------------------


def _range(file: BinaryIO, start: int, end: int) -> io.BufferedReader:
    """A range of an open file's bytes as a file, read by the megabyte: libsndfile asks for 8 kB at a time."""
    return io.BufferedReader(_Range(file, start, end), _READ_BYTES)


class _Range(io.RawIOBase):
    """See `_range`."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._size, self._place = file, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        try:
            self._file.seek(self._start + self._place)
            data = self._file.read(count)
        except OSError:  # libsndfile takes it for the end of the file, which `_explained` looks into
            return 0
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


@contextlib.contextmanager
def _streamed(file: BinaryIO, ranges: Sequence[tuple[int, int]]) -> Iterator[soundfile.SoundFile]:
    """Ranges of a file's bytes through a pipe, so that libmpg123 decodes up to the end instead of estimating it."""
    read_end, write_end = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, ranges, write_end), daemon=True)
    feeder.start()
    try:
        with _quiet_libmpg123():
            sound = _Stream(read_end, closefd=False)
        with sound:
            yield sound
    finally:
        os.close(read_end)  # the feeder, if it still writes, ends with a BrokenPipeError
        feeder.join()


def _feed(file: BinaryIO, ranges: Sequence[tuple[int, int]], write_end: int) -> None:
    with contextlib.suppress(OSError), open(write_end, "wb", buffering=0) as pipe:
        for start, end in ranges:
            file.seek(start)
            while start < end and (data := file.read(min(1 << 16, end - start))):
                start += len(data)
                while data:
                    data = data[pipe.write(data) :]


@contextlib.contextmanager
def _quiet_libmpg123() -> Iterator[None]:
    """Discard what libmpg123 writes to standard error: it names no file, and what it misses is counted here."""
    with _stderr_lock, open(os.devnull, "wb") as nothing:
        try:
            stderr = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
