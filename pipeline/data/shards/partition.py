"""Which clips of a catalog are in which shard, chosen so that new clips leave most shards unchanged.

A shard is a run of rows of the catalog, which is sorted by key. The keys decide where it ends, not a count of clips: a
run that is too long is cut before the key with the smallest hash, and its parts likewise. So an added or removed clip
changes its own shard, rarely the neighbours, and no other. This is content-defined chunking (Muthitacharoen et al., "A
low-bandwidth network file system", 2001) with the recursion of a treap (Seidel and Aragon, 1996) instead of a rolling
hash. A shard is named after its first key, the first shard `00000`, so names stay as well.
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

from pipeline.data.catalogs import catalog_tables, read_catalog_rows, read_table, regrouped
from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError

FIRST_SHARD = "00000"
LEAST_SHARE = 4
"""Of several shards, none holds fewer than `clips_per_shard / LEAST_SHARE` clips, which limits their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The rows of a catalog that one shard holds."""

    shard: str
    first_row: int
    """Index in the catalog."""
    rows: int
    digest: str
    """Digest of these rows of the catalog: equal digests, equal rows."""


PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
"""Columns of a split's plan, one row per shard."""


def cuts(priorities: NDArray[np.uint64], most: int) -> list[int]:
    """Return the first row of every shard, ascending, for the hashes of a catalog's keys.

    Every shard has at most `most` rows. If there are several, each has at least `most / LEAST_SHARE` rows, and one.
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
    """Return the first row of every shard of a catalog with these keys, ascending, and then the number of rows."""
    hashes = bytearray()
    for key in keys:
        hashes += hashlib.blake2b(key.encode(), digest_size=8).digest()
    priorities = np.frombuffer(hashes, "<u8")
    return [*cuts(priorities, clips_per_shard), len(priorities)]


def read_assignment(catalog: Path, clips_per_shard: int) -> list[Assignment]:
    """Return the shards of a catalog file, which is read twice in batches of rows."""
    keys = (key for table in catalog_tables(catalog, ["key"]) for key in table["key"].to_pylist())
    boundaries = boundaries_of(keys, clips_per_shard)
    sizes = [end - first for first, end in pairwise(boundaries)]
    tables = regrouped(catalog_tables(catalog), sizes)
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
    """Write the shards of a catalog, so that a job finds its own without reading the whole catalog."""
    write_parquet(pa.Table.from_pylist([asdict(shard) for shard in shards], schema=PLAN_SCHEMA), path)


def read_plan(path: Path) -> list[Assignment]:
    """Return the shards that `write_plan` wrote, in the order of their keys."""
    return [Assignment(**row) for row in read_table(path, PLAN_SCHEMA, "index_audio").to_pylist()]


def part_of(shards: Sequence[Assignment], part: str) -> Sequence[Assignment]:
    """Return the shards of one job: part `2-of-4` is the third quarter.

    Raises:
        PipelineError: There is no such part.
    """
    number, _, jobs = part.partition("-of-")
    if not (number.isdecimal() and jobs.isdecimal() and int(number) < int(jobs)):
        raise PipelineError(f"there is no part {part!r}; parts are 0-of-4, 1-of-4, ... of any number of jobs")
    first, end = (len(shards) * place // int(jobs) for place in (int(number), int(number) + 1))
    return shards[first:end]


def read_shard(catalog: Path, shard: Assignment) -> pa.Table:
    """Return a shard's rows of the catalog, reading only their row groups.

    Raises:
        PipelineError: The rows differ from those that the plan was made from.
    """
    table = read_catalog_rows(catalog, shard.first_row, shard.rows)
    if digest_of(table) != shard.digest:
        raise PipelineError(
            f"{catalog}: the rows of shard {shard.shard} differ from the plan next to it; make both again with "
            "index_audio"
        )
    return table


def digest_of(table: pa.Table) -> str:
    """Return a hash of a table's names, types and values, independent of its chunks and buffers."""
    digest = hashlib.sha256()
    for name in table.schema.names:
        array = table[name].combine_chunks()
        digest.update(f"{name}:{array.type}:{len(array)};".encode())
        for part in _values(array):
            digest.update(part)
    return digest.hexdigest()[:32]


def _values(array: pa.Array) -> Iterator[bytes]:
    """Yield the nulls, lengths and values of an array as bytes that depend on nothing else."""
    yield array.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_list(array.type):
        yield pc.fill_null(pc.list_value_length(array), -1).to_numpy().tobytes()
        yield from _values(array.flatten())
    elif pa.types.is_string(array.type):
        yield pc.fill_null(pc.binary_length(array), -1).to_numpy().tobytes()
        yield "".join(array.drop_null().to_pylist()).encode()
    else:
        yield pc.fill_null(array, 0).to_numpy(zero_copy_only=False).tobytes()
