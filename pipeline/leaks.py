"""The leak guard: nothing that a target is judged on may be trained on, not even as unlabeled audio.

A clip leaks when its source (YouTube or Freesound id) or its exact audio (checksum of the resampled samples) is that of
a clip of a held-out split. Other cuts of a recording without a common id, other encodings of the same sound and sounds
that are merely alike are not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.shards import usable_batches

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
    values = {name: pa.array([], pa.string()) for name in IDENTITIES}
    for path in manifests:
        for batch in usable_batches(path, IDENTITIES):
            for name in IDENTITIES:
                values[name] = pc.unique(pa.concat_arrays([values[name], batch[name].drop_null()]))
    return HeldOut(values=values)


def leaks_of(batch: pa.RecordBatch, held_out: HeldOut) -> pa.Array:
    """For each row of a manifest whether it is a held-out clip, by any of `IDENTITIES`."""
    masks = [pc.is_in(batch[name], value_set=held_out.values[name], skip_nulls=True) for name in IDENTITIES]
    return pc.or_(*masks)


@dataclass(kw_only=True)
class Leaked:
    """The leaks of one split, counted while its manifest is read."""

    clips: int = 0
    leaked: int = 0
    first: list[str] = field(default_factory=list)
    """The first leaked clips, with what they were recognised by."""

    def take_out(self, batch: pa.RecordBatch, held_out: HeldOut) -> pa.RecordBatch:
        """The rows that do not leak; the others are counted."""
        mask = leaks_of(batch, held_out)
        leaked = batch.filter(mask)
        self.clips += batch.num_rows
        self.leaked += leaked.num_rows
        for row in leaked.slice(0, NAMED - len(self.first)).to_pylist():
            self.first.append(f"{row['key']} ({row['source_id'] or 'same audio'})")
        return batch if leaked.num_rows == 0 else batch.filter(pc.invert(mask))

    def settle(self, path: Path, policy: str) -> None:
        """Under the policy `fail` raise PipelineError if there was a leak, under `drop` log it."""
        if not self.leaked:
            return
        found = (
            f"{path}: {self.leaked} of {self.clips} clips are also in a validation or test split: "
            f"{', '.join(self.first)}"
        )
        if policy == "fail":
            raise PipelineError(f"{found}; set leaks to drop, or take them out of the dataset")
        logger.warning("%s; they are left out", found)
