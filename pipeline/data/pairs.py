"""Which clips are mixed in every epoch, step and slot, fixed before training starts.

A pairs file has one row per slot of a global batch. A row names the labeled clip, the caption drawn for it, its partner
and the starts of both windows. The partner is an unlabeled clip, or another labeled clip with its caption: always in
`concatenate`, in `composed` for the share `labeled_partners`. A composed run with a term for text mixing also has a
second partner, which is always labeled. Training reads exactly these rows, so the global batches are the same on any
number of processes. Each epoch has its own random order of the labeled clips; `PairingSettings` describes how the rest
is drawn.

Every epoch is computed from its own Philox generator, keyed by (seed, epoch), so memory does not grow with the epochs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.leaks import LEAKED_SCHEMA, check_leaked, columns_looked_at, leaks_of
from pipeline.data.paraphrases import Paraphrases
from pipeline.data.parquet import open_parquet, parquet_writer
from pipeline.data.shards.format import count_rows, usable_batches
from pipeline.errors import PipelineError
from pipeline.training.settings import PairingSettings

NO_CAPTION = -1
"""`partner_caption` of an unlabeled partner."""

NO_PARTNER = -1

MANY = 1_000_000  # clips, from which `epoch_order` avoids shuffling all of them
ROWS_AT_ONCE = 1 << 18  # rows whose keys are looked up together

EVERY_EPOCH = 2**64 - 1
"""Replaces the epoch in the generator's key for values that are drawn once for all epochs."""
KIND_OF_PARTNER = 2**64 - 2
"""The same for the labeled clips whose fixed partner is labeled."""

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
SECOND_PARTNER = pa.schema([("second_key", pa.string()), ("second_caption", pa.int32()), ("second_start", pa.int64())])
"""More columns, if the run has a term for text mixing next to unlabeled partners."""
CAPTIONS = {"caption": "labeled_row", "partner_caption": "partner_row", "second_caption": "second_row"}
"""The columns of drawn captions, and those of their clips."""
TEXTS = tuple(f"{caption}_text" for caption in CAPTIONS)
"""More columns, if there are paraphrases: the text of a drawn caption that is one, else null."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips of one or several splits without their keys, which stay in the manifests."""

    rows: np.ndarray
    """Index of each clip among the usable rows of all the manifests, concatenated; ascending, int32."""
    frames: np.ndarray
    """Length of each clip in samples, int64."""
    captions: np.ndarray
    """Number of captions of each clip, int32."""

    def __len__(self) -> int:
        return len(self.rows)


def read_clips(
    manifests: Sequence[Path], held_out: pa.Table, *, leaks: str, role: str, leak_unit: str = "recording"
) -> tuple[Clips, list[tuple[Path, pa.Table]]]:
    """Return the usable clips of the given `manifest.parquet` files, in their order, without held-out clips.

    The second value lists, per manifest that lost any, the clips left out (`pipeline.data.leaks.LEAKED_SCHEMA`, with
    this `role`). `leaks` is the policy of `pipeline.data.leaks.check_leaked`, `leak_unit` the unit of
    `leaks_of`. Manifests are read in batches of rows;
    memory holds 16 bytes per clip.
    """
    most = sum(map(count_rows, manifests))
    rows, frames, captions = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.int32)
    clips, left_out, first = 0, [], 0
    for path in manifests:
        first_of_split, leaked = first, [LEAKED_SCHEMA.empty_table()]
        for batch in usable_batches(path, ["frames", "captions", *columns_looked_at(path)]):
            mask, found = leaks_of(batch, held_out, role, leak_unit)
            leaked.append(found)
            kept = np.flatnonzero(~mask.to_numpy(zero_copy_only=False))
            here = slice(clips, clips + len(kept))
            rows[here] = first + kept
            frames[here] = batch["frames"].to_numpy()[kept]
            captions[here] = pc.list_value_length(batch["captions"]).to_numpy()[kept]
            clips, first = here.stop, first + batch.num_rows
        if first == first_of_split:
            raise PipelineError(f"{path}: has no usable clip; see the column `reason` of that file")
        if len(table := pa.concat_tables(leaked)):
            check_leaked(path, table, first - first_of_split, leaks)
            left_out.append((path, table))
    return Clips(rows=rows[:clips], frames=frames[:clips], captions=captions[:clips]), left_out


def keys_in_order(manifests: Sequence[Path], rows: np.ndarray) -> Iterator[pa.Array]:
    """Yield the keys of rows (`Clips.rows`, ascending) in batches; each manifest is read once."""
    first = 0
    for path in manifests:
        for batch in usable_batches(path, ["key"]):
            end = first + batch.num_rows
            here = rows[slice(*np.searchsorted(rows, [first, end]))]
            yield batch["key"].take(pa.array(here - first))
            first = end


def subset(clips: Clips, manifests: Sequence[Path], fraction: float, seed: int) -> Clips:
    """Return the share `fraction` of the clips, at least one, in their order, read from the same `manifests`.

    Clips are ranked by a hash of the seed and their key. So a smaller share of one seed lies within every larger one,
    and new clips in a split replace few of the old. All splits of a role are ranked together, so each gives about the
    same share.
    """
    if fraction == 1:
        return clips
    seed_bytes = seed.to_bytes(8, "little")
    keys = (key for batch in keys_in_order(manifests, clips.rows) for key in batch.to_pylist())
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=seed_bytes) for key in keys)
    ranks = np.fromiter((int.from_bytes(digest.digest(), "little") for digest in digests), np.uint64, len(clips))
    chosen = np.sort(np.argsort(ranks, kind="stable")[: max(1, round(fraction * len(clips)))])
    return Clips(rows=clips.rows[chosen], frames=clips.frames[chosen], captions=clips.captions[chosen])


def epoch_order(generator: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Return `length` indices below `count` in random order, shuffled again each time all have been used.

    A few of many are drawn without shuffling the rest: 5 ms instead of 0.5 s for 10 million.
    """
    if count > MANY and length < count // 50:  # here numpy's time and memory grow with `length` only
        return generator.choice(count, length, replace=False)
    rounds = -(-length // count)
    return np.concatenate([generator.permutation(count) for _ in range(rounds)])[:length]


def generator_of(seed: int, epoch: int) -> np.random.Generator:
    """Return the random generator of an epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


def window_starts(
    generator: np.random.Generator, frames: np.ndarray, window_frames: int, windows: str = "random"
) -> np.ndarray:
    """Return the start of one window per clip: random, at the `first` frame or in the `center`; 0 for short clips.

    Random numbers are drawn in every case, so that the rest of an epoch's draws does not depend on `windows`.
    """
    spare = np.maximum(frames - window_frames, 0)
    starts = generator.integers(0, spare + 1)
    return {"random": starts, "first": np.zeros_like(spare), "center": spare // 2}[windows]


def slots_per_epoch(labeled: Clips, captions_per_clip: str) -> int:
    """Return how many slots the labeled clips fill per epoch, including the incomplete last batch."""
    return len(labeled) if captions_per_clip == "one" else int(labeled.captions.sum())


def pair_epoch(
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    window_frames: int,
    labeled: Clips,
    unlabeled: Clips | None,
    mix_labeled: bool,
    settings: PairingSettings,
) -> pa.Table:
    """Return the rows of one epoch: every labeled clip (or caption) at most once, without the incomplete last batch.

    The partner is drawn from `unlabeled`, or for the share `labeled_partners` of the slots from `labeled`. With
    `mix_labeled` alone it is always another labeled clip; with both, that clip is the second partner. With neither
    there is no partner. The columns `labeled_row`, `partner_row` (-1 for none) and `second_row` hold `Clips.rows`;
    `with_keys` replaces them by keys.

    Raises:
        PipelineError: One clip has so many of the captions that they cannot all get another clip as partner.
    """
    generator = generator_of(seed, epoch)
    order, captions = draw_slots(generator, labeled, batch_size, settings.captions_per_clip)
    length, steps = len(order), len(order) // batch_size
    columns: dict[str, Any] = {
        "epoch": np.full(length, epoch),
        "step": np.repeat(np.arange(steps), batch_size),
        "slot": np.tile(np.arange(batch_size), steps),
        "labeled_row": labeled.rows[order],
        "caption": captions,
        "labeled_start": window_starts(generator, labeled.frames[order], window_frames, settings.windows),
    }
    if unlabeled is None and not mix_labeled:
        columns["partner_row"] = np.full(length, NO_PARTNER)
        columns["partner_caption"] = np.full(length, NO_CAPTION)
        columns["partner_start"] = np.zeros(length, np.int64)
        return pa.table(columns)

    def describe(name: str, partners: np.ndarray, is_labeled: np.ndarray) -> None:
        """Add the columns of a partner, with a caption where it is labeled."""
        rows, frames, texts = (np.empty(length, np.int64) for _ in range(3))
        texts[:] = NO_CAPTION
        if is_labeled.any():
            texts[is_labeled] = generator.integers(0, labeled.captions[partners[is_labeled]])
        for clips, here in ((labeled, is_labeled), (unlabeled, ~is_labeled)):
            if clips is not None:
                rows[here], frames[here] = clips.rows[partners[here]], clips.frames[partners[here]]
        columns[f"{name}_caption"], columns[f"{name}_row"] = texts, rows
        columns[f"{name}_start"] = window_starts(generator, frames, window_frames, settings.windows)

    is_labeled = labeled_places(seed, epoch, order, labeled, unlabeled, settings)
    describe("partner", draw_partners(generator, seed, order, is_labeled, labeled, unlabeled, settings), is_labeled)
    if unlabeled is not None and mix_labeled:  # last, so that the other columns do not depend on it
        every = np.ones(length, bool)
        describe("second", draw_partners(generator, seed, order, every, labeled, None, settings), every)
    return pa.table(columns)


def labeled_places(
    seed: int, epoch: int, order: np.ndarray, labeled: Clips, unlabeled: Clips | None, settings: PairingSettings
) -> np.ndarray:
    """Return for every slot of an epoch whether its partner is labeled.

    The places are evenly spaced, so that all processes and micro-batches have equally many, up to one. The clips in
    these places are random. Partners that are fixed stay labeled or unlabeled for the whole training.
    """
    if unlabeled is None:
        return np.ones(len(order), bool)
    share = settings.labeled_partners
    if settings.partners == "fixed":
        ranks = generator_of(seed, KIND_OF_PARTNER).permutation(len(labeled))
        return (ranks < round(share * len(labeled)))[order]
    places = epoch * len(order) + np.arange(len(order) + 1)
    return np.diff(np.floor(places * share + 1e-9)) > 0  # the margin is for products such as 10 * 0.1


def draw_partners(
    generator: np.random.Generator,
    seed: int,
    order: np.ndarray,
    is_labeled: np.ndarray,
    labeled: Clips,
    unlabeled: Clips | None,
    settings: PairingSettings,
) -> np.ndarray:
    """Return the index of every slot's partner, among the labeled clips or among the unlabeled ones."""
    partners = np.empty(len(order), np.int64)
    for clips, here in ((unlabeled, ~is_labeled), (None, is_labeled)):
        if not here.any():
            continue
        if settings.partners == "fixed":
            partners[here] = fixed_partners(seed, labeled, clips)[order[here]]
        elif clips is None:
            partners[here] = other_clips(generator, order)[here]
        else:
            partners[here] = epoch_order(generator, len(clips), int(here.sum()))
    return partners


def with_paraphrases(clips: Clips, paraphrases: Paraphrases) -> Clips:
    """Return the clips with the number of their captions and paraphrases together, from which captions are drawn."""
    return replace(clips, captions=clips.captions + paraphrases.more(clips.rows))


def with_texts(epochs: Iterable[pa.Table], paraphrases: Paraphrases) -> Iterator[pa.Table]:
    """Yield the tables of `pair_epoch` with the columns `TEXTS`."""
    for table in epochs:
        for caption, row in CAPTIONS.items():
            if row in table.column_names:
                numbers = table[caption].to_numpy()
                # A partner without a caption is a row of the unlabeled clips.
                rows = np.where(numbers == NO_CAPTION, NO_PARTNER, table[row].to_numpy())
                table = table.append_column(f"{caption}_text", paraphrases.column(rows, numbers))
        yield table


def with_keys(epochs: Iterable[pa.Table], labeled: Sequence[Path], unlabeled: Sequence[Path]) -> Iterator[pa.Table]:
    """Yield the tables of `pair_epoch` as they are written, with the clips' keys from the manifests.

    A partner with a caption is a labeled clip. Each lookup reads the manifests once, so it serves several epochs, up to
    `ROWS_AT_ONCE` rows but at least one epoch. This bounds the memory.
    """
    for tables in _together(epochs):
        table = pa.concat_tables(tables)
        keys = {"labeled_key": _keys_of(labeled, table["labeled_row"].to_numpy())}
        schema = SCHEMA
        partners, has_caption = table["partner_row"].to_numpy(), table["partner_caption"].to_numpy() != NO_CAPTION
        keys["partner_key"] = pc.coalesce(
            _keys_of(labeled, np.where(has_caption, partners, NO_PARTNER)),
            _keys_of(unlabeled, np.where(has_caption, NO_PARTNER, partners)),
        )
        if "second_row" in table.column_names:
            keys["second_key"] = _keys_of(labeled, table["second_row"].to_numpy())
            schema = pa.schema([*SCHEMA, *SECOND_PARTNER])
        schema = pa.schema([*schema, *((name, pa.string()) for name in TEXTS if name in table.column_names)])
        table = pa.table({**{name: table[name] for name in table.column_names}, **keys}).select(schema.names)
        first = 0
        for epoch in tables:
            yield table.slice(first, len(epoch)).cast(schema)
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
    """Return the key of every row, null for `NO_PARTNER`."""
    wanted, places = np.unique(rows[rows != NO_PARTNER], return_inverse=True)
    found = np.full(len(rows), -1)
    found[rows != NO_PARTNER] = places
    keys = pa.concat_arrays([pa.array([], pa.string()), *keys_in_order(manifests, wanted)])
    return keys.take(pa.array(found, mask=found < 0))


def draw_slots(
    generator: np.random.Generator, labeled: Clips, batch_size: int, captions_per_clip: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the labeled clip and of its caption for every slot of an epoch, in random order."""
    length = slots_per_epoch(labeled, captions_per_clip) // batch_size * batch_size
    if captions_per_clip == "one":
        order = generator.permutation(len(labeled))[:length]
        return order, generator.integers(0, labeled.captions[order])
    clip_of = np.repeat(np.arange(len(labeled)), labeled.captions)
    first_of = np.cumsum(labeled.captions) - labeled.captions
    order = generator.permutation(len(clip_of))[:length]
    return clip_of[order], order - first_of[clip_of[order]]


def other_clips(generator: np.random.Generator, order: np.ndarray) -> np.ndarray:
    """Return the same clips in another order, in which no clip keeps its place.

    The order is rotated by a random distance. A clip that occurs several times may then meet itself; such places are
    swapped with random others until none is left.
    """
    most = int(np.bincount(order).max())
    if 2 * most > len(order):
        raise PipelineError(
            f"one labeled clip fills {most} of the {len(order)} slots of an epoch, too many to mix each with another "
            "clip; add labeled clips, or set captions_per_clip to one"
        )
    partners = np.roll(order, generator.integers(1, len(order)))
    while len(own := np.flatnonzero(partners == order)):
        for place, other in zip(own, generator.integers(0, len(order), len(own)), strict=True):
            partners[[place, other]] = partners[[other, place]]
    return partners


def fixed_partners(seed: int, labeled: Clips, unlabeled: Clips | None) -> np.ndarray:
    """Return the partner of every labeled clip for all epochs: an unlabeled clip, or else another labeled one."""
    generator = generator_of(seed, EVERY_EPOCH)
    if unlabeled is not None:
        return epoch_order(generator, len(unlabeled), len(labeled))
    order = generator.permutation(len(labeled))
    partners = np.empty_like(order)
    partners[order] = other_clips(generator, order)
    return partners


def write_pairs(epochs: Iterator[pa.Table], path: Path, facts: dict[str, Any]) -> None:
    """Write one row group per epoch, with `facts` (seed, batch size, window, sources) as JSON in the footer."""
    first = next(epochs)
    schema = first.schema.with_metadata({"pairs": json.dumps(facts, sort_keys=True)})
    with parquet_writer(path, schema, write_page_checksum=True) as writer:
        for table in chain([first], epochs):
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, table.num_rows))


def read_facts(path: Path) -> dict[str, Any]:
    """The description in a pairs file: seed, epochs, steps per epoch, batch size, window, the manifests' checksums."""
    with open_parquet(path, "pair_clips") as file:
        metadata = file.schema_arrow.metadata or {}
    if b"pairs" not in metadata:
        raise PipelineError(f"{path}: is not a pairs file (its footer has no `pairs` entry); make it with pair_clips")
    return json.loads(metadata[b"pairs"])


def read_epoch(path: Path, epoch: int) -> pa.Table:
    """The rows of one epoch, ordered by step and slot, whose pages have checksums; `read_facts` checks the file."""
    with open_parquet(path, "pair_clips", is_checked=True) as file:
        return file.read_row_group(epoch)
