"""AudioSet: a list of labelled ten-second segments, used here for its sound alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.adapters.audio_files import find_audio
from pipeline.data.adapters.lists import check_spreadsheet, read_csv
from pipeline.data.adapters.rows import SourceRow, seconds
from pipeline.data.adapters.walking import check_root
from pipeline.data.adapters.youtube import VideoClip, check_video_ids, source_rows_of
from pipeline.errors import PipelineError

WIDTH = 4
"""Fields of a row."""


def read_audioset(root: Path, split: str) -> Iterator[SourceRow]:
    """The segments of `{split}_segments.csv` (split: `balanced_train`, `eval`, ...), without captions.

    Read are both the original (`id, 30.000, 40.000, "labels"`) and mirrors with other spacing and numbers. Audio is
    looked for below `{split}/`, `{split}_segments/`, `audio/{split}/`, `audio/` and the root, the first that has any.
    """
    check_root(root)
    listing = root / f"{split}_segments.csv"
    clips = []
    for row, fields in read_csv(listing, width=WIDTH, skip_initial_space=True):
        place = f"{listing} row {row}"
        youtube_id = check_spreadsheet(fields[0], place, "YTID").strip()
        if youtube_id.startswith("#") or youtube_id == "YTID":
            continue
        if len(fields) != WIDTH or not youtube_id:
            raise PipelineError(
                f"{place}: expected YTID, start_seconds, end_seconds, positive_labels; "
                f'found {len(fields)} fields, the first "{youtube_id}"'
            )
        clips.append(VideoClip(youtube_id=youtube_id, start_s=seconds(fields[1], place), row=row))
    check_video_ids(listing, clips)
    files = find_audio([root / split, root / f"{split}_segments", root / "audio" / split, root / "audio", root])
    return source_rows_of(clips, files)
