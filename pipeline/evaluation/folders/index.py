"""The index of a folder of recordings for one model: the vectors of their windows, in files that grow.

    vectors-N.f32      the windows' embeddings at unit length, float32
    windows-N.i64      the number of each window in its recording, int64
    00000001.parquet   the journal: parts that say which rows belong to which file
    00000009.all.parquet   the journal up to this part in one file; those before it are superseded
    lock               locked by the process that adds to the index

Rows are appended and synced before a part of the journal names them. So after a kill the index is as it was at the last
part, and the rows behind are overwritten. The rows of files that changed or are gone stay until they are more than
half. Then the others are copied to new files, which `.all` names by N; it appears last, so this survives a kill too.
"""

# N = rows, one per window, D = joint width

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.parquet import read_parquet, write_parquet
from pipeline.errors import PipelineError, write_error_message
from pipeline.evaluation.folders.recordings import RecordingFile
from pipeline.files import try_lock, write_atomically

logger = logging.getLogger(__name__)

MOST_PARTS = 100
"""More parts than these are joined to one file."""
_PART = re.compile(r"(\d{8})(\.all)?\.parquet")
_COPIED_ROWS = 1 << 14
_REMAKE = "delete the folder and search again"
_SCHEMA = pa.schema(
    [
        ("name", pa.binary()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("next_window", pa.int64()),
        ("duration_s", pa.float64()),
        ("is_complete", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(slots=True)
class IndexedFile:
    """The entry of a recording in the index."""

    name: str
    size: int
    mtime_ns: int
    extents: list[tuple[int, int]] = field(default_factory=list)
    """First row and number of rows of each stretch of rows, in the order of their windows."""
    next_window: int = 0
    """Number of the first window that is not in the index yet, if the file is not complete."""
    duration_s: float = 0.0
    """How much was decoded; 0 until the file is complete."""
    is_complete: bool = False
    reason: str | None = None
    """Why it was not decoded, or not to its end."""
    detail: str | None = None

    @property
    def rows(self) -> int:
        """Its number of windows."""
        return sum(rows for _, rows in self.extents)

    def is_of(self, file: RecordingFile) -> bool:
        """Return whether the file is still the one that was indexed, by its size and time of modification."""
        return (self.size, self.mtime_ns) == (file.size, file.mtime_ns)


@dataclass(slots=True)
class _State:
    """The index as the journal describes it."""

    files: dict[str, IndexedFile] = field(default_factory=dict)
    rows: int = 0
    """Rows that the journal names, dead ones too."""
    base: int = 0
    """N of the files of vectors and numbers."""
    last_part: int = 0
    parts: int = 0


class FolderIndex:
    """An index on disk; `files` is what it holds."""

    def __init__(self, folder: Path, width: int, made_for: Mapping[str, str]) -> None:
        """Read the journal; an index that does not exist is empty.

        Args:
            folder: that of the index.
            width: D.
            made_for: what the index depends on, such as the model's checksum; another index is refused.

        Raises:
            PipelineError: The index is damaged, or it was made for something else.
        """
        self.folder, self.width = folder, width
        self._made_for = {name: str(value) for name, value in made_for.items()}
        self._state = self._read()

    @property
    def files(self) -> Mapping[str, IndexedFile]:
        """By name."""
        return self._state.files

    def _read(self) -> _State:
        parts = _parts_in(self.folder)
        wholes = [number for number, is_whole in parts if is_whole]
        first = max(wholes, default=0)
        state = _State(last_part=first)
        for number, is_whole in parts:
            if number < first or (number == first and not is_whole):
                continue
            table = read_parquet(self._part(number, is_whole), "search")
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            base = metadata.pop("base", "0")
            if metadata != self._made_for or table.schema.names != _SCHEMA.names:
                raise PipelineError(f"{self.folder}: is the index of another model or folder; {_REMAKE}")
            state.base, state.last_part = int(base), number
            state.parts += 1
            _apply(state, table)
        for path, row_bytes in ((self._vectors(state.base), 4 * self.width), (self._numbers(state.base), 8)):
            size = path.stat().st_size if path.exists() else 0
            if size < state.rows * row_bytes:
                raise PipelineError(f"{path}: is damaged, it holds {size // row_bytes} of {state.rows} rows; {_REMAKE}")
        return state

    def _part(self, number: int, is_whole: bool) -> Path:
        return self.folder / f"{number:08d}{'.all' * is_whole}.parquet"

    def _vectors(self, base: int) -> Path:
        return self.folder / f"vectors-{base}.f32"

    def _numbers(self, base: int) -> Path:
        return self.folder / f"windows-{base}.i64"

    def vectors(self) -> NDArray[np.float32]:
        """Return the vectors of all rows (N, D), memory-mapped; some rows may belong to no file any more."""
        return _mapped(self._vectors(self._state.base), np.float32, (self._state.rows, self.width))

    def numbers(self) -> NDArray[np.int64]:
        """Return the number of each row's window in its recording (N,), memory-mapped."""
        return _mapped(self._numbers(self._state.base), np.int64, (self._state.rows,))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the index for this process alone, and read again what another process may have added.

        Raises:
            PipelineError: Another process holds it, or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with _write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(self.folder / "lock", "w"))
            if not try_lock(lock.fileno(), self.folder):
                raise PipelineError(f"{self.folder}: another search adds to this index; wait until it ends")
            self._state = self._read()
            yield

    @contextlib.contextmanager
    def writer(self) -> Iterator[IndexWriter]:
        """Yield a writer, which appends rows; the index must be locked. Rows that are not committed are lost."""
        state = self._state
        with contextlib.ExitStack() as stack:
            files = []
            with _write_errors(self.folder):
                for path, row_bytes in ((self._vectors(state.base), 4 * self.width), (self._numbers(state.base), 8)):
                    file = stack.enter_context(open(path, "r+b" if path.exists() else "w+b"))
                    file.truncate(state.rows * row_bytes)
                    file.seek(0, os.SEEK_END)
                    files.append(file)
            yield IndexWriter(state, self.folder, files[0], files[1], self._write_part)
        if state.parts > MOST_PARTS:
            self._write_whole(state.base)

    def _write_part(self, rows: Sequence[Mapping[str, Any]]) -> None:
        state = self._state
        table = pa.Table.from_pylist(list(rows), _SCHEMA)
        state.last_part += 1
        state.parts += 1
        metadata = {**self._made_for, "base": str(state.base)}
        write_parquet(table.replace_schema_metadata(metadata), self._part(state.last_part, is_whole=False))

    def forget_all_but(self, names: Container[str]) -> None:
        """Forget the other files. Their rows stay until `compact`."""
        for name in [name for name in self._state.files if name not in names]:
            del self._state.files[name]

    @property
    def is_mostly_dead(self) -> bool:
        """Whether most rows belong to no file."""
        return sum(file.rows for file in self._state.files.values()) < self._state.rows / 2

    def compact(self) -> None:
        """Copy the living rows to new files. The index must be locked."""
        state = self._state
        base = state.last_part + 1
        extents = sorted((extent, file.name) for file in state.files.values() for extent in file.extents)
        moved: dict[str, list[tuple[int, int]]] = {name: [] for name in state.files}
        vectors_ND, numbers_N = self.vectors(), self.numbers()
        row = 0
        with (
            write_atomically(self._vectors(base)) as vectors_path,
            write_atomically(self._numbers(base)) as numbers_path,
            vectors_path.open("wb") as vectors_file,
            numbers_path.open("wb") as numbers_file,
        ):
            for (first, rows), name in extents:
                for part in range(first, first + rows, _COPIED_ROWS):
                    end = min(part + _COPIED_ROWS, first + rows)
                    vectors_file.write(vectors_ND[part:end].tobytes())
                    numbers_file.write(numbers_N[part:end].tobytes())
                moved[name].append((row, rows))
                row += rows
        for file in state.files.values():
            file.extents = sorted(moved[file.name])
        state.rows = row
        self._write_whole(base)

    def _write_whole(self, base: int) -> None:
        """Write the journal as one file, and remove what it supersedes."""
        state = self._state
        rows = [row for file in state.files.values() for row in _rows_of(file)]
        table = pa.Table.from_pylist(rows, _SCHEMA)
        state.last_part, state.base, state.parts = state.last_part + 1, base, 1
        metadata = {**self._made_for, "base": str(base)}
        write_parquet(table.replace_schema_metadata(metadata), self._part(state.last_part, is_whole=True))
        for number, is_whole in _parts_in(self.folder):
            if number < state.last_part:
                self._part(number, is_whole).unlink(missing_ok=True)
        kept = {self._vectors(base), self._numbers(base)}
        for path in (*self.folder.glob("vectors-*.f32"), *self.folder.glob("windows-*.i64")):
            if path not in kept:
                path.unlink(missing_ok=True)


class IndexWriter:
    """Appends rows to an index; `commit` makes them last."""

    def __init__(
        self,
        state: _State,
        folder: Path,
        vectors: BinaryIO,
        numbers: BinaryIO,
        write_part: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> None:
        self._state, self._folder = state, folder
        self._files = (vectors, numbers)
        self._write_part = write_part
        self._rows = state.rows
        self._changed: dict[str, IndexedFile] = {}
        self._new_extents: dict[str, list[tuple[int, int]]] = {}

    def file(self, found: RecordingFile) -> IndexedFile:
        """Return what the index holds of a file, so that it can continue; nothing of one that has changed."""
        held = self._changed.get(found.name) or self._state.files.get(found.name)
        if held is None or not held.is_of(found):
            held = IndexedFile(found.name, found.size, found.mtime_ns)
        self._changed[found.name] = held
        return held

    def append(self, file: IndexedFile, vectors_ND: NDArray[np.float32], numbers_N: NDArray[np.int64]) -> None:
        """Append the next windows of a file."""
        vectors, numbers = self._files
        with _write_errors(self._folder):
            vectors.write(np.ascontiguousarray(vectors_ND, np.float32).data)
            numbers.write(np.ascontiguousarray(numbers_N, np.int64).data)
        if self._changed.get(file.name) is file:  # else it was abandoned
            self._new_extents.setdefault(file.name, []).append((self._rows, len(numbers_N)))
            file.next_window = int(numbers_N[-1]) + 1
        self._rows += len(numbers_N)

    def abandon(self, file: IndexedFile) -> None:
        """Leave a file out of the next commit: it could not be read, or has changed since."""
        self._changed.pop(file.name, None)
        self._new_extents.pop(file.name, None)

    def commit(self) -> None:
        """Sync what was appended, and write a part of the journal that names it."""
        if not self._changed:
            return
        with _write_errors(self._folder):
            for written in self._files:
                written.flush()
                os.fsync(written.fileno())
        rows = []
        for file in self._changed.values():
            added = _joined(self._new_extents.get(file.name, []))
            rows += _rows_of(file, added)
            file.extents = _joined([*file.extents, *added])
            self._state.files[file.name] = file
        self._write_part(rows)
        self._state.rows = self._rows
        # A file that is not complete continues after this part.
        self._changed = {name: file for name, file in self._changed.items() if not file.is_complete}
        self._new_extents.clear()


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PipelineError(write_error_message(error.filename or folder, error)) from error


def _parts_in(folder: Path) -> list[tuple[int, bool]]:
    """The number of each part of the journal, and whether it holds all before it; in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be listed ({error.strerror}); {_REMAKE}") from error
    return sorted((int(found[1]), found[2] is not None) for name in names if (found := _PART.fullmatch(name)))


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    if shape[0] == 0:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)


def _rows_of(file: IndexedFile, extents: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Any]]:
    """The rows of the journal for a file: one per extent, at least one."""
    return [
        {
            "name": os.fsencode(file.name),
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "first_row": first,
            "rows": rows,
            "next_window": file.next_window,
            "duration_s": file.duration_s,
            "is_complete": file.is_complete,
            "reason": file.reason,
            "detail": file.detail,
        }
        for first, rows in (file.extents if extents is None else extents) or [(0, 0)]
    ]


def _apply(state: _State, table: pa.Table) -> None:
    """Add a part of the journal to the state; a file of another size or time than before begins again."""
    columns = [table[name].to_pylist() for name in _SCHEMA.names]  # three times as fast as one dict per row
    for name_bytes, size, mtime_ns, first, rows, *progress in zip(*columns, strict=True):
        name = os.fsdecode(name_bytes)
        file = state.files.get(name)
        if file is None or (file.size, file.mtime_ns) != (size, mtime_ns):
            file = state.files[name] = IndexedFile(name, size, mtime_ns)
        if rows:
            file.extents = _joined([*file.extents, (first, rows)])
            state.rows = max(state.rows, first + rows)
        file.next_window, file.duration_s, file.is_complete, file.reason, file.detail = progress


def _joined(extents: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The extents, those joined that follow each other without a gap."""
    joined: list[tuple[int, int]] = []
    for first, rows in extents:
        if joined and sum(joined[-1]) == first:
            joined[-1] = joined[-1][0], joined[-1][1] + rows
        else:
            joined.append((first, rows))
    return joined
