"""AudioCaps, versions 1 and 2: the lists of its repository and audio under any of the names it is passed on with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.data.adapters.sources import (
    SourceRow,
    VideoClip,
    check_root,
    clean_captions,
    find_audio,
    read_table,
    seconds,
    source_rows_of,
)
from pipeline.errors import PipelineError

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read_audiocaps(root: Path, split: str) -> Iterator[SourceRow]:
    """The clips of `{split}.csv`; rows of the same video and start are captions of one clip, in their order.

    Audio is looked for below `{split}/`, `audio/{split}/`, `audio/` and the root, the first of them that has any. A row
    that repeats an audiocap_id is a duplicate of its clip; PipelineError if it tells another clip.
    """
    check_root(root)
    listing = root / f"{split}.csv"
    clips: dict[tuple[str, float], VideoClip] = {}
    clip_of_number: dict[str, tuple[str, float]] = {}
    repeated: list[VideoClip] = []
    for row, fields in read_table(listing, COLUMNS, "AudioCaps' audiocap_id, youtube_id, start_time, caption"):
        number, youtube_id = fields["audiocap_id"].strip(), fields["youtube_id"].strip()
        if not youtube_id:
            raise PipelineError(f"{listing} row {row}: no youtube_id")
        start_s = seconds(fields["start_time"], f"{listing} row {row}")
        place = youtube_id, start_s
        listed = VideoClip(
            youtube_id=youtube_id,
            start_s=start_s,
            row=row,
            captions=clean_captions([fields["caption"]]),
            numbers=(number,),
        )
        if clip_of_number.setdefault(number, place) != place:
            other = clips[clip_of_number[number]]
            raise PipelineError(
                f"{listing} row {row}: audiocap_id {number} is {listed.name} here and {other.name} in row {other.row}"
            )
        clip = clips.setdefault(place, listed)
        if clip is not listed and number in clip.numbers:
            repeated.append(listed)
        elif clip is not listed:
            captions, numbers = clip.captions + listed.captions, clip.numbers + listed.numbers
            clips[place] = replace(clip, captions=captions, numbers=numbers)
    files = find_audio([root / split, root / "audio" / split, root / "audio", root])
    return source_rows_of([*clips.values(), *repeated], files)
