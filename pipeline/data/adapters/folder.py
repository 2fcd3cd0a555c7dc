"""Your own audio: a folder of files, with or without a list of captions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.adapters.audio_files import find_audio, match_names
from pipeline.data.adapters.lists import lists_in, read_json_lines, read_table
from pipeline.data.adapters.rows import CAPTION_COLUMN, CAPTION_COLUMNS, SourceRow, clean_captions, seconds
from pipeline.data.adapters.walking import check_root
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

LAYOUT = "file_name and, for captioned audio, caption_1, caption_2, ... or caption"
SHARED_LIST = "metadata"
EXTENSIONS = (".csv", ".tsv", ".jsonl")
STRETCH_COLUMNS = ("start_s", "end_s")


def read_folder(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of the split's list; without a list, every audio file in `{split}/`.

    The list is `{split}`, `{split}/metadata` or `metadata` with the extension .csv, .tsv or .jsonl, the first that is
    there. The last two are those of the Hugging Face hub (AudioFolder). A `file_name` may hold folders. A column
    `source_id` names the recording that a clip was cut from. Audio is looked for below `{split}/` if there is any, else
    below the root. With the columns `start_s` and `end_s` a row is that stretch of its file, and several rows may name
    one file.
    """
    check_root(root)
    listing = _find_list(root, split)
    if listing is None:
        yield from _unlisted(root, split)
        return
    rows = _rows_of_split(listing, root, split)
    files = find_audio([root / split, root])
    outer = f"{split}/" if files.folder == root / split else ""  # names in the list may be relative to either folder
    found = match_names((fields["file_name"].removeprefix(outer) for _, fields in rows), files, outer)
    for row, fields in rows:
        path, reason = found[fields["file_name"].removeprefix(outer)]
        stretch_s = _stretch(fields, f"{listing} row {row}")
        if reason is None and stretch_s is not None and not 0 <= stretch_s[0] < stretch_s[1]:
            reason = "bad_stretch"
        yield SourceRow(
            source_name=fields["file_name"],
            path=path,
            reason=reason,
            source_id=str(fields.get("source_id") or "").strip() or None,
            captions=_captions(fields, f"{listing} row {row}"),
            stretch_s=stretch_s,
            row=row,
        )


def _find_list(root: Path, split: str) -> Path | None:
    """The list of a split; a warning names other lists that could be meant."""
    stems = (split, f"{split}/{SHARED_LIST}", SHARED_LIST)
    found = [path for stem in stems for extension in EXTENSIONS if (path := root / f"{stem}{extension}").exists()]
    if len(found) > 1:
        logger.warning("%s is read, and not %s", found[0], ", ".join(str(path) for path in found[1:]))
    return found[0] if found else None


def _unlisted(root: Path, split: str) -> Iterator[SourceRow]:
    """One row per audio file, without captions."""
    looked_for = f"no list of captions; looked for {split}, {split}/{SHARED_LIST} and {SHARED_LIST}"
    looked_for += f" ({', '.join(EXTENSIONS)}) in {root}"
    if found := lists_in(root) + [f"{split}/{name}" for name in lists_in(root / split)]:
        logger.warning("%s, found %s", looked_for, ", ".join(found[:5]))
    else:
        logger.info("%s", looked_for)
    files = find_audio([root / split])
    for name in files.names:
        path, reason = files.match(name)
        yield SourceRow(source_name=name, path=path, reason=reason)


def _rows_of_split(listing: Path, root: Path, split: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and fields of a split's rows; PipelineError for captions in columns of other names.

    Of a list with a column `split` these are the rows that name this split. Of a shared list without it, whose names
    begin with the folders of the splits, those in this split's folder.
    """
    if listing.suffix == ".jsonl":
        rows = list(read_json_lines(listing, "file_name"))
    else:
        rows = list(read_table(listing, ("file_name",), LAYOUT))
    columns = list(dict.fromkeys(name for _, fields in rows for name in fields))
    meant = [name for name in columns if name.lower().startswith(("caption", "text"))]
    if meant and not any(CAPTION_COLUMN.fullmatch(name) or name in CAPTION_COLUMNS for name in columns):
        raise PipelineError(
            f"{listing}: no column caption_1 or caption; found {', '.join(columns)}; rename the column of captions"
        )
    if len(there := [name for name in STRETCH_COLUMNS if name in columns]) == 1:
        lacking = next(name for name in STRETCH_COLUMNS if name not in there)
        raise PipelineError(
            f"{listing}: has a column {there[0]} and no {lacking}; add {lacking}, or rename {there[0]} if all rows are "
            "whole files"
        )
    is_shared = listing.parent == root and listing.stem == SHARED_LIST
    if "split" in columns:
        of_split = [(row, fields) for row, fields in rows if str(fields.get("split")).strip() == split]
        if not of_split and is_shared:
            others = sorted({str(fields.get("split")).strip() for _, fields in rows})
            raise PipelineError(f"{listing}: its column split has no {split}; found {', '.join(others[:5])}")
    else:
        of_split = [(row, fields) for row, fields in rows if is_shared and fields["file_name"].startswith(f"{split}/")]
    if of_split and len(of_split) < len(rows):
        logger.info("%s: %d of %d rows are of the split %s", listing, len(of_split), len(rows), split)
    return of_split or rows


def _stretch(fields: Mapping[str, Any], place: str) -> tuple[float, float] | None:
    """The stretch of a row, to the millisecond; None for a row that is a whole file, which leaves both fields empty."""
    texts = [str(fields.get(name) if fields.get(name) is not None else "").strip() for name in STRETCH_COLUMNS]
    if not any(texts):
        return None
    if not all(texts):
        lacking = STRETCH_COLUMNS[texts.index("")]
        raise PipelineError(f"{place}: no {lacking}; fill it in, or empty both fields if the row is the whole file")
    start_s, end_s = (seconds(text, place, name) for text, name in zip(texts, STRETCH_COLUMNS, strict=True))
    return round(start_s, 3), round(end_s, 3)


def _captions(fields: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The captions of a row, from its numbered columns or else from the first of `CAPTION_COLUMNS`."""
    numbered = sorted((int(match[1]), name) for name in fields if (match := CAPTION_COLUMN.fullmatch(name)))
    names = [name for _, name in numbered] or [name for name in CAPTION_COLUMNS if name in fields][:1]
    values = [fields[name] for name in names]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value]) if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise PipelineError(f"{place}: captions are text or a list of text, found {str(texts)[:80]}")
    return clean_captions(texts)
