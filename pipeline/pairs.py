"""Who is mixed with whom, in every epoch, step and slot, fixed before training starts.

A pairs file holds one row a slot of a global batch: the labeled clip with the caption drawn for it, the clip it is
mixed with (an unlabeled one, or for `concatenate` a second labeled one with its caption), and where both windows start.
Training reads exactly these rows, so that the global batches are the same on any number of processes.

Every epoch is computed alone from a Philox generator keyed by (seed, epoch), so that memory does not grow with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.files import write_atomically
from pipeline.leaks import IDENTITIES, HeldOut, Leaked
from pipeline.shards import usable_batches

NO_CAPTION = -1
"""`partner_caption` of an unlabeled partner."""

MANY = 1_000_000  # clips

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
    """The clips of one or several splits, as far as pairing needs them."""

    keys: pa.Array
    """Key of each clip."""
    frames: np.ndarray
    """Length of each clip in samples, int64."""
    captions: np.ndarray
    """Number of captions of each clip, int64."""

    def __len__(self) -> int:
        return len(self.keys)


def read_clips(manifests: Sequence[Path], held_out: HeldOut, leaks: str) -> tuple[Clips, dict[str, int]]:
    """The usable clips of the splits whose `manifest.parquet` files are given, in that order, without held-out ones.

    `leaks` says what becomes of held-out clips (`pipeline.leaks.Leaked.settle`). Beside the clips comes the number left
    out of each split that lost any, by the split's folder. Manifests are read a batch of rows at a time: of a clip are
    kept its key and 16 bytes.
    """
    keys, frames, captions, left_out = [], [], [], {}
    for path in manifests:
        found = Leaked()
        for batch in usable_batches(path, ["key", "frames", "captions", *IDENTITIES]):
            kept = found.take_out(batch, held_out)
            keys.append(kept["key"].cast(pa.large_string()))  # the keys of 50 million clips pass the 2 GB of a string
            frames.append(kept["frames"].to_numpy())
            captions.append(pc.list_value_length(kept["captions"]).to_numpy())
        if found.clips == 0:
            raise PipelineError(f"{path}: has no usable clip; `reason` in that file says what became of each row")
        found.settle(path, leaks)
        if found.leaked == found.clips:
            raise PipelineError(f"{path}: every clip is also in a validation or test split; check datasets.*.splits")
        if found.leaked:
            left_out[str(path.parent)] = found.leaked
    clips = Clips(
        keys=pa.concat_arrays(keys),
        frames=np.concatenate(frames, dtype=np.int64),
        captions=np.concatenate(captions, dtype=np.int64),
    )
    return clips, left_out


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
    there is none.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    steps = len(labeled) // batch_size
    length = steps * batch_size
    order = generator.permutation(len(labeled))[:length]
    columns: dict[str, Any] = {
        "epoch": np.full(length, epoch),
        "step": np.repeat(np.arange(steps), batch_size),
        "slot": np.tile(np.arange(batch_size), steps),
        "labeled_key": labeled.keys.take(pa.array(order)),
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
        columns["partner_key"] = pa.nulls(length, pa.string())
        columns["partner_caption"] = np.full(length, NO_CAPTION)
        columns["partner_start"] = np.zeros(length, np.int64)
        return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)
    columns["partner_key"] = clips.keys.take(pa.array(partners))
    columns["partner_start"] = window_starts(generator, clips.frames[partners], window_frames)
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)


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
