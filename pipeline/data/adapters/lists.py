"""Lists of clips: text in any encoding in use, separated by commas, semicolons or tabs, as spreadsheets leave them."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.adapters.rows import CAPTION_COLUMN, CAPTION_COLUMNS
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

LIST_EXTENSIONS = frozenset({".csv", ".tsv", ".json", ".jsonl", ".txt"})
SEPARATORS = (",", ";", "\t")
ADVICE = "take the publisher's file, or import the column as text"

_SPREADSHEET_ERROR = re.compile(r"#¿?[^\W\d_a-z]+[?!]|#N/A|#DIV/0!|Err:\d{3}")
"""Error values of spreadsheet programs, which take ids such as `-0DdlOuIFUI` and `=...` for formulas."""
_QUOTED_FORMULA = re.compile(r'="((?:[^"]|"")*)"')
"""How people keep a spreadsheet from changing a text: `="-0DdlOuIFUI"`."""


def decode(data: bytes) -> tuple[str, int | None]:
    """Text in UTF-8, with or without a byte order mark, in UTF-16 with one, or else in Windows-1252.

    For the last, which is a guess, also returns the first line that is not UTF-8.
    """
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16"), None
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        return data.decode("cp1252", errors="replace"), data.count(b"\n", 0, error.start) + 1


def read_text(path: Path) -> str:
    """The text of a list; PipelineError for a file that is not there or cannot be read."""
    if path.is_fifo():
        raise PipelineError(f"{path}: is a named pipe, which may never end; put a file there")
    try:
        text, unfit_line = decode(path.read_bytes())
        if unfit_line is not None:
            logger.warning("%s row %d is not UTF-8: the file is read as Windows-1252", path, unfit_line)
        return text
    except OSError as error:
        found = lists_in(path.parent)
        there = f"; lists found there: {', '.join(found[:5])}" if found and not path.exists() else ""
        raise PipelineError(f"{path}: cannot be read ({error.strerror}){there}") from error


def lists_in(folder: Path) -> list[str]:
    """Names of the files in a folder that may be lists of clips, sorted; none for a folder that is not there."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        path.name
        for path in entries
        if path.suffix.lower() in LIST_EXTENSIONS - {".txt"} and not path.name.startswith((".", "~$"))
    ]


def read_csv(path: Path, *, width: int, skip_initial_space: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row that is not blank, of a list without a header; all fields stay text.

    Fields are separated by commas, or by semicolons or tabs where only these give the first row that is no comment
    `width` fields. Raises PipelineError, naming the row, for broken quoting: read leniently, one open quote swallows
    the rows after it.
    """
    text = read_text(path)

    def first_width(separator: str) -> int:
        rows = _split_rows(path, text, separator, skip_initial_space)
        return next((len(fields) for _, fields in rows if not fields[0].startswith("#")), 0)

    separator = next((separator for separator in SEPARATORS if first_width(separator) == width), ",")
    return _split_rows(path, text, separator, skip_initial_space)


def _split_rows(
    path: Path, text: str, separator: str, skip_initial_space: bool = False
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=skip_initial_space, strict=True
    )
    line = 1
    try:
        for fields in reader:
            is_setting = line == 1 and fields and fields[0].startswith("sep=")  # for Excel: which separator follows
            if not is_setting and any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(f"{path} row {line}: {error}; is a quote missing or doubled there?") from error


def read_table(path: Path, columns: Sequence[str], layout: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields by column name of every row of a list that has a header.

    Fields are separated by commas, or by semicolons or tabs where only these give a header with `columns`. `layout`
    names the expected columns in messages.

    Raises:
        PipelineError: one of `columns` is missing or there twice, a row is wider than the header, the first of
            `columns`, which names the clip, is empty, or a spreadsheet program has destroyed a field.
    """
    text = read_text(path)
    header = _header(path, text, ",")
    separator = ","
    for other in SEPARATORS[1:]:
        if not set(columns) <= set(header) and set(columns) <= set(alternative := _header(path, text, other)):
            header, separator = alternative, other
    if missing := [name for name in columns if name not in header]:
        found = ", ".join(header) or "nothing"
        raise PipelineError(f"{path}: no column {', '.join(missing)}; found {found}; expected {layout}")
    read = [name for name in header if name in (*columns, *CAPTION_COLUMNS) or CAPTION_COLUMN.fullmatch(name)]
    if twice := [name for name in read if header.count(name) > 1]:
        raise PipelineError(f"{path}: two columns are named {twice[0]}; rename or remove one of them")
    rows = _split_rows(path, text, separator)
    next(rows)
    for row, fields in rows:
        if len(fields) > len(header):
            raise PipelineError(
                f"{path} row {row}: {len(fields)} fields under {len(header)} columns; a field with a comma needs quotes"
            )
        named = dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True))
        for name in read:
            named[name] = check_spreadsheet(named[name], f"{path} row {row}", name)
        if not named[columns[0]].strip():
            raise PipelineError(f"{path} row {row}: no {columns[0]}")
        yield row, named


def read_json_lines(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values by name of every object of a list with one JSON object per line.

    Raises PipelineError for a line that is no such object, has two values of one name or no text in `column`.
    """
    for row, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_object)
            json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise PipelineError(f"{path} row {row}: is no JSON object ({error})") from error
        if not isinstance(fields, dict) or not str(fields.get(column) or "").strip():
            raise PipelineError(f"{path} row {row}: no {column}")
        yield row, fields | {column: str(fields[column])}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for one with two values of a name, of which the last would win."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a name of {', '.join(value)} is there twice")
    return value


def _header(path: Path, text: str, separator: str) -> list[str]:
    """The names of the columns, if a list is separated by `separator`."""
    _, header = next(_split_rows(path, text, separator), (1, []))
    return [name.strip() for name in header]


def check_spreadsheet(field: str, place: str, column: str) -> str:
    """A field as it was before a spreadsheet program wrote it; PipelineError where that is lost."""
    if _SPREADSHEET_ERROR.fullmatch(field.strip()):
        raise PipelineError(f"{place}: {column} is {field.strip()}, the error value of a spreadsheet program; {ADVICE}")
    if match := _QUOTED_FORMULA.fullmatch(field.strip()):
        return match[1].replace('""', '"')
    return field
