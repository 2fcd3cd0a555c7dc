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
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.catalogs import CATALOG_SCHEMA, catalog_tables, read_catalog_rows, regrouped
from pipeline.errors import PipelineError

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


def assign(catalog: pa.Table, clips_per_shard: int) -> list[Assignment]:
    """The shards of a catalog, in the order of their keys."""
    return _assignments([catalog], boundaries_of(catalog["key"].to_pylist(), clips_per_shard))


def read_assignment(catalog: Path, clips_per_shard: int) -> list[Assignment]:
    """The shards of the catalog in a file, which is read twice, a batch of rows at a time."""
    keys = (key for table in catalog_tables(catalog, ["key"]) for key in table["key"].to_pylist())
    boundaries = boundaries_of(keys, clips_per_shard)
    return _assignments(catalog_tables(catalog, CATALOG_SCHEMA.names), boundaries)


def _assignments(tables: Iterable[pa.Table], boundaries: Sequence[int]) -> list[Assignment]:
    sizes = [end - first for first, end in pairwise(boundaries)]
    return [
        Assignment(
            shard=table["key"][0].as_py() if first else FIRST_SHARD,
            first_row=first,
            rows=len(table),
            digest=digest_of(table),
        )
        for first, table in zip(boundaries, regrouped(tables, sizes), strict=False)
    ]


def read_shard(catalog: Path, shard: str, *, clips_per_shard: int, clips: int | None = None) -> pa.Table:
    """The rows of a catalog that stand in a shard; PipelineError for a shard that the catalog does not have.

    clips: how many they are, where that is known. Then no others are read, otherwise the keys of all.
    """
    if clips is None:
        keys = [key for table in catalog_tables(catalog, ["key"]) for key in table["key"].to_pylist()]
        boundaries = boundaries_of(keys, clips_per_shard)
        names = [FIRST_SHARD, *(keys[first] for first in boundaries[1:-1])]
        if shard not in names:
            more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
            raise PipelineError(
                f"{catalog}: no shard {shard}; {len(keys)} clips, at most {clips_per_shard} a shard, make the shards "
                f"{', '.join(names[:3])}{more}"
            )
        number = names.index(shard)
        clips = boundaries[number + 1] - boundaries[number]
    return read_catalog_rows(catalog, None if shard == FIRST_SHARD else shard, clips)


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
