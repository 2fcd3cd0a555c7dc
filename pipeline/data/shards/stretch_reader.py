"""Read the stretches of recordings in the order of a catalog, each recording decoded once for several shards."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.audio import Recording
from pipeline.data.catalogs import EXPECTED, OK, REASONS, SEGMENT_COLUMNS
from pipeline.data.containers import Members, moved
from pipeline.data.decoding import Source
from pipeline.data.shards.settings import AudioSettings
from pipeline.data.stretches import Piece, Stretch, read_stretches
from pipeline.data.unusable import TRUNCATED_BY_S, UnusableAudio
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

_RECORDINGS_AT_ONCE = 64  # of a Parquet file, that wait on disk
_STRETCHES_AT_ONCE = 1 << 14

Outcome = Recording | UnusableAudio


class _Wanted(NamedTuple):
    """A stretch and the clip that it is."""

    key: str
    stretch: Stretch


class _Group(NamedTuple):
    """The stretches of a recording."""

    path: str
    member: str | None
    wanted: Sequence[_Wanted]


class StretchReader:
    """The stretches of recordings among some clips, which are asked for in the order of the clips.

    clips: rows of a catalog, read as far as they are needed, so that a recording is decoded on through several shards.
    folder: where members of Parquet files wait.
    """

    def __init__(self, clips: Iterable[Mapping[str, Any]], folder: Path, settings: AudioSettings) -> None:
        self._outcomes = _outcomes(clips, folder, settings)

    def read(self, clip: Mapping[str, Any]) -> Recording:
        """Return the sound of a clip; clips before it that were not asked for are passed over.

        Raises UnusableAudio as `audio.read_recording`, and for a recording that ends before the stretch. Raises
        PipelineError when the file cannot be read, or has changed since its first stretch was read.
        """
        for key, outcome in self._outcomes:
            if key != clip["key"]:
                continue
            if isinstance(outcome, Recording):
                return outcome
            raise outcome
        raise ValueError(f"{clip['key']} is none of the clips, or comes before the last one")


def _outcomes(
    clips: Iterable[Mapping[str, Any]], folder: Path, settings: AudioSettings
) -> Iterator[tuple[str, Outcome | PipelineError]]:
    """Key and sound of every stretch, or the error in its place."""
    for groups in _batches(clips):
        with tempfile.TemporaryFile(dir=folder) as spool:
            members = Members([(group.path, group.member) for group in groups if group.member is not None], spool)
            for group in groups:
                yield from _of_recording(group, members, settings)


def _batches(clips: Iterable[Mapping[str, Any]]) -> Iterator[list[_Group]]:
    """The stretches by recording, several recordings at a time."""
    stretches = (clip for clip in clips if clip["status"] == OK and clip.get(SEGMENT_COLUMNS[0]) is not None)
    batch: list[_Group] = []
    for (path, member), alike in itertools.groupby(stretches, lambda clip: (clip["path"], clip["member"])):
        wanted = [_Wanted(clip["key"], Stretch(*(clip[name] for name in SEGMENT_COLUMNS))) for clip in alike]
        batch.append(_Group(path, member, wanted))
        if len(batch) == _RECORDINGS_AT_ONCE or sum(len(group.wanted) for group in batch) >= _STRETCHES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _of_recording(
    group: _Group, members: Members, settings: AudioSettings
) -> Iterator[tuple[str, Outcome | PipelineError]]:
    """Key and sound of the stretches of one recording, or the error in its place."""
    waiting = deque(group.wanted)
    problem: UnusableAudio | PipelineError = UnusableAudio("beyond_end", "the recording ends before it")
    try:
        if group.member is None:
            for piece in _unchanged(group.path, group.path, group.wanted, settings):
                yield waiting.popleft().key, _outcome(piece, group, settings)
        else:
            with members.opened(group.path, group.member) as file:
                if file is None:
                    raise UnusableAudio("missing_file", "the row holds no bytes")
                for piece in _unchanged(file, group.path, group.wanted, settings):
                    yield waiting.popleft().key, _outcome(piece, group, settings)
    except (UnusableAudio, PipelineError) as error:
        problem = error
    if waiting and isinstance(problem, UnusableAudio):
        wording, first_s = REASONS[problem.reason][1], waiting[0].stretch.start_s
        logger.warning(
            "%s %s: %s; %d stretches from %g s on are lost", _name(group), wording, problem, len(waiting), first_s
        )
    for wanted in waiting:
        yield wanted.key, problem


def _unchanged(source: Source, path: str, wanted: Sequence[_Wanted], settings: AudioSettings) -> Iterator[Piece]:
    """The pieces of a recording; PipelineError once its file has another size or time than in the beginning."""
    before = _size_and_time(path)
    stretches = (one.stretch for one in wanted)
    pieces = read_stretches(source, stretches, sample_rate_hz=settings.sample_rate_hz, channels=settings.channels)
    for piece in pieces:
        if _size_and_time(path) != before:
            raise PipelineError(
                f"{path}: changed while it was read; wait until it is complete, and run the same command again"
            )
        yield piece


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise moved(path, error) from error
    return status.st_size, status.st_mtime_ns


def _outcome(piece: Piece, group: _Group, settings: AudioSettings) -> Outcome:
    """The sound of a piece, or why it is not used."""
    rate_hz = piece.clip.source_sample_rate_hz
    try:
        if piece.error is not None:
            raise piece.error
        if piece.missing > TRUNCATED_BY_S * rate_hz:
            raise UnusableAudio("beyond_end", f"the recording ends {piece.missing / rate_hz:.1f} s before")
        piece.clip.check(settings.min_duration_s)
        recording = piece.clip.recording()
        if settings.min_level_dbfs is not None and recording.rms_dbfs < settings.min_level_dbfs:
            level = f"{recording.rms_dbfs:.1f} dBFS"
            raise UnusableAudio("silent", f"its level is {level}, below {settings.min_level_dbfs:g} dBFS")
    except UnusableAudio as error:
        if error.reason not in EXPECTED:
            start_s, end_s = piece.stretch.start_s, piece.stretch.end_s
            logger.warning("%s %g-%g s %s: %s", _name(group), start_s, end_s, REASONS[error.reason][1], error)
        return error
    return recording


def _name(group: _Group) -> str:
    return group.path if group.member is None else f"{group.path} {group.member}"
