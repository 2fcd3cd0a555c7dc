"""Your own audio: a folder of files, with or without a list of captions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.adapters.audio_files import find_audio, match_names
from pipeline.data.adapters.lists import lists_in, read_table
from pipeline.data.adapters.rows import CAPTION_COLUMN, SourceRow, clean_captions
from pipeline.data.adapters.walking import check_root
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

LAYOUT = "file_name and, for captioned audio, caption_1, caption_2, ..."
SHARED_LIST = "metadata.csv"


def read_folder(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of `{split}.csv`, or else of `metadata.csv`; without a list, every audio file in `{split}/`.

    Of a `metadata.csv` with a column `split` the rows of this split count. A `file_name` may hold folders. Audio is
    looked for below `{split}/` if there is any, else below the root.
    """
    check_root(root)
    listing = next((path for path in (root / f"{split}.csv", root / SHARED_LIST) if path.exists()), None)
    if listing is None:
        yield from _unlisted(root, split)
        return
    rows = _rows_of_split(listing, split)
    files = find_audio([root / split, root])
    outer = f"{split}/" if files.folder == root / split else ""  # names in the list may be relative to either folder
    found = match_names((fields["file_name"].removeprefix(outer) for _, fields in rows), files, outer)
    for row, fields in rows:
        path, reason = found[fields["file_name"].removeprefix(outer)]
        columns = sorted((int(match[1]), name) for name in fields if (match := CAPTION_COLUMN.fullmatch(name)))
        yield SourceRow(
            source_name=fields["file_name"],
            path=path,
            reason=reason,
            captions=clean_captions(fields[name] for _, name in columns),
            row=row,
        )


def _unlisted(root: Path, split: str) -> Iterator[SourceRow]:
    """A row per audio file, without captions."""
    looked_for = f"no list of captions; looked for {split}.csv and {SHARED_LIST} in {root}"
    if found := lists_in(root) + [f"{split}/{name}" for name in lists_in(root / split)]:
        logger.warning("%s, found %s", looked_for, ", ".join(found[:5]))
    else:
        logger.info("%s", looked_for)
    files = find_audio([root / split])
    for name in files.names:
        path, reason = files.match(name)
        yield SourceRow(source_name=name, path=path, reason=reason)


def _rows_of_split(listing: Path, split: str) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of a split's rows; PipelineError for captions in columns of other names."""
    rows = list(read_table(listing, ("file_name",), LAYOUT))
    columns = list(rows[0][1]) if rows else []
    meant = [name for name in columns if name.lower().startswith(("caption", "text"))]
    if meant and not any(CAPTION_COLUMN.fullmatch(name) for name in columns):
        raise PipelineError(
            f"{listing}: no column caption_1; found {', '.join(columns)}; captions stand in caption_1, caption_2, ..."
        )
    if listing.name != SHARED_LIST or "split" not in columns:
        return rows
    of_split = [(row, fields) for row, fields in rows if fields["split"].strip() == split]
    if not of_split:
        others = sorted({fields["split"].strip() for _, fields in rows})
        raise PipelineError(f"{listing}: its column split has no {split}; found {', '.join(others[:5])}")
    return of_split
