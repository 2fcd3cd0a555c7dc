"""Who is mixed with whom, in every epoch, step and slot, fixed before training starts.

A pairs file holds one row a slot of a global batch: the labeled clip with the caption drawn for it, the clip it is
mixed with (an unlabeled one, or for `concatenate` a second labeled one with its caption), and where both windows start.
Training reads exactly these rows, so that the global batches are the same on any number of processes.

Every epoch is computed alone from a Philox generator keyed by (seed, epoch), so that memory does not grow with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.files import write_atomically
from pipeline.leaks import LEAKED_SCHEMA, LOOKED_AT, HeldOut, leaks_of, settle
from pipeline.shards import count_rows, usable_batches

NO_CAPTION = -1
"""`partner_caption` of an unlabeled partner."""

NO_PARTNER = -1

MANY = 1_000_000  # clips
ROWS_AT_ONCE = 1 << 18  # of epochs whose keys are looked up together

SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("step", pa.int32()),
        ("slot", pa.int32()),
        ("labeled_key", pa.string()),
        ("caption", pa.int32()),
        ("labeled_start", pa.int64()),
        ("partner_key", pa.string()),
        ("partner_caption", pa.int32()),
        ("partner_start", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips of one or several splits, as far as pairing needs them: keys are left in the manifests."""

    rows: np.ndarray
    """Place of each clip among the usable rows of all the manifests, one after another; ascending, int32."""
    frames: np.ndarray
    """Length of each clip in samples, int64."""
    captions: np.ndarray
    """Number of captions of each clip, int32."""

    def __len__(self) -> int:
        return len(self.rows)


def read_clips(
    manifests: Sequence[Path], held_out: HeldOut, *, leaks: str, role: str
) -> tuple[Clips, list[tuple[Path, pa.Table]]]:
    """The usable clips of the splits whose `manifest.parquet` files are given, in that order, without held-out ones.

    Beside the clips comes what was left out of each manifest that lost any, as `pipeline.leaks.LEAKED_SCHEMA` with this
    `role`; `leaks` says whether it may be (`pipeline.leaks.settle`). Manifests are read a batch of rows at a time: of a
    clip are kept 16 bytes.
    """
    most = sum(map(count_rows, manifests))
    rows, frames, captions = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.int32)
    clips, left_out, first = 0, [], 0
    for path in manifests:
        first_of_split, leaked = first, [LEAKED_SCHEMA.empty_table()]
        for batch in usable_batches(path, ["frames", "captions", *LOOKED_AT]):
            mask, found = leaks_of(batch, held_out, role)
            leaked.append(found)
            kept = np.flatnonzero(~mask.to_numpy(zero_copy_only=False))
            here = slice(clips, clips + len(kept))
            rows[here] = first + kept
            frames[here] = batch["frames"].to_numpy()[kept]
            captions[here] = pc.list_value_length(batch["captions"]).to_numpy()[kept]
            clips, first = here.stop, first + batch.num_rows
        if first == first_of_split:
            raise PipelineError(f"{path}: has no usable clip; `reason` in that file says what became of each row")
        if len(table := pa.concat_tables(leaked)):
            settle(path, table, first - first_of_split, leaks)
            left_out.append((path, table))
    return Clips(rows=rows[:clips], frames=frames[:clips], captions=captions[:clips]), left_out


def keys_in_order(manifests: Sequence[Path], rows: np.ndarray) -> Iterator[pa.Array]:
    """The keys of rows (`Clips.rows`, ascending), a batch of them at a time; the manifests are read once through."""
    first = 0
    for path in manifests:
        for batch in usable_batches(path, ["key"]):
            end = first + batch.num_rows
            here = rows[slice(*np.searchsorted(rows, [first, end]))]
            yield batch["key"].take(pa.array(here - first))
            first = end


def epoch_order(generator: np.random.Generator, count: int, length: int) -> np.ndarray:
    """`length` indices below `count`: shuffled, and shuffled anew each time all have been used.

    Where few of many are needed, they are drawn without shuffling the rest: of 10 million in 5 ms instead of 0.5 s.
    """
    if count > MANY and length < count // 50:  # from there on numpy draws in time and memory of `length`
        return generator.choice(count, length, replace=False)
    rounds = -(-length // count)
    return np.concatenate([generator.permutation(count) for _ in range(rounds)])[:length]


def window_starts(generator: np.random.Generator, frames: np.ndarray, window_frames: int) -> np.ndarray:
    """A random start of a window in each clip, 0 in clips that are no longer than the window."""
    return generator.integers(0, np.maximum(frames - window_frames, 0) + 1)


def pair_epoch(
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    window_frames: int,
    labeled: Clips,
    unlabeled: Clips | None,
    mix_labeled: bool,
) -> pa.Table:
    """The rows of one epoch: every labeled clip at most once, the incomplete last batch left out.

    The partner is drawn from `unlabeled`; with `mix_labeled` it is another labeled clip of the same epoch; with neither
    there is none. Clips stand there by their `Clips.rows`, `labeled_row` and `partner_row` (-1 for none), in place of
    keys, which `with_keys` puts in.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    steps = len(labeled) // batch_size
    length = steps * batch_size
    order = generator.permutation(len(labeled))[:length]
    columns: dict[str, Any] = {
        "epoch": np.full(length, epoch),
        "step": np.repeat(np.arange(steps), batch_size),
        "slot": np.tile(np.arange(batch_size), steps),
        "labeled_row": labeled.rows[order],
        "caption": generator.integers(0, labeled.captions[order]),
        "labeled_start": window_starts(generator, labeled.frames[order], window_frames),
    }
    if mix_labeled:
        # A rotation by a random distance within the epoch's order: every clip is once a partner and never its own.
        partners, clips = np.roll(order, generator.integers(1, length)), labeled
        columns["partner_caption"] = generator.integers(0, labeled.captions[partners])
    elif unlabeled is not None:
        partners, clips = epoch_order(generator, len(unlabeled), length), unlabeled
        columns["partner_caption"] = np.full(length, NO_CAPTION)
    else:
        columns["partner_row"] = np.full(length, NO_PARTNER)
        columns["partner_caption"] = np.full(length, NO_CAPTION)
        columns["partner_start"] = np.zeros(length, np.int64)
        return pa.table(columns)
    columns["partner_row"] = clips.rows[partners]
    columns["partner_start"] = window_starts(generator, clips.frames[partners], window_frames)
    return pa.table(columns)


def with_keys(epochs: Iterable[pa.Table], labeled: Sequence[Path], partners: Sequence[Path]) -> Iterator[pa.Table]:
    """Tables of `pair_epoch` as they are written, with the keys of the manifests that clips were drawn from.

    As many epochs as have `ROWS_AT_ONCE` rows are looked up together, at least one, because the manifests are read
    through each time: memory is bounded by that and not by the number of clips.
    """
    for tables in _together(epochs):
        table = pa.concat_tables(tables)
        keys = {
            "labeled_key": _keys_of(labeled, table["labeled_row"].to_numpy()),
            "partner_key": _keys_of(partners, table["partner_row"].to_numpy()),
        }
        table = pa.table({**{name: table[name] for name in table.column_names}, **keys}).select(SCHEMA.names)
        first = 0
        for epoch in tables:
            yield table.slice(first, len(epoch)).cast(SCHEMA)
            first += len(epoch)


def _together(epochs: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    tables: list[pa.Table] = []
    for table in epochs:
        if tables and sum(map(len, tables)) + len(table) > ROWS_AT_ONCE:
            yield tables
            tables = []
        tables.append(table)
    yield tables


def _keys_of(manifests: Sequence[Path], rows: np.ndarray) -> pa.Array:
    """The key of every row, null for `NO_PARTNER`."""
    wanted, places = np.unique(rows[rows != NO_PARTNER], return_inverse=True)
    found = np.full(len(rows), -1)
    found[rows != NO_PARTNER] = places
    keys = pa.concat_arrays([pa.array([], pa.string()), *keys_in_order(manifests, wanted)])
    return keys.take(pa.array(found, mask=found < 0))


def write_pairs(epochs: Iterator[pa.Table], path: Path, facts: dict[str, Any]) -> None:
    """Write a row group an epoch, with `facts` (seed, batch size, window, sources) as JSON in the footer."""
    schema = SCHEMA.with_metadata({"pairs": json.dumps(facts, sort_keys=True)})
    with (
        write_atomically(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in epochs:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, table.num_rows))


def read_facts(path: Path) -> dict[str, Any]:
    """What a pairs file says of itself: seed, epochs, steps an epoch, batch size, window, the manifests' checksums."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise PipelineError(f"{path}: cannot be read as Parquet ({error}); make it with pair_clips") from error
    if b"pairs" not in metadata:
        raise PipelineError(f"{path}: is not a pairs file of this pipeline (its footer has no `pairs` entry)")
    return json.loads(metadata[b"pairs"])


def read_epoch(path: Path, epoch: int) -> pa.Table:
    """The rows of one epoch, ordered by step and slot; PipelineError where the file is damaged there."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read_row_group(epoch)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise PipelineError(f"{path}: epoch {epoch} cannot be read ({reason}); make the pairs again") from error
