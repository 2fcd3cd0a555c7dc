"""Parquet columns, read in batches of rows, and counts over them.

At most a few numbers are kept per row, so that the manifest of ten million clips fits in memory. Texts are compared
by 64-bit hashes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.catalogs import OK
from pipeline.data.parquet import open_parquet
from pipeline.data.shards.reader import hashes_of

BATCH_ROWS = 1 << 16
MAKER = "the stage that wrote it"
QUANTILES = {"min": 0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}


def read_schema(path: Path) -> pa.Schema:
    """Columns and footer of a Parquet file."""
    with open_parquet(path, MAKER, is_checked=True) as file:
        return file.schema_arrow


def batches(
    path: Path, columns: Sequence[str], row_groups: Sequence[int] | None = None, *, usable: bool = False
) -> Iterator[pa.RecordBatch]:
    """Batches of some columns of a Parquet file; with `usable`, only the rows whose status is ok.

    The file's checksum is not looked at: commands read one file many times, and check it at their beginning.
    """
    columns_read = [*columns, "status"] if usable else list(columns)
    with open_parquet(path, MAKER, is_checked=True) as file:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=row_groups, columns=columns_read):
            yield batch.filter(pc.equal(batch["status"], OK)) if usable else batch


def quantiles(values: np.ndarray) -> dict[str, float]:
    """`QUANTILES` of some values, linearly interpolated."""
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 4) for name, value in zip(QUANTILES, found, strict=True)}


def distributions(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The quantiles of each array that is not empty."""
    return {name: quantiles(array) for name, array in values.items() if len(array)}


def count_values(path: Path, column: str, *, usable: bool) -> dict[str, int]:
    """How often each value occurs, nulls left out, the most frequent first."""
    counts: Counter[Any] = Counter()
    for batch in batches(path, [column], usable=usable):
        for item in batch[column].drop_null().value_counts():
            counts[item["values"].as_py()] += item["counts"].as_py()
    return {str(value): count for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def numbers(path: Path, column: str) -> np.ndarray:
    """A numeric column of the usable rows."""
    parts = [batch[column].drop_null().to_numpy(zero_copy_only=False) for batch in batches(path, [column], usable=True)]
    return np.concatenate(parts) if parts else np.empty(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionStatistics:
    """The captions of the usable clips. Captions are duplicates if they are equal character by character."""

    totals: dict[str, int]
    distributions: dict[str, np.ndarray]
    duplicates: list[dict[str, Any]]
    """The captions that occur most often, and how often."""


def caption_statistics(path: Path, shown: int) -> CaptionStatistics:
    """Count the captions of a manifest or a catalog, and list at most `shown` duplicates."""
    per_clip, words, hashes = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.uint64)]
    for batch in batches(path, ["captions"], usable=True):
        captions = batch["captions"].flatten()
        per_clip.append(pc.list_value_length(batch["captions"]).to_numpy())
        words.append(pc.count_substring_regex(captions, r"\S+").to_numpy())
        hashes.append(hashes_of(captions))
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if len(distinct) == 0:
        return CaptionStatistics(totals={"captions": 0}, distributions={}, duplicates=[])
    repeated = counts > 1
    totals = {
        "captions": int(counts.sum()),
        "distinct_captions": len(distinct),
        "captions_in_use_more_than_once": int(repeated.sum()),
    }
    distinct, counts = distinct[repeated], counts[repeated]
    most = np.lexsort((distinct, -counts))[:shown]
    wanted = dict(zip(distinct[most].tolist(), counts[most].tolist(), strict=True))
    found: dict[int, str] = {}
    for batch in batches(path, ["captions"], usable=True):
        if len(found) == len(wanted):
            break
        captions = batch["captions"].flatten()
        hashes_here = hashes_of(captions)
        for row in np.flatnonzero(np.isin(hashes_here, np.array(list(wanted), np.uint64))):
            found.setdefault(int(hashes_here[row]), captions[int(row)].as_py())
    duplicates = [{"times": count, "caption": found[number]} for number, count in wanted.items()]
    return CaptionStatistics(
        totals=totals,
        distributions={"captions_a_clip": np.concatenate(per_clip), "words_a_caption": np.concatenate(words)},
        duplicates=duplicates,
    )


def lost_rows(path: Path, shown: int) -> list[dict[str, Any]]:
    """The first rows of each reason for which rows are not usable, at most `shown` per reason."""
    by_reason: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for batch in batches(path, ["status", "reason", "key", "source_name"]):
        for row in batch.filter(pc.not_equal(batch["status"], OK)).to_pylist():
            if len(by_reason[row["reason"]]) < shown:
                by_reason[row["reason"]].append({name: row[name] for name in ("reason", "key", "source_name")})
    return [row for reason in sorted(by_reason) for row in by_reason[reason]]


def evenly_spaced(path: Path, columns: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return `count` evenly spaced rows, from the first to the last, reading only their row groups."""
    with open_parquet(path, MAKER, is_checked=True) as file:
        metadata = file.metadata
    wanted = np.unique(np.linspace(0, metadata.num_rows - 1, min(count, metadata.num_rows)).astype(int))
    rows: list[dict[str, Any]] = []
    first = 0
    for group in range(metadata.num_row_groups):
        end = first + metadata.row_group(group).num_rows
        if ((wanted >= first) & (wanted < end)).any():
            for batch in batches(path, columns, [group]):
                here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
                rows += batch.take(pa.array(here, pa.int64())).to_pylist()
                first += batch.num_rows
        first = end
    return rows
