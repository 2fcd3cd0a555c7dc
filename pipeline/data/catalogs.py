"""The catalog of a split: one row per source clip with its key, file, captions, and the reason if it is unusable."""

from __future__ import annotations

import hashlib
import html
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.adapters.rows import SourceRow
from pipeline.data.parquet import open_parquet
from pipeline.errors import PipelineError

OK, DROPPED, FAILED = "ok", "dropped", "failed"

REASONS: dict[str, tuple[str, str]] = {
    # Known from the list and the folder (stage index_audio). An empty row of a Parquet file shows when it is read.
    "missing_file": (DROPPED, "has no audio file"),
    "ambiguous_file": (DROPPED, "matches several audio files, or its file matches several rows"),
    "no_caption": (DROPPED, "has no caption"),
    "duplicate": (DROPPED, "is listed before"),
    "bad_stretch": (DROPPED, "has an end_s that is not behind its start_s, or a start_s below 0"),
    # Known once the audio is decoded (stage shard_audio).
    "empty": (DROPPED, "holds no samples"),
    "too_short": (DROPPED, "is shorter than the least duration"),
    "beyond_end": (DROPPED, "ends behind the end of its recording"),
    "too_long": (DROPPED, "is longer than a WAV file can be"),
    "silent": (DROPPED, "is silent"),
    "out_of_phase": (DROPPED, "is silent in the mean of its channels, which cancel out"),
    "clipped": (DROPPED, "is a square wave: most of its samples are at full scale"),
    "undecodable": (FAILED, "cannot be decoded"),
    "truncated": (FAILED, "ends before its header says"),
    "damaged": (FAILED, "holds bytes between its frames that are no audio"),
    "inconsistent": (FAILED, "holds more than its header says"),
    "changes_format": (FAILED, "changes its sample rate or its channels midway"),
    "not_finite": (FAILED, "holds samples that are NaN or infinite"),
    # Known per run, because the study says which splits are held out (stage pair_clips).
    "leaked": (DROPPED, "is also in a validation or test split"),
}
"""Status and wording of each reason why a clip is not used."""

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("member", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)

SEGMENT_FIELDS = (pa.field("segment_start_s", pa.float64()), pa.field("segment_end_s", pa.float64()))
"""Further columns of a split with stretches of recordings: begin and end within the file; null for a whole file."""
SEGMENT_COLUMNS = tuple(field.name for field in SEGMENT_FIELDS)

EXPECTED = frozenset({"too_short", "silent"})
"""Reasons for which stretches of a recording may be lost in any number: last pieces, and pauses of the recorder."""

ROW_GROUP_ROWS = 1 << 14
"""Rows per row group of a catalog, small enough to read a shard's rows without the others."""

KEY_LENGTH = 64
_DIGEST_LENGTH = 8
_MOST_MS = 10**10 - 1
_EXTENSIONS_LEFT_OUT = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf"}
    | {".m4a", ".aac", ".wma", ".webm", ".mp4"}
)
"""Extensions that keys leave out. New audio formats are not added here, because that would change keys."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A clip that is not used."""

    reason: str
    place: str
    """Where the clip is listed: a row of the publisher's list, or a key."""
    is_expected: bool = False
    """Whether it does not count against the dataset's max_dropped_fraction."""

    def __str__(self) -> str:
        return f"{self.place} {REASONS[self.reason][1]}"


# --- keys ------------------------------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """Return a name as lower-case ASCII letters and digits, joined by single underscores; may be empty."""
    ascii_name = unicodedata.normalize("NFKD", html.unescape(name)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_name.lower()).strip("_")


def clip_key(
    dataset: str, split: str, source_name: str, occurrence: int = 0, stretch_s: tuple[float, float] | None = None
) -> str:
    """Return `{dataset}_{split}_{name}_{hash}`, at most 64 characters of [a-z0-9_].

    The hash covers the exact names. So a key stays the same when clips are added, and `Train 1` and `train-1` differ.
    `occurrence` counts the earlier rows of the same name. A stretch of a file has `_{start}_{end}` at the end, in
    milliseconds of ten digits: so the stretches of a recording are neighbours in the catalog, in their order.
    """
    prefix = f"{slug(dataset)}_{slug(split)}"
    times = ""
    for second in stretch_s or ():
        times += f"_{min(max(0, round(1000 * second)), _MOST_MS):010d}"
    room = KEY_LENGTH - len(prefix) - _DIGEST_LENGTH - 2 - len(times)
    if room < 0:
        raise PipelineError(
            f"{dataset}/{split}: keys begin with both names, which take {len(prefix)} characters; "
            f"shorten one, at most {len(prefix) + room} characters fit"
        )
    digest = hashlib.sha256("\0".join((dataset, split, source_name, str(occurrence))).encode()).hexdigest()
    name = PurePosixPath(source_name).name
    stem, extension = os.path.splitext(name)
    middle = slug(stem if extension.strip().lower() in _EXTENSIONS_LEFT_OUT else name)[:room].strip("_")
    return "_".join(part for part in (prefix, middle, digest[:_DIGEST_LENGTH]) if part) + times


# --- tables ----------------------------------------------------------------------------------------------------------


def with_segments(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the columns of stretches."""
    return pa.schema([*schema, *SEGMENT_FIELDS])


def fitting(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return the schema, or the one with the columns of stretches if they are among the names."""
    return with_segments(schema) if SEGMENT_COLUMNS[0] in names else schema


def catalog_of(rows: Iterable[SourceRow], *, dataset: str, split: str, labeled: bool) -> tuple[pa.Table, list[Loss]]:
    """Return the catalog, sorted by key, and its unusable clips in the order of the list.

    labeled: whether clips need a caption. Otherwise captions are left out, so that none can reach a run that uses the
    audio alone.

    Raises:
        PipelineError: The split has no rows, or two clips get the same key.
    """
    records: dict[str, dict[str, Any]] = {}
    losses = []
    occurrences: Counter[Any] = Counter()
    schema = CATALOG_SCHEMA
    for row in rows:
        stretch_s = row.stretch_s
        if stretch_s is not None:
            schema = with_segments(CATALOG_SCHEMA)
        occurrence = occurrences[row.source_name, stretch_s]
        occurrences[row.source_name, stretch_s] += 1
        reason = row.reason
        if occurrence and reason != "bad_stretch":
            reason = "duplicate"
        elif reason is None and labeled and not row.captions:
            reason = "no_caption"
        if reason is not None:
            place = f"{dataset}/{split}" if row.row is None else f"{dataset}/{split} row {row.row}:"
            times = "" if stretch_s is None else f" {stretch_s[0]:g}-{stretch_s[1]:g} s"
            is_expected = stretch_s is not None and reason in EXPECTED
            losses.append(Loss(reason, f'{place} "{row.source_name}"{times}', is_expected))
        key = clip_key(dataset, split, row.source_name, occurrence, stretch_s)
        if key in records:
            raise PipelineError(
                f'{dataset}/{split}: "{row.source_name}" and "{records[key]["source_name"]}" both get the key {key}; '
                "rename one of them"
            )
        records[key] = {
            "key": key,
            "dataset": dataset,
            "split": split,
            "source_name": row.source_name,
            "path": row.path,
            "member": row.member,
            "source_id": row.source_id,
            "start_s": row.start_s,
            "captions": list(row.captions) if labeled else [],
            "status": OK if reason is None else REASONS[reason][0],
            "reason": reason,
            **dict(zip(SEGMENT_COLUMNS, stretch_s or (None, None), strict=True)),
        }
    if not records:
        raise PipelineError(f"{dataset}/{split}: the list of clips is empty; check the split's name and its file")
    return pa.Table.from_pylist([records[key] for key in sorted(records)], schema=schema), losses


def check_losses(losses: Iterable[Loss], clips: int, max_dropped_fraction: float, what: str) -> None:
    """Raise PipelineError if more than the fraction of clips is lost, or all; it names the first of each reason.

    Expected losses count only where all clips are lost.
    """
    counts: Counter[str] = Counter()
    expected = 0
    first: dict[str, list[str]] = defaultdict(list)
    for loss in losses:
        counts[loss.reason] += 1
        expected += loss.is_expected
        if counts[loss.reason] <= 3:
            first[loss.reason].append(loss.place)
    lost = counts.total()
    if lost - expected <= max_dropped_fraction * clips and lost < clips:
        return
    parts = []
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        more = f" and {count - 3} more" if count > 3 else ""
        parts.append(f"{count} {reason} ({'; '.join(first[reason])}{more})")
    limit = f"{(lost - expected) / clips:.1%}, allowed are {max_dropped_fraction:.1%}"
    advice = "repair them or raise the dataset's max_dropped_fraction"
    if lost == clips:
        limit, advice = "none is left", "check the dataset's root and split"
    raise PipelineError(f"{what}: {lost} of {clips} clips cannot be used ({limit}): {', '.join(parts)}; {advice}")


def _check_columns(file: pq.ParquetFile, path: Path, schema: pa.Schema, made_by: str) -> None:
    if not file.schema_arrow.equals(fitting(schema, file.schema_arrow.names)):
        raise PipelineError(
            f"{path}: not a file of {made_by}: expected columns {', '.join(schema.names)}, "
            f"found {', '.join(file.schema_arrow.names)}; make it again"
        )


def read_table(path: Path, schema: pa.Schema, made_by: str) -> pa.Table:
    """A Parquet file of this schema, footer metadata kept; PipelineError if it is missing, damaged or another table.

    It may have the columns of stretches, too.
    """
    with open_parquet(path, made_by) as file:
        _check_columns(file, path, schema, made_by)
        return file.read()


def read_catalog(path: Path) -> pa.Table:
    """Return the catalog that index_audio wrote."""
    return read_table(path, CATALOG_SCHEMA, "index_audio")


def catalog_tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Some columns of a catalog, or all, a batch of rows at a time, in its order."""
    with open_parquet(path, "index_audio") as file:
        _check_columns(file, path, CATALOG_SCHEMA, "index_audio")
        for batch in file.iter_batches(ROW_GROUP_ROWS, columns=columns and list(columns), use_threads=False):
            yield pa.Table.from_batches([batch])


def regrouped(tables: Iterable[pa.Table], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the rows of tables as tables of these sizes, until the rows or the sizes end; the last may be smaller.

    Memory holds about one table of either kind.
    """
    tables, waiting = iter(tables), None
    for size in sizes:
        while waiting is None or len(waiting) < size:
            if (table := next(tables, None)) is None:
                break
            waiting = table if waiting is None else pa.concat_tables([waiting, table])
        if waiting is None or len(waiting) == 0:
            return
        yield waiting.slice(0, size).combine_chunks()
        waiting = waiting.slice(size)


def read_catalog_rows(path: Path, first_row: int, rows: int) -> pa.Table:
    """`rows` rows of a catalog from a row on, reading only their row groups; fewer where the catalog ends.

    The file's checksum is not looked at: the caller compares the rows with the digest in the plan.
    """
    with open_parquet(path, "index_audio", is_checked=True) as file:
        _check_columns(file, path, CATALOG_SCHEMA, "index_audio")
        groups = range(first_row // ROW_GROUP_ROWS, -(-(first_row + rows) // ROW_GROUP_ROWS))
        table = file.read_row_groups([group for group in groups if group < file.num_row_groups], use_threads=False)
        return table.slice(first_row % ROW_GROUP_ROWS, rows)
