"""Parquet files with a checksum of all their bytes, which their readers check.

The checksum stands in front of the footer, where the format leaves room: readers look for the footer at the end of the
file, and for the columns at the offsets in the footer. Files of earlier versions have none and are read unchecked. The
manifest of a split has none either, because its checksum is in manifest.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError, read_error_message
from pipeline.files import write_atomically

_MARK = b"\0SHA-256"
_DIGEST_BYTES = 32
_TAIL_BYTES = 8  # length of the footer and PAR1
_CHUNK_BYTES = 1 << 20


def write_parquet(table: pa.Table, path: str | Path, row_group_size: int | None = None) -> None:
    """Write a table atomically; the same table gives the same bytes."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_size)


@contextlib.contextmanager
def parquet_writer(path: str | Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a file that appears, with its checksum, once the block ends without an error."""
    with write_atomically(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", **options) as writer:
            yield writer
        _add_checksum(temporary)


def _add_checksum(path: Path) -> None:
    with path.open("rb+") as file:
        footer_at = _footer_offset(file)
        file.seek(footer_at)
        footer = file.read()
        digest = _digest(file, [(0, footer_at), (footer_at, footer_at + len(footer))])
        file.seek(footer_at)
        file.write(_MARK + digest + footer)


def content_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a Parquet file without its own checksum: that of the same rows in earlier versions."""
    with path.open("rb") as file:
        return _checksums(file)[1].hex()


def check_parquet(path: Path, made_by: str) -> None:
    """Raise `PipelineError` if a file is missing or has another checksum than its own; `made_by` is its stage."""
    with _errors_named(path, made_by), path.open("rb") as file:
        recorded, found = _checksums(file)
        if recorded is not None and recorded != found:
            raise PipelineError(f"{path}: is damaged, its SHA-256 is not the recorded one; {_remake(made_by)}")


@contextlib.contextmanager
def open_parquet(
    path: Path, made_by: str, *, is_checked: bool = False, buffer_bytes: int = 0
) -> Iterator[pq.ParquetFile]:
    """Yield a Parquet file after a check of its bytes; `made_by` is the stage that makes it.

    is_checked: whether the caller has checked it, or checks what it reads of it.
    buffer_bytes: size of the pieces that a column is read in; 0 reads it whole.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    if not is_checked:
        check_parquet(path, made_by)
    with (
        _errors_named(path, made_by),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=buffer_bytes, page_checksum_verification=True) as file,
    ):
        yield file


def read_parquet(path: Path, made_by: str) -> pa.Table:
    """Return all rows of a Parquet file, footer metadata kept; see `open_parquet`."""
    with open_parquet(path, made_by) as file:
        return file.read()


@contextlib.contextmanager
def _errors_named(path: Path, made_by: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; make it with {made_by}") from None
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(read_error_message(path, error, _remake(made_by))) from error


def _remake(made_by: str) -> str:
    return f"delete it and make it again with {made_by}"


def _checksums(file: BinaryIO) -> tuple[bytes | None, bytes]:
    """The checksum that a file records, None without one, and that of its bytes without it."""
    size, footer_at = file.seek(0, os.SEEK_END), _footer_offset(file)
    mark_at = footer_at - _DIGEST_BYTES - len(_MARK)
    if mark_at > 0:
        file.seek(mark_at)
        if file.read(len(_MARK)) == _MARK:
            recorded = file.read(_DIGEST_BYTES)
            return recorded, _digest(file, [(0, mark_at), (footer_at, size)])
    return None, _digest(file, [(0, size)])


def _footer_offset(file: BinaryIO) -> int:
    """Where the footer begins; below 0 for a file that is too short or cut."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    return size - _TAIL_BYTES - int.from_bytes(file.read(4), "little")


def _digest(file: BinaryIO, ranges: list[tuple[int, int]]) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    for start, end in ranges:
        file.seek(start)
        while start < end and (found := file.readinto(buffer[: end - start])):  # type: ignore[attr-defined]
            digest.update(buffer[:found])
            start += found
    return digest.digest()
