"""AudioCaps, versions 1 and 2: the lists of its repository and audio under any of the names it is passed on with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.data.adapters.audio_files import find_audio
from pipeline.data.adapters.lists import read_table
from pipeline.data.adapters.rows import SourceRow, clean_captions, seconds
from pipeline.data.adapters.walking import check_root
from pipeline.data.adapters.youtube import VideoClip, check_video_ids, source_rows_of
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read_audiocaps(root: Path, split: str) -> Iterator[SourceRow]:
    """The clips of `{split}.csv`; rows of the same video and start are captions of one clip, in their order.

    Audio is looked for below `{split}/`, `audio/{split}/`, `audio/` and the root, the first of them that has any. A row
    that repeats an audiocap_id is a duplicate of its clip; PipelineError if it names another clip.
    """
    check_root(root)
    listing = root / f"{split}.csv"
    clips: dict[tuple[str, float], VideoClip] = {}
    clip_of_number: dict[str, tuple[str, float]] = {}
    repeated: list[VideoClip] = []
    for listed in _listed_clips(listing):
        place, (number,) = (listed.youtube_id, listed.start_s), listed.numbers
        if clip_of_number.setdefault(number, place) != place:
            other = clips[clip_of_number[number]]
            raise PipelineError(
                f"{listing} row {listed.row}: audiocap_id {number} is {listed.name} here and {other.name} in row "
                f"{other.row}"
            )
        clip = clips.setdefault(place, listed)
        if clip is not listed and number in clip.numbers:
            repeated.append(listed)
        elif clip is not listed:
            captions, numbers = clip.captions + listed.captions, clip.numbers + listed.numbers
            clips[place] = replace(clip, captions=captions, numbers=numbers)
    check_video_ids(listing, [*clips.values()])
    files = find_audio([root / split, root / "audio" / split, root / "audio", root])
    return source_rows_of([*clips.values(), *repeated], files)


def _listed_clips(listing: Path) -> Iterator[VideoClip]:
    """One clip per row of a list."""
    rows = read_table(listing, COLUMNS, "AudioCaps' audiocap_id, youtube_id, start_time, caption")
    for row, fields in _joined(rows, listing):
        youtube_id = fields["youtube_id"].strip()
        if not youtube_id:
            raise PipelineError(f"{listing} row {row}: no youtube_id; does the row before it lack quotes?")
        yield VideoClip(
            youtube_id=youtube_id,
            start_s=seconds(fields["start_time"], f"{listing} row {row}"),
            row=row,
            captions=clean_captions([fields["caption"]]),
            numbers=(fields["audiocap_id"].strip(),),
        )


def _joined(rows: Iterable[tuple[int, dict[str, str]]], listing: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, with captions joined that continue in the next line.

    Version 2 was published with line breaks in captions that have no quotes around them. Such a line has one field that
    is no number.
    """
    waiting: tuple[int, dict[str, str]] | None = None
    joined: list[int] = []
    for row, fields in rows:
        rest = fields["audiocap_id"].strip()
        has_more = any(fields[column].strip() for column in COLUMNS[1:])
        if waiting is not None and not has_more and not rest.isdigit():
            waiting[1]["caption"] += f" {rest}"
            joined.append(row)
            continue
        if waiting is not None:
            yield waiting
        waiting = row, fields
    if waiting is not None:
        yield waiting
    if joined:
        logger.warning(
            "%s: %d rows are the rest of a caption without quotes and were joined to it, the first is row %d",
            listing, len(joined), joined[0],
        )  # fmt: skip
