"""Clips of YouTube videos: how lists name them, and the names that their files have on disks."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.adapters.audio_files import AudioFiles, warn_of_missing, without_extension
from pipeline.data.adapters.lists import ADVICE
from pipeline.data.adapters.rows import SourceRow
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

ID_LENGTH = 11
_ID = re.compile(r"[\w-]+", re.ASCII)
_NUMBER = r"\d+(?:\.\d+)?"
_STARTS = (
    re.compile(rf"(?P<id>.+)_(?P<start>{_NUMBER})[_-](?P<end>{_NUMBER})"),
    re.compile(rf"(?P<id>.+)_(?P<start>{_NUMBER})(?P<end>)"),
)
"""`ID_30_40`, `ID_390.0-400.0`, `ID_30000_40000`; `ID_000030`."""
_TITLE = re.compile(r".*\[(?P<id>[\w-]+)\]", re.ASCII | re.DOTALL)
"""`Title [ID]`, as yt-dlp names a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoClip:
    """A stretch of a YouTube video, as AudioCaps and AudioSet list it."""

    youtube_id: str
    start_s: float
    row: int
    captions: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    """The publisher's own ids of the clip (AudioCaps)."""

    @property
    def name(self) -> str:
        """`{youtube_id}_{start}`, the start without trailing zeros, because lists differ in them."""
        return f"{self.youtube_id}_{_plain(self.start_s)}"


def _plain(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def check_video_ids(listing: Path, clips: Sequence[VideoClip]) -> None:
    """Raise PipelineError for an id that only a spreadsheet program can have made; warn of ids of another length."""
    for clip in clips:
        if not _ID.fullmatch(clip.youtube_id):
            raise PipelineError(
                f'{listing} row {clip.row}: "{clip.youtube_id}" is no id of YouTube; if a spreadsheet program changed '
                f"it, {ADVICE}"
            )
    unusual = [clip for clip in clips if len(clip.youtube_id) != ID_LENGTH]
    if unusual:
        logger.warning(
            '%s: %d ids do not have %d characters as those of YouTube do, the first in row %d: "%s"; '
            "did a spreadsheet program change them?",
            listing, len(unusual), ID_LENGTH, unusual[0].row, unusual[0].youtube_id,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _NamedFiles:
    """Audio files by what their names can mean."""

    by_stem: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    by_clip: dict[tuple[str, float], list[str]] = field(default_factory=lambda: defaultdict(list))
    """By video and start, from names with both that have another form than `{id}_{start}`."""
    by_title: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By video, from names like `Title [ID]`."""


def source_rows_of(clips: Sequence[VideoClip], files: AudioFiles) -> Iterator[SourceRow]:
    """The clips with the files found for them under any name that is in use.

    `{id}_{start}`, `{id}_{start}_{end}` in seconds or milliseconds, each also after a `Y`, and the publisher's number
    say which clip is meant. `Y{id}`, `{id}` and `Title [{id}]` do only when the split has one clip of that video;
    otherwise the row is `ambiguous_file`.
    """
    starts: dict[str, set[float]] = defaultdict(set)
    for clip in clips:
        starts[clip.youtube_id].add(clip.start_s)
    named_files = [_named_files(names, starts) for names in files.by_preference()]
    used: set[str] = set()
    missing = []
    for clip in clips:
        is_only_clip = len(starts[clip.youtube_id]) == 1
        ways = (way for named in named_files for way in _ways(clip, named, is_only_clip) if way[0])
        candidates, is_exact = next(ways, ([], True))
        used.update(candidates)
        candidates = files.likeliest(candidates)
        path, reason = None, None
        if not candidates:
            reason = "missing_file"
            missing.append(clip.name)
        elif len(candidates) > 1 or not (is_exact or is_only_clip):
            logger.warning("%s row %d: %s could be %s: ambiguous", files.folder, clip.row, clip.name, candidates[:5])
            reason = "ambiguous_file"
        else:
            path, reason = files.match(candidates[0])
        yield SourceRow(
            source_name=clip.name,
            path=path,
            reason=reason,
            source_id=clip.youtube_id,
            start_s=clip.start_s,
            captions=clip.captions,
            row=clip.row,
        )
    warn_of_missing(files.folder, missing, [name for name in files.names if name not in used])


def _named_files(names: Sequence[str], starts: dict[str, set[float]]) -> _NamedFiles:
    """Files by stem, and by the clips of the list that a download tool may have named them after."""
    named = _NamedFiles()
    for file in names:
        stem = without_extension(PurePosixPath(file).name)
        named.by_stem[stem].append(file)
        for match in filter(None, (pattern.fullmatch(stem) for pattern in _STARTS)):
            for youtube_id in {match["id"], match["id"].removeprefix("Y")} & starts.keys():
                start_s = _start_of(match, starts[youtube_id])
                if start_s is not None:
                    named.by_clip[youtube_id, start_s].append(file)
        if (title := _TITLE.fullmatch(stem)) and title["id"] in starts:
            named.by_title[title["id"]].append(file)
    return named


def _start_of(name: re.Match[str], starts_s: set[float]) -> float | None:
    """The start of a clip that a file's name gives in seconds or milliseconds; None where no clip starts there.

    The end, if given, decides the unit: no clip is as long as 1,000 s or as short as a second.
    """
    start = float(name["start"])
    readings = [start, start / 1000]
    if name["end"]:
        readings = readings[1:] if float(name["end"]) - start >= 1000 else readings[:1]
    return next((start_s for start_s in readings if start_s in starts_s), None)


def _ways(clip: VideoClip, named: _NamedFiles, is_only_clip: bool) -> Iterator[tuple[list[str], bool]]:
    """The files that a clip's audio may be, the likeliest first, and whether their names say which clip is meant."""
    start = clip.start_s
    spellings = dict.fromkeys((_plain(start), f"{start:.1f}", f"{start:.3f}"))
    exact = [f"{prefix}{clip.youtube_id}_{text}" for prefix in ("", "Y") for text in spellings] + list(clip.numbers)
    of_clip = [(named.by_stem.get(stem, []), True) for stem in exact]
    of_video = [(named.by_stem.get(stem, []), False) for stem in (f"Y{clip.youtube_id}", clip.youtube_id)]
    by_tools = [(named.by_clip.get((clip.youtube_id, start), []), True)]
    titled = [(named.by_title.get(clip.youtube_id, []), False)]
    yield from of_clip
    yield from of_video + by_tools if is_only_clip else by_tools + of_video
    yield from titled
