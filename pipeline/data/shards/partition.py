"""Which clips of a catalog stand in which shard, such that new clips leave most shards as they are.

A shard is a run of the catalog, which is sorted by key, and ends where the keys say so rather than after every so many
clips: a run that is too long is cut before the key whose hash is least, and so are its parts. A clip that is added or
taken away then changes the shard it stands in, rarely its neighbours, and no other. This is content-defined chunking
(Muthitacharoen et al., "A low-bandwidth network file system", 2001) with the recursion of a treap (Seidel and Aragon,
1996) in place of a rolling hash. A shard is named by its first key, the first one `00000`, so that names stay as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.catalogs import CATALOG_SCHEMA, catalog_tables, read_catalog_rows, read_table, regrouped
from pipeline.errors import PipelineError
from pipeline.parquet import write_parquet

FIRST_SHARD = "00000"
LEAST_SHARE = 4
"""Of several shards none holds fewer than this part of `clips_per_shard`, so that they are not too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What stands in one shard."""

    shard: str
    first_row: int
    """Of the catalog."""
    rows: int
    digest: str
    """Of these rows of the catalog: equal digests, equal rows."""


PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
"""Columns of the plan of a split, one row per shard."""


def cuts(priorities: NDArray[np.uint64], most: int) -> list[int]:
    """The first row of every shard, ascending, for the hashes of a catalog's keys.

    Every shard has at most `most` rows and, where there are several, at least a `LEAST_SHARE`th of them (and one).
    """
    least = max(1, most // LEAST_SHARE)
    found, runs = [0], [(0, len(priorities))]
    while runs:
        first, end = runs.pop()
        if end - first <= most:
            continue
        cut = first + least + int(np.argmin(priorities[first + least : end - least + 1]))
        found.append(cut)
        runs += [(first, cut), (cut, end)]
    return sorted(found)


def boundaries_of(keys: Iterable[str], clips_per_shard: int) -> list[int]:
    """The first row of every shard of a catalog with these keys, ascending, and the number of rows."""
    hashes = bytearray()
    for key in keys:
        hashes += hashlib.blake2b(key.encode(), digest_size=8).digest()
    priorities = np.frombuffer(hashes, "<u8")
    return [*cuts(priorities, clips_per_shard), len(priorities)]


def read_assignment(catalog: Path, clips_per_shard: int) -> list[Assignment]:
    """The shards of the catalog in a file, which is read twice, a batch of rows at a time."""
    keys = (key for table in catalog_tables(catalog, ["key"]) for key in table["key"].to_pylist())
    boundaries = boundaries_of(keys, clips_per_shard)
    sizes = [end - first for first, end in pairwise(boundaries)]
    tables = regrouped(catalog_tables(catalog, CATALOG_SCHEMA.names), sizes)
    return [
        Assignment(
            shard=table["key"][0].as_py() if first else FIRST_SHARD,
            first_row=first,
            rows=len(table),
            digest=digest_of(table),
        )
        for first, table in zip(boundaries, tables, strict=False)
    ]


# --- the plan of a split ---------------------------------------------------------------------------------------------


def write_plan(shards: Sequence[Assignment], path: Path) -> None:
    """Write the shards of a catalog, so that no job needs to read the whole catalog to find its own."""
    write_parquet(pa.Table.from_pylist([asdict(shard) for shard in shards], schema=PLAN_SCHEMA), path)


def read_plan(path: Path) -> list[Assignment]:
    """The shards of a catalog, in the order of their keys, as `write_plan` wrote them."""
    return [Assignment(**row) for row in read_table(path, PLAN_SCHEMA, "index_audio").to_pylist()]


def part_of(shards: Sequence[Assignment], part: str) -> Sequence[Assignment]:
    """The shards of one of several jobs: part `2-of-4` is the third quarter.

    Raises `PipelineError` for a part that does not exist.
    """
    number, _, jobs = part.partition("-of-")
    if not (number.isdecimal() and jobs.isdecimal() and int(number) < int(jobs)):
        raise PipelineError(f"there is no part {part!r}; parts are 0-of-4, 1-of-4, ... of any number of jobs")
    first, end = (len(shards) * place // int(jobs) for place in (int(number), int(number) + 1))
    return shards[first:end]


def read_shard(catalog: Path, shard: Assignment) -> pa.Table:
    """The rows of a catalog that stand in a shard, reading only their row groups.

    Raises `PipelineError` when they are not those that the plan was made of.
    """
    table = read_catalog_rows(catalog, shard.first_row, shard.rows)
    if digest_of(table) != shard.digest:
        raise PipelineError(
            f"{catalog}: the rows of shard {shard.shard} are not those of the plan next to it; make both again with "
            "index_audio"
        )
    return table


def digest_of(table: pa.Table) -> str:
    """A hash of the names, types and values of a table, whatever its chunks and buffers are."""
    digest = hashlib.sha256()
    for name in table.schema.names:
        array = table[name].combine_chunks()
        digest.update(f"{name}:{array.type}:{len(array)};".encode())
        for part in _values(array):
            digest.update(part)
    return digest.hexdigest()[:32]


def _values(array: pa.Array) -> Iterator[bytes]:
    """The nulls, lengths and values of an array, as bytes that depend on nothing else."""
    yield array.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_list(array.type):
        yield pc.fill_null(pc.list_value_length(array), -1).to_numpy().tobytes()
        yield from _values(array.flatten())
    elif pa.types.is_string(array.type):
        yield pc.fill_null(pc.binary_length(array), -1).to_numpy().tobytes()
        yield "".join(array.drop_null().to_pylist()).encode()
    else:
        yield pc.fill_null(array, 0).to_numpy(zero_copy_only=False).tobytes()
