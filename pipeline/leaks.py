"""The leak guard: nothing that a target is judged on may be trained on, not even as unlabeled audio.

A clip leaks when its source (YouTube or Freesound id) or its exact audio (checksum of the resampled samples) is that of
a clip of a held-out split. Other cuts of a recording without a common id, other encodings of the same sound and sounds
that are merely alike are not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

IDENTITIES = ("source_id", "sha256")
"""Columns of a manifest by which clips are recognised."""

NAMED = 5  # leaked clips that a message names


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the clips of the held-out splits are recognised by."""

    values: dict[str, pa.Array]
    """The distinct values of each of `IDENTITIES`, without nulls."""


def read_held_out(manifests: Sequence[Path]) -> HeldOut:
    """The identities of every usable clip of these splits."""
    columns: dict[str, list[pa.ChunkedArray]] = {name: [] for name in IDENTITIES}
    for path in manifests:
        table = pq.read_table(path, columns=list(IDENTITIES), filters=[("status", "==", "ok")])
        for name in IDENTITIES:
            columns[name].append(table[name])
    return HeldOut(
        values={
            name: pc.unique(pa.chunked_array([c for part in parts for c in part.chunks], pa.string()).drop_null())
            for name, parts in columns.items()
        }
    )


def leaks_of(table: pa.Table, held_out: HeldOut) -> pa.ChunkedArray:
    """For each row of a manifest whether it is a held-out clip, by any of `IDENTITIES`."""
    masks = [pc.is_in(table[name], value_set=held_out.values[name], skip_nulls=True) for name in IDENTITIES]
    return pc.or_(*masks)


def without_leaks(table: pa.Table, held_out: HeldOut, path: Path, policy: str) -> pa.Table:
    """The rows of a manifest that do not leak; under the policy `fail` a leak raises, under `drop` it is logged."""
    mask = leaks_of(table, held_out)
    leaked = table.filter(mask)
    if leaked.num_rows == 0:
        return table
    first = ", ".join(
        f"{row['key']} ({row['source_id'] or 'same audio'})" for row in leaked.slice(0, NAMED).to_pylist()
    )
    found = f"{path}: {leaked.num_rows} of {table.num_rows} clips are also in a validation or test split: {first}"
    if policy == "fail":
        raise PipelineError(f"{found}; set leaks to drop, or take them out of the dataset")
    logger.warning("%s; they are left out", found)
    return table.filter(pc.invert(mask))
