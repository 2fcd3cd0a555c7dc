"""Cut the recordings of a split into segments of one length, and name the recording that each stretch comes from."""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO

from pipeline.data.adapters.rows import SourceRow
from pipeline.data.catalogs import REASONS
from pipeline.data.containers import Members, open_file
from pipeline.data.decoding import Source, open_audio
from pipeline.data.stretches import grid
from pipeline.data.unusable import UnusableAudio

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 64  # recordings of a Parquet file that wait on disk
_SAMPLES = 16  # of its bytes, by which a recording is known
_SAMPLE_BYTES = 4096
_MOST_S = 1_000_000  # longer than 11 days is no recording but a damaged header, so it is decoded
_LEAST_S = 0.001  # times are kept to the millisecond


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How a recording is cut."""

    length_s: float
    hop_s: float
    """From the start of a segment to that of the next."""
    min_share: float
    """A last piece that is shorter than this share of the length is dropped."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """The length of a recording, before it is sharded, and its identity."""

    identity: str
    duration_s: float = 0.0
    reason: str | None = None
    """Why it cannot be read, or not beyond its duration."""


def cut_recordings(rows: Iterable[SourceRow], settings: SegmentSettings | None) -> Iterator[SourceRow]:
    """Yield the rows, with a row per segment in place of each whole file if there are settings.

    A row that is a stretch of its file stays one row. All stretches of a recording get the same `source_id`, unless the
    publisher gives one: a digest of the file's size and of samples of its bytes, which a copy of the file shares. A
    file that cannot be opened stays one row with the reason.

    The length of a recording is that of its headers. Where they do not say it, the recording is decoded.
    """
    rows = iter(rows)
    known: dict[tuple[str, str | None], _Recording] = {}
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        wanted = {
            (row.path, row.member)
            for row in batch
            if row.path is not None and row.reason is None and (settings is not None or row.stretch_s is not None)
        }
        new = sorted(wanted - known.keys(), key=str)
        with tempfile.TemporaryFile() as spool:
            members = Members([(path, member) for path, member in new if member is not None], spool)
            for path, member in new:
                known[path, member] = _recording(path, member, members, is_measured=settings is not None)
        for row in batch:
            found = known.get((row.path or "", row.member)) if row.reason is None else None
            if found is None:
                yield row
            elif row.stretch_s is not None:
                yield replace(row, source_id=row.source_id or found.identity)
            elif settings is not None:
                yield from _segments(replace(row, source_id=row.source_id or found.identity), found, settings)
            else:
                yield row


def _segments(row: SourceRow, recording: _Recording, settings: SegmentSettings) -> Iterator[SourceRow]:
    """The segments of a recording; the one in which it breaks off has the reason, as has a recording without any."""
    if recording.duration_s < _LEAST_S:
        yield replace(row, reason=recording.reason or "empty")
        return
    reason = None
    for stretch in grid(settings.length_s, settings.hop_s):
        start_s, end_s = round(stretch.start_s, 3), round(stretch.end_s, 3)
        if recording.duration_s - start_s < _LEAST_S:
            if reason is None and recording.reason is not None:
                yield replace(row, stretch_s=(start_s, end_s), reason=recording.reason)
            return
        reason = None
        if end_s > recording.duration_s:
            end_s = max(round(recording.duration_s, 3), start_s + _LEAST_S)
            is_short = end_s - start_s < settings.min_share * settings.length_s
            reason = recording.reason or ("too_short" if is_short else None)
        yield replace(row, stretch_s=(start_s, end_s), reason=reason)


def _recording(path: str, member: str | None, members: Members, *, is_measured: bool) -> _Recording:
    """The identity of a recording, and its length if `is_measured`."""
    with open_file(path) if member is None else members.opened(path, member) as file:
        if file is None:
            return _Recording("", reason="missing_file")
        identity = _identity(file)
        if not is_measured:
            return _Recording(identity)
        return _measured(path if member is None else file, identity, path)


def _measured(source: Source, identity: str, name: str) -> _Recording:
    rate_hz, frames, reason = 1, 0, None
    try:
        with open_audio(source, up_to_break=True) as audio:
            rate_hz = audio.sample_rate_hz
            if audio.frames is not None and audio.frames <= _MOST_S * rate_hz:
                frames = audio.frames
                if audio.fault is not None:
                    raise audio.fault
            else:
                for block_SC in audio.blocks:
                    frames += len(block_SC)
    except UnusableAudio as error:
        logger.warning("%s %s: %s", name, REASONS[error.reason][1], error)
        reason = error.reason
    return _Recording(identity, frames / rate_hz, reason)


def _identity(file: BinaryIO) -> str:
    """A digest of a file's size and of samples of its bytes: a day of sound has gigabytes."""
    size = file.seek(0, io.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for number in range(_SAMPLES):
        file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1) if size > _SAMPLE_BYTES else 0)
        digest.update(file.read(_SAMPLE_BYTES))
    return f"recording-{digest.hexdigest()[:24]}"
