"""Open audio with libsndfile: a whole file, a range of its bytes, or a stream of them."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import soundfile

_READ_BYTES = 1 << 20
_stderr_lock = threading.Lock()


class Stream(soundfile.SoundFile):
    """A sound file that is only read forwards: soundfile seeks after every read, which an unknown length forbids."""

    def seekable(self) -> bool:
        return False


def whole(file: BinaryIO, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    """The whole file as libsndfile reads it, by descriptor: by path it would also believe the name's extension."""
    file.seek(0)
    with quiet_libmpg123():
        return kind(file.fileno() if isinstance(file, io.FileIO) else file, closefd=False)


def byte_range(file: BinaryIO, start: int, end: int) -> io.BufferedReader:
    """A range of an open file's bytes as a file, read by the megabyte: libsndfile asks for 8 kB at a time."""
    return io.BufferedReader(_Range(file, start, end), _READ_BYTES)


class _Range(io.RawIOBase):
    """See `byte_range`."""

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
def streamed(file: BinaryIO, ranges: Sequence[tuple[int, int]]) -> Iterator[soundfile.SoundFile]:
    """Ranges of a file's bytes through a pipe, so that libmpg123 decodes up to the end instead of estimating it."""
    read_end, write_end = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, ranges, write_end), daemon=True)
    feeder.start()
    try:
        with quiet_libmpg123():
            sound = Stream(read_end, closefd=False)
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
def quiet_libmpg123() -> Iterator[None]:
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
