"""Your own audio: a folder of files, with or without a list of captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.adapters.sources import (
    CAPTION_COLUMN,
    SourceRow,
    check_root,
    clean_captions,
    find_audio,
    match_names,
    read_table,
)
from pipeline.errors import PipelineError

LAYOUT = "file_name and, for captioned audio, caption_1, caption_2, ..."


def check_caption_columns(listing: Path, columns: list[str]) -> None:
    """Raise when a list has a column that is meant for captions but is not named as one."""
    meant = [name for name in columns if name.lower().startswith(("caption", "text"))]
    if meant and not any(CAPTION_COLUMN.fullmatch(name) for name in columns):
        raise PipelineError(
            f"{listing}: no column caption_1; found {', '.join(columns)}; captions stand in caption_1, caption_2, ..."
        )


def read_folder(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of `{split}.csv`, or of `metadata.csv` where there is one split only; without a list, every audio file.

    A `file_name` may hold folders. Audio is looked for below `{split}/` if there is any, else below the root; without a
    list it must be in `{split}/`.
    """
    check_root(root)
    listing = next((path for path in (root / f"{split}.csv", root / "metadata.csv") if path.exists()), None)
    if listing is None:
        files = find_audio([root / split])
        for name in files.names:
            yield SourceRow(source_name=name, path=files.path(name))
        return
    rows = list(read_table(listing, ("file_name",), LAYOUT))
    check_caption_columns(listing, list(rows[0][1]) if rows else [])
    files = find_audio([root / split, root])
    outer = f"{split}/" if files.folder == root / split else ""  # names in the list may be relative to either folder
    found = match_names((fields["file_name"].removeprefix(outer) for _, fields in rows), files)
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
