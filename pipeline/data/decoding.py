"""Decode all the sound that a file holds, block by block, with libsndfile, or with FFmpeg where that cannot.

`sections` finds what libsndfile would leave out, and `ffmpeg` compares what was decoded with what a file announces.
"""

# S = samples of a block, C = channels

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.data.containers import moved
from pipeline.data.layouts import AudioBytes, is_adts
from pipeline.data.sections import UNKNOWN_FRAMES, Section, sections_of
from pipeline.data.sound_files import quiet_libmpg123
from pipeline.data.unusable import TRUNCATED_BY_S, UnusableAudio
from pipeline.errors import PipelineError

_BLOCK_SAMPLES = 1 << 19  # 2 MB of float32: a three-hour file needs no more memory for decoding than a short one
_MP3_BLOCK_SAMPLES = 1 << 21
"""More, as soundfile seeks after each read. libmpg123 then parses the frames since the last one in its index, which
has an entry for every few minutes of a day of sound. Blocks of `_BLOCK_SAMPLES` take 3.5 ms more for 10 s of sound.
"""
_READ_BYTES = 1 << 20
_FFMPEG_FORMATS = (  # offset and bytes of a file's head, and FFmpeg's name of the format
    *((4, name, "mov") for name in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"wvpk", "wv"),
)
_OTHER_FORMATS = (  # first bytes and name of what people have under the names of audio files
    (b"MAC ", "a Monkey's Audio file"),
    (b"<", "a text file"),
    (b"{", "a text file"),
)
READ_FORMATS = "WAV, FLAC, Ogg, MP3, AIFF, AU, CAF, MP4/M4A, AAC, Matroska/WebM, WMA, AMR and WavPack are read"
CONVERT = 'for f in FOLDER/*; do ffmpeg -i "$f" "${f%.*}.flac"; done converts a folder'


Source = str | Path | bytes | BinaryIO
"""An audio file: its path, its bytes, or an open file such as `sound_files.byte_range` gives."""


@dataclass(frozen=True, slots=True)
class AudioStream:
    """An opened audio file."""

    sample_rate_hz: int
    channels: int
    blocks: Iterator[NDArray[np.float32]]
    """All samples in blocks (S, C) of full scale 1; a block is overwritten by the next. Raises as `open_audio`."""
    frames: int | None
    """Frames by the file's headers; None where only decoding shows it."""
    seek: Callable[[int], int] | None
    """Lets `blocks` continue with another frame, and returns its number: the last one's at most. None for formats whose
    decoder gives the same samples only from the beginning on."""
    fault: UnusableAudio | None
    """Why the file counts as cut off, by its headers; raised after the last block."""


@contextlib.contextmanager
def open_audio(source: Source, *, up_to_break: bool = False) -> Iterator[AudioStream]:
    """The sound of a file.

    up_to_break: give the blocks of a file that was cut off before the error, where libsndfile decodes them. Otherwise
    such a file is refused when it is opened.

    Raises:
        UnusableAudio: the file is empty, not regular, undecodable, truncated, damaged, inconsistent or of changing
            format.
        PipelineError: the file itself cannot be read, which is a fault of the disk and not of the clip.
    """
    with _opened(source) as file, contextlib.ExitStack() as stack:
        with _explained(source, file):
            data = AudioBytes(file)
            if not data.at(0, 1):
                raise UnusableAudio("empty", "file of 0 bytes")
            demuxer = _ffmpeg_format(data)
            if demuxer is not None:
                from pipeline.data import ffmpeg  # takes 0.15 s, and few datasets need it

                track, pieces = stack.enter_context(ffmpeg.open_track(file, demuxer))
                sample_rate_hz, channels, blocks = (
                    track.sample_rate_hz,
                    track.channels,
                    _gathered(pieces, track.channels),
                )
                frames, seek, fault = track.announced_frames(), None, None
            else:
                sections = sections_of(file, data)
                first = stack.enter_context(sections[0].open())
                fault = next((section.fault for section in sections if section.fault is not None), None)
                if fault is not None and not up_to_break:
                    raise fault
                sample_rate_hz, channels, blocks = first.samplerate, first.channels, _blocks(first, sections)
                frames = _frames(first, sections)
                seek = _seek(source, file, first) if _is_seekable(first, sections[0]) else None
        yield AudioStream(sample_rate_hz, channels, _explained_blocks(source, file, blocks), frames, seek, fault)


def _frames(first: soundfile.SoundFile, sections: Sequence[Section]) -> int | None:
    """The frames of all sections, the first of which is open; None if the headers do not say."""
    counts = [section.held_frames for section in sections]
    if counts[0] is None and first.frames < UNKNOWN_FRAMES:
        counts[0] = first.frames
    return sum(count for count in counts if count) if all(counts) else None


def _is_seekable(sound: soundfile.SoundFile, section: Section) -> bool:
    return section.is_seekable and sound.frames < UNKNOWN_FRAMES


def _seek(source: Source, file: BinaryIO, sound: soundfile.SoundFile) -> Callable[[int], int]:
    """See `AudioStream.seek`."""

    def seek(frame: int) -> int:
        with _explained(source, file):
            return sound.seek(min(frame, sound.frames))

    return seek


def _ffmpeg_format(data: AudioBytes) -> str | None:
    """FFmpeg's name of a format that libsndfile does not read; None for other files."""
    start = data.tags_bytes()
    head = data.at(start, 16)
    if is_adts(data, start):
        return "aac"
    return next((name for place, magic, name in _FFMPEG_FORMATS if head[place : place + len(magic)] == magic), None)


def _opened(source: Source) -> contextlib.AbstractContextManager[BinaryIO]:
    """The open file, unbuffered, which is closed unless the caller opened it."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        return contextlib.nullcontext(source)
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # opening a named pipe would wait for its other end
            raise UnusableAudio("undecodable", "not a regular file")
        return open(source, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(source, error) from error


@contextlib.contextmanager
def _explained(source: Source, file: BinaryIO) -> Iterator[None]:
    """Turn errors of libsndfile into UnusableAudio, or into PipelineError where the disk fails.

    libsndfile does not report errors of the disk. So after any error the whole file is read once.
    """
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


def source_name(source: Source) -> str:
    """The name of an audio file in messages."""
    return str(source) if isinstance(source, str | Path) else "a clip"


def _unreadable(source: Source, error: OSError) -> PipelineError:
    """The error for a file that cannot be read, which is not the clip's fault."""
    name = source_name(source)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PipelineError(f"{name}: too many files are open; raise the limit (ulimit -n)")
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOTDIR):
        return moved(name, error)
    return PipelineError(f"{name}: cannot be read ({error.strerror}); check the disk that it is on")


def _reason(file: BinaryIO, error: soundfile.SoundFileError) -> str:
    """Why libsndfile cannot decode a file, and which formats are read."""
    file.seek(0)
    head = file.read(16)
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    names = [name for magic, name in _OTHER_FORMATS if head.startswith(magic)]
    found = f": it is {names[0]}, which is not read" if names else ""
    return f"{text.rstrip('.')}{found}; {READ_FORMATS}, {CONVERT}"


def _explained_blocks(
    source: Source, file: BinaryIO, blocks: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    with _explained(source, file):
        yield from blocks


def _gathered(frames: Iterator[NDArray[np.float32]], channels: int) -> Iterator[NDArray[np.float32]]:
    """The samples of short frames in long blocks."""
    buffer_SC = _buffer(channels)
    filled = 0
    for frame_SC in frames:
        while len(frame_SC):
            count = min(len(frame_SC), len(buffer_SC) - filled)
            buffer_SC[filled : filled + count] = frame_SC[:count]
            frame_SC, filled = frame_SC[count:], filled + count
            if filled == len(buffer_SC):
                yield buffer_SC
                filled = 0
    if filled:
        yield buffer_SC[:filled]


def _blocks(first: soundfile.SoundFile, sections: Sequence[Section]) -> Iterator[NDArray[np.float32]]:
    """The blocks of all sections, the first of which is open; see `AudioStream.blocks`."""
    rate_hz, channels = first.samplerate, first.channels
    buffer_SC = _buffer(channels, _MP3_BLOCK_SAMPLES if first.format == "MP3" else _BLOCK_SAMPLES)
    for number, section in enumerate(sections):
        with section.open() if number else contextlib.nullcontext(first) as sound:
            if (sound.samplerate, sound.channels) != (rate_hz, channels):
                found = f"{sound.samplerate} Hz and {sound.channels} channels after {rate_hz} Hz and {channels}"
                raise UnusableAudio("changes_format", found)
            decoded = 0
            while len(block_SC := _read(sound, buffer_SC)):
                decoded += len(block_SC)
                yield block_SC
            if section.fault is not None:
                raise section.fault
            if _is_seekable(sound, section):
                decoded = sound.tell()
            held = section.held_frames
            if held is None:
                held = sound.frames if sound.frames < UNKNOWN_FRAMES else 0
            if decoded and held - decoded > TRUNCATED_BY_S * rate_hz:
                raise UnusableAudio("truncated", f"{decoded} of {held} frames")


def _buffer(channels: int, samples: int = _BLOCK_SAMPLES) -> NDArray[np.float32]:
    return np.empty((max(1, samples // channels), channels), np.float32)


def _read(sound: soundfile.SoundFile, buffer_SC: NDArray[np.float32]) -> NDArray[np.float32]:
    if sound.format != "MP3":
        return sound.read(out=buffer_SC)
    with quiet_libmpg123():
        return sound.read(out=buffer_SC)
