"""Clips whose bytes lie inside a larger file: a row of a Parquet file, or a range of bytes of a tar.

The catalog's column `member` says where: `audio.bytes[17]` is row 17 (from 0) of the column audio.bytes, and
`1536+88244` are 88,244 bytes from byte 1,536 on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError

_RANGE = re.compile(r"(\d+)\+(\d+)")
_ROW = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)
_BATCH_ROWS = 16  # clips in memory at once
_BUFFER_BYTES = 1 << 20  # a column chunk of gigabytes is read in pieces of this size
PARQUET_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)
"""What pyarrow raises for a file that is damaged, cut off or no Parquet at all."""


def range_member(offset: int, size: int) -> str:
    """The member that is so many bytes from an offset on."""
    return f"{offset}+{size}"


def row_member(column: str, row: int) -> str:
    """The member that is the value of a Parquet file's column in a row, counted from 0 over the whole file."""
    return f"{column}[{row}]"


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """A Parquet file that is read piece by piece; PipelineError for what is none."""
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except PARQUET_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> PipelineError:
    """The error for a container that is damaged or cut off."""
    lines = str(error).splitlines() or [type(error).__name__]
    return PipelineError(f"{path}: cannot be read ({lines[0]}); is it cut off? Fetch it again")


class Members:
    """The bytes of clips that are members of larger files, in any order.

    Of a Parquet file only the column asked for is decoded, and each row group once for all clips wanted from it,
    because a row group can only be read from its beginning. The clips found wait in `spool`, an empty file that may be
    written to: a shard's clips may be more than fits in memory.
    """

    def __init__(self, places: Iterable[tuple[str, str]], spool: BinaryIO) -> None:
        self._spool = spool
        self._rows: dict[tuple[str, str], tuple[int, int] | None] = {}
        wanted: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for path, member in places:
            if match := _ROW.fullmatch(member):
                wanted[path][match[1]].append(int(match[2]))
            elif not _RANGE.fullmatch(member):
                raise PipelineError(f"{path}: the catalog's member {member!r} is none; make the catalog again")
        for path, columns in wanted.items():
            for column, rows in columns.items():
                self._fetch_rows(path, column, rows)

    def read(self, path: str, member: str) -> bytes | None:
        """The bytes of one of the members; None for a row that holds none. PipelineError if the file is shorter."""
        if match := _RANGE.fullmatch(member):
            offset, size = int(match[1]), int(match[2])
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    data = file.read(size)
            except OSError as error:
                raise moved(path, error) from error
            if len(data) < size:
                raise PipelineError(f"{path}: ends inside the member {member}; is it cut off? Fetch it again")
            return data
        place = self._rows[path, member]
        if place is None:
            return None
        self._spool.seek(place[0])
        return self._spool.read(place[1])

    def _fetch_rows(self, path: str, column: str, rows: list[int]) -> None:
        """Copy the values of a column in some rows of a Parquet file to the spool."""
        if not Path(path).is_file():
            raise moved(path, FileNotFoundError(2, "No such file or directory"))
        wanted = sorted(rows, reverse=True)
        with open_parquet(path) as file:
            if wanted[0] >= file.metadata.num_rows:
                raise PipelineError(
                    f"{path}: row {wanted[0]} was asked for and it has {file.metadata.num_rows} rows; "
                    "if it was replaced since index_audio, delete the catalog and make it again"
                )
            first = 0
            for group in range(file.metadata.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if wanted and wanted[-1] < end:
                    self._fetch_from_group(file, path, column, group, first, end, wanted)
                first = end

    def _fetch_from_group(
        self, file: pq.ParquetFile, path: str, column: str, group: int, first: int, end: int, wanted: list[int]
    ) -> None:
        """Copy the wanted rows of a row group, which holds `first` to `end`, and take them off `wanted`'s end."""
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False):
                values = leaf(batch, column)
                while wanted and wanted[-1] < first + len(values):
                    row = wanted.pop()
                    data = values[row - first].as_py()
                    place = None
                    if data is not None:
                        place = self._spool.tell(), len(data)
                        self._spool.write(data)
                    self._rows[path, row_member(column, row)] = place
                first += len(values)
                if not wanted or wanted[-1] >= end:
                    return
        except PARQUET_ERRORS as error:
            raise unreadable(path, error) from error


def leaf(batch: pa.RecordBatch, column: str) -> pa.Array:
    """The values at a dotted path of a batch's columns."""
    name, *fields = column.split(".")
    values = batch.column(name)
    return pc.struct_field(values, fields) if fields else values


def moved(path: str | Path, error: OSError) -> PipelineError:
    """The error for a file that the catalog names and that cannot be opened: a matter of the disk, not of the clip."""
    return PipelineError(
        f"{path}: cannot be opened ({error.strerror}); "
        "if the files moved since index_audio, delete the catalog and make it again"
    )


def place_of(clip: Mapping[str, str | None]) -> str:
    """Where a clip's audio lies, for messages: its file, and the member where it is one."""
    return f"{clip['path']}" if clip["member"] is None else f"{clip['path']} {clip['member']}"
