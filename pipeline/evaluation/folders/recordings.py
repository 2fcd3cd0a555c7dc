"""The recordings below a folder, and the windows of each as a stream, at any length."""

# S = samples

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.adapters.walking import AUDIO_EXTENSIONS, walk
from pipeline.data.audio import fit_window
from pipeline.data.stretches import Stretch, read_stretches
from pipeline.data.unusable import UnusableAudio
from pipeline.errors import PipelineError

_WAITING_WINDOWS = 16
"""Decoded windows of a recording that wait to be embedded; at most, for its thread waits, too."""
_STOP_CHECK_S = 0.2


@dataclass(frozen=True, slots=True)
class RecordingFile:
    """An audio file as it is found in the folder."""

    name: str
    """Path relative to the folder, with slashes; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a recording."""

    number: int
    """It begins at `number` times the hop."""
    samples_S: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class End:
    """The end of a recording, or of the part of it that can be decoded."""

    duration_s: float
    """How much was decoded."""
    fault: UnusableAudio | PipelineError | None = None
    """Why decoding ended, or why no window can be used; PipelineError where the file itself cannot be read."""


@dataclass(frozen=True, slots=True)
class WindowForm:
    """How windows are taken from recordings, for one model."""

    sample_rate_hz: int
    channels: str
    """As in `pipeline.data.audio.CHANNELS`."""
    window_frames: int
    hop_s: float
    """At most the window's length."""
    short_clips: str
    """How a shorter recording, or its last window, is filled; as in `pipeline.data.audio.SHORT_CLIPS`."""

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return self.window_frames / self.sample_rate_hz


def find_recordings(folder: Path) -> list[RecordingFile]:
    """Return the audio files below a folder, sorted by name; hidden ones are left out.

    Raises:
        PipelineError: There is no such folder, it holds no audio file, or a folder cannot be listed.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "not found"
        raise PipelineError(f"{folder}: {found}; give the folder of a split or of recordings")
    files = [
        _recording_file(prefix + entry.name, entry)
        for prefix, entries in walk(folder)
        for entry in entries
        if os.path.splitext(entry.name)[1].lower() in AUDIO_EXTENSIONS
    ]
    if not files:
        kinds = " ".join(sorted(AUDIO_EXTENSIONS))
        raise PipelineError(f"{folder}: no audio file below it; give a folder with files named {kinds}")
    return sorted(files, key=lambda file: file.name)


def _recording_file(name: str, entry: os.DirEntry[str]) -> RecordingFile:
    try:
        status = entry.stat()
    except OSError:  # gone since, or a link that leads nowhere: decoding it says so
        return RecordingFile(name, 0, 0)
    return RecordingFile(name, status.st_size, status.st_mtime_ns)


# --- decoding --------------------------------------------------------------------------------------------------------


def stream_windows(path: Path, form: WindowForm, first: int = 0) -> Iterator[Window | End]:
    """Yield the windows of a recording from number `first` on, and then its end, in the memory of a few windows.

    The last window is the first that reaches the recording's end, and may be shorter; `fit_window` fills it. Windows
    that are silent, clipped or not finite are left out. If all are, the fault of the end is theirs.
    """
    before = max(0, first - 1)  # the window before the first shows how far the recording is covered
    stretches = (
        Stretch(number * form.hop_s, number * form.hop_s + form.window_s) for number in itertools.count(before)
    )
    duration_s, usable = 0.0, first > 0
    fault: UnusableAudio | PipelineError | None = None
    try:
        pieces = read_stretches(path, stretches, sample_rate_hz=form.sample_rate_hz, channels=form.channels)
        for number, piece in enumerate(pieces, start=before):
            end_s = piece.stretch.start_s + piece.clip.decoded / piece.clip.source_sample_rate_hz
            is_last = piece.error is None and piece.missing > 0
            if is_last and end_s <= duration_s:  # the window before reaches the end
                break
            duration_s = max(duration_s, end_s)
            if number < first:
                continue
            try:
                if piece.error is not None:
                    raise piece.error
                piece.clip.check(min_duration_s=0)
            except UnusableAudio as error:
                fault = fault or error
            else:
                usable = True
                samples_S = piece.clip.recording().samples_S
                yield Window(number, fit_window(samples_S, form.window_frames, form.short_clips))
        if usable:
            fault = None
        elif duration_s == 0:
            fault = UnusableAudio("empty", "0 frames")
    except (UnusableAudio, PipelineError) as error:
        fault = error
    yield End(duration_s, fault)


# --- threads ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stream:
    """The items that a thread has decoded of one recording."""

    file: RecordingFile
    items: queue.Queue[Window | End | BaseException] = field(default_factory=lambda: queue.Queue(_WAITING_WINDOWS))


def decode_ahead(
    folder: Path, files: Iterable[tuple[RecordingFile, int]], form: WindowForm, threads: int
) -> Iterator[tuple[RecordingFile, Window | End]]:
    """Yield the windows and ends of recordings in their order, decoded by threads while the caller embeds.

    Args:
        folder: that of the files.
        files: each with the number of the first window that is wanted of it.
        form: of the windows.
        threads: recordings decoded at once; the decoders release Python's lock.
    """
    stopped = threading.Event()

    def put(stream: _Stream, item: Any) -> bool:
        while not stopped.is_set():
            try:
                stream.items.put(item, timeout=_STOP_CHECK_S)
                return True
            except queue.Full:
                continue
        return False

    def decode(stream: _Stream, first: int) -> None:
        try:
            for item in stream_windows(folder / stream.file.name, form, first):
                if not put(stream, item):
                    return
        except BaseException as error:  # raised where it is awaited, instead of waiting forever
            put(stream, error)

    waiting = iter(files)
    streams: deque[_Stream] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as executor:

        def begin() -> None:
            for file, first in waiting:
                streams.append(_Stream(file))
                executor.submit(decode, streams[-1], first)
                return

        try:
            for _ in range(2 * threads):
                begin()
            while streams:
                stream = streams.popleft()
                while True:
                    item = stream.items.get()
                    if isinstance(item, BaseException):
                        raise item
                    yield stream.file, item
                    if isinstance(item, End):
                        break
                begin()
        finally:
            stopped.set()
