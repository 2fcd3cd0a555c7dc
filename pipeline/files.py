"""Files that are either whole or absent: atomic writes, checksums, deterministic Parquet and JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it once the block ends without an error.

    The data are synced before the rename, so that a crash leaves either the old file or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600, which a group on a cluster could not read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_parquet(table: pa.Table, path: str | Path, row_group_size: int | None = None) -> None:
    """Write a table atomically; the same table gives the same bytes."""
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=row_group_size)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; PipelineError if it is missing or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found") from None
    except ValueError as error:
        raise PipelineError(f"{path}: is not JSON ({error}); make it again") from error
    if not isinstance(value, dict):
        raise PipelineError(f"{path}: holds a JSON {type(value).__name__}, not an object; make it again")
    return value


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
