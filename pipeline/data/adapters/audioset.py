"""AudioSet: a list of labelled ten-second segments, used here for its sound alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.adapters.sources import (
    SourceRow,
    VideoClip,
    check_root,
    find_audio,
    read_csv,
    seconds,
    source_rows_of,
)
from pipeline.errors import PipelineError


def read_audioset(root: Path, split: str) -> Iterator[SourceRow]:
    """The segments of `{split}_segments.csv` (split: `balanced_train`, `eval`, ...), without captions.

    Read are both the original (`id, 30.000, 40.000, "labels"`) and mirrors with other spacing and numbers. Audio is
    looked for below `{split}/`, `{split}_segments/`, `audio/{split}/`, `audio/` and the root, the first that has any.
    """
    check_root(root)
    listing = root / f"{split}_segments.csv"
    clips = []
    for row, fields in read_csv(listing, skip_initial_space=True):
        youtube_id = fields[0].strip()
        if youtube_id.startswith("#") or youtube_id == "YTID":
            continue
        if len(fields) != 4 or not youtube_id:
            raise PipelineError(
                f"{listing} row {row}: expected YTID, start_seconds, end_seconds, positive_labels; "
                f'found {len(fields)} fields, the first "{youtube_id}"'
            )
        clips.append(VideoClip(youtube_id=youtube_id, start_s=seconds(fields[1], f"{listing} row {row}"), row=row))
    files = find_audio([root / split, root / f"{split}_segments", root / "audio" / split, root / "audio", root])
    return source_rows_of(clips, files)
