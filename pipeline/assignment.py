"""Which clips of a catalog stand in which shard, such that new clips leave most shards as they are.

A shard is a run of the catalog, which is sorted by key, and ends where the keys say so rather than after every so many
clips: a run that is too long is cut before the key whose hash is least, and so are its parts. A clip that is added or
taken away then changes the shard it stands in, rarely its neighbours, and no other. This is content-defined chunking
(Muthitacharoen et al., "A low-bandwidth network file system", 2001) with the recursion of a treap (Seidel and Aragon,
1996) in place of a rolling hash. A shard is named by its first key, the first one `00000`, so that names stay as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalogs import read_catalog

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


def assign(catalog: pa.Table, clips_per_shard: int) -> list[Assignment]:
    """The shards of a catalog, in the order of their keys."""
    keys = catalog["key"].to_pylist()
    hashes = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    starts = cuts(np.frombuffer(hashes, "<u8"), clips_per_shard)
    table = catalog.combine_chunks()
    return [
        Assignment(
            shard=keys[first] if first else FIRST_SHARD,
            first_row=first,
            rows=end - first,
            digest=digest_of(table.slice(first, end - first)),
        )
        for first, end in zip(starts, [*starts[1:], len(keys)], strict=True)
    ]


def read_assignment(catalog: Path, clips_per_shard: int) -> list[Assignment]:
    """The shards of the catalog in a file."""
    return assign(read_catalog(catalog), clips_per_shard)


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
