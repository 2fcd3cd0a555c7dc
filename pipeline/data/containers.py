"""Clips whose bytes lie inside a larger file: a row of a Parquet file, or a range of bytes of a tar.

The catalog's column `member` says where: `audio.bytes[17]` is row 17 (from 0) of the column audio.bytes, and
`1536+88244` are 88,244 bytes from byte 1,536 on. A sparse member of a tar is several pieces, and those that the tar
leaves out are zeros: `1536+512,zeros+7680,2048+512`.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.sound_files import byte_range
from pipeline.errors import PipelineError

_RANGE = re.compile(r"(\d+)\+(\d+)")
_PIECES = re.compile(r"(?:\d+|zeros)\+\d+(?:,(?:\d+|zeros)\+\d+)*")
_ROW = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)
_BATCH_ROWS = 16  # clips in memory at once
_BUFFER_BYTES = 1 << 20  # a column chunk of gigabytes is read in pieces of this size
PARQUET_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)
"""The errors of pyarrow for a file that is damaged, cut off or no Parquet at all."""


def range_member(pieces: Sequence[tuple[int | None, int]]) -> str:
    """The member that is made of pieces of a file: offset and size of each, the offset None for zeros."""
    return ",".join(f"{'zeros' if offset is None else offset}+{size}" for offset, size in pieces)


def read_range(file: BinaryIO, member: str) -> bytes:
    """The bytes of a member that `range_member` has named; fewer where the file ends before."""
    pieces = []
    for piece in member.split(","):
        offset, size = piece.split("+")
        if offset == "zeros":
            pieces.append(bytes(int(size)))
        else:
            file.seek(int(offset))
            pieces.append(file.read(int(size)))
    return b"".join(pieces)  # of one piece this is no copy


def range_size(member: str) -> int:
    """Bytes of a member that `range_member` has named."""
    return sum(int(piece.split("+")[1]) for piece in member.split(","))


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
            elif not _PIECES.fullmatch(member):
                raise PipelineError(f"{path}: the catalog's member {member!r} is none; make the catalog again")
        for path, columns in wanted.items():
            for column, rows in columns.items():
                for row, data in read_values(path, column, rows):
                    place = None
                    if data is not None:
                        place = spool.tell(), len(data)
                        spool.write(data)
                    self._rows[path, row_member(column, row)] = place

    def read(self, path: str, member: str) -> bytes | None:
        """The bytes of one of the members; None for a row that holds none. PipelineError if the file is shorter."""
        if _PIECES.fullmatch(member):
            try:
                with open(path, "rb") as file:
                    data = read_range(file, member)
            except OSError as error:
                raise moved(path, error) from error
            if len(data) < range_size(member):
                raise _ends_inside(path, member)
            return data
        place = self._rows[path, member]
        if place is None:
            return None
        self._spool.seek(place[0])
        return self._spool.read(place[1])

    @contextlib.contextmanager
    def opened(self, path: str, member: str) -> Iterator[BinaryIO | None]:
        """One of the members as a file, of which only what is asked for is read; None as `read`.

        A sparse member is read whole.
        """
        match = _RANGE.fullmatch(member)
        if match is None and _PIECES.fullmatch(member):
            yield io.BytesIO(self.read(path, member) or b"")
        elif match is None:
            place = self._rows[path, member]
            yield None if place is None else byte_range(self._spool, place[0], sum(place))
        else:
            offset, size = map(int, match.groups())
            with open_file(path) as file:
                if file.seek(0, io.SEEK_END) < offset + size:
                    raise _ends_inside(path, member)
                yield byte_range(file, offset, offset + size)


def open_file(path: str | Path) -> io.FileIO:
    """The file that a catalog names, unbuffered; PipelineError if it cannot be opened."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise moved(path, error) from error


def _ends_inside(path: str, member: str) -> PipelineError:
    return PipelineError(f"{path}: ends inside the member {member}; is it cut off? Fetch it again")


def read_values(path: str, column: str, rows: Iterable[int]) -> Iterator[tuple[int, bytes | None]]:
    """Number and value of some rows of a Parquet file's column, in the file's order, a few in memory at once.

    Raises PipelineError for a file that is not there, damaged, or has fewer rows.
    """
    if not Path(path).is_file():
        raise moved(path, FileNotFoundError(2, "No such file or directory"))
    wanted = sorted(rows, reverse=True)
    with open_parquet(path) as file:
        if wanted and wanted[0] >= file.metadata.num_rows:
            raise PipelineError(
                f"{path}: row {wanted[0]} was asked for and it has {file.metadata.num_rows} rows; "
                "if it was replaced since index_audio, delete the catalog and make it again"
            )
        first = 0
        for group in range(file.metadata.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if wanted and wanted[-1] < end:
                yield from _group_values(file, path, column, group, first, end, wanted)
            first = end


def _group_values(
    file: pq.ParquetFile, path: str, column: str, group: int, first: int, end: int, wanted: list[int]
) -> Iterator[tuple[int, bytes | None]]:
    """The wanted rows of a row group, which holds `first` to `end`; each is taken off `wanted`'s end."""
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False):
            values = leaf(batch, column)
            while wanted and wanted[-1] < first + len(values):
                row = wanted.pop()
                yield row, values[row - first].as_py()
            first += len(values)
            if not wanted or wanted[-1] >= end:
                return
    except PARQUET_ERRORS as error:
        raise unreadable(path, error) from error


def leaf(batch: pa.RecordBatch, column: str) -> pa.Array:
    """The values of a column, or of a field of a struct, which is named like `audio.bytes`.

    A column may have such a name itself: polars gives it to the fields of a struct that it unnests.
    """
    if column in batch.schema.names:
        return batch.column(column)
    name, _, field = column.rpartition(".")
    return pc.struct_field(batch.column(name), [field])


def moved(path: str | Path, error: OSError) -> PipelineError:
    """The error for a file that the catalog names and that cannot be opened: a matter of the disk, not of the clip."""
    return PipelineError(
        f"{path}: cannot be opened ({error.strerror}); "
        "if the files moved since index_audio, delete the catalog and make it again"
    )


def place_of(clip: Mapping[str, str | None]) -> str:
    """Where a clip's audio lies, for messages: its file, and the member where it is one."""
    return f"{clip['path']}" if clip["member"] is None else f"{clip['path']} {clip['member']}"
