"""The leak guard: no clip of a held-out split may be trained on, not even as unlabeled audio.

A clip leaks when it shares its source (YouTube or Freesound id) or its exact audio (checksum of the resampled samples)
with a clip of a held-out split. The source of a stretch is its recording; on demand, only stretches of a recording that
overlap count. The guard does not detect other encodings, similar sounds, or other cuts of a recording
without a common id.

Shards do not depend on the study that uses them. So the manifest marks leaked clips as usable, and a list next to a
run's pairs records each of them.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.catalogs import REASONS, SEGMENT_COLUMNS, fitting, read_table, with_segments
from pipeline.data.parquet import parquet_writer
from pipeline.data.shards.format import segment_columns, usable_batches
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

IDENTITIES = ("source_id", "sha256")
"""Columns of a manifest that identify a clip's source and audio."""

IDENTITIES_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "dataset", "split", *IDENTITIES)])
"""Columns of the file of a split's identities, one row per usable clip; with those of stretches where it has any."""

FORM_KEY = b"audio"

LEAKED_SCHEMA = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),  # labeled or unlabeled
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("shared", pa.string(), nullable=False),  # source_id, or sha256 where only the audio is the same
        pa.field("value", pa.string(), nullable=False),  # the id or checksum that both clips have
        pa.field("held_out_dataset", pa.string(), nullable=False),
        pa.field("held_out_split", pa.string(), nullable=False),
        pa.field("held_out_key", pa.string(), nullable=False),  # of several, the first
    ]
)
"""Columns of the list of clips that a run leaves out, one row per clip."""

UNITS = ("recording", "stretch")
"""Units of holding out a stretch: its whole recording, or the stretch alone."""

LOOKED_AT = ("key", "dataset", "split", "source_name", *IDENTITIES)
"""Columns of a manifest that the guard reads."""

NAMED = 5  # leaked clips named in a message


@dataclass(frozen=True, kw_only=True)
class AudioForm:
    """How the audio of a split was made; equal sounds have equal checksums only if this is the same."""

    sample_rate_hz: int
    format: str
    channels: str

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self:
        """Return the audio form recorded in a split's manifest.json."""
        return cls(**{field.name: summary[field.name] for field in fields(cls)})


def write_identities(manifest: Path, form: AudioForm, path: Path) -> None:
    """Write the identities of a split's usable clips, the only data of a held-out split that pairs depend on."""
    schema = fitting(IDENTITIES_SCHEMA, segment_columns(manifest)).with_metadata({FORM_KEY: json.dumps(asdict(form))})
    with parquet_writer(path, schema) as writer:
        for batch in usable_batches(manifest, schema.names):
            writer.write_table(pa.Table.from_batches([batch.select(schema.names)]).cast(schema))


def read_audio_form(path: Path) -> AudioForm:
    """Return the audio form of a split from its file of identities."""
    found = read_table(path, IDENTITIES_SCHEMA, "index_shards").schema.metadata
    return AudioForm(**json.loads(found[FORM_KEY]))


def read_held_out(paths: Sequence[Path]) -> pa.Table:
    """Return the usable clips of held-out splits, from files of `write_identities`.

    The columns are those of `IDENTITIES_SCHEMA` and of stretches, which are null for whole files.
    """
    tables = [read_table(path, IDENTITIES_SCHEMA, "index_shards").replace_schema_metadata(None) for path in paths]
    empty = with_segments(IDENTITIES_SCHEMA).empty_table()
    return pa.concat_tables([empty, *tables], promote_options="default").combine_chunks()


def columns_looked_at(manifest: Path) -> tuple[str, ...]:
    """Return the columns of a manifest that the guard reads."""
    return LOOKED_AT + segment_columns(manifest)


def leaks_of(
    batch: pa.RecordBatch, held_out: pa.Table, role: str, unit: str = "recording"
) -> tuple[pa.Array, pa.Table]:
    """Return a mask of the leaking rows of a manifest batch, and these rows as a table of `LEAKED_SCHEMA`.

    Args:
        batch: at least the columns of `columns_looked_at`.
        held_out: the clips of `read_held_out`.
        role: how the run uses the split, labeled or unlabeled.
        unit: one of `UNITS`.

    A clip that shares both source and audio is listed with its source, and with the first held-out clip it overlaps.
    """
    by_source, by_audio = (pc.index_in(batch[name], value_set=held_out[name], skip_nulls=True) for name in IDENTITIES)
    if unit == "stretch":
        by_source = _overlapping(batch, held_out, by_source)
    overlapped = pc.coalesce(by_source, by_audio)
    mask = overlapped.is_valid()
    leaked, has_source = batch.filter(mask), by_source.filter(mask).is_valid()
    overlapped = held_out.take(overlapped.drop_null())
    columns = {
        "role": pa.array([role] * len(has_source), pa.string()),
        **{name: leaked[name] for name in ("dataset", "split", "key", "source_name")},
        "status": pa.array([REASONS["leaked"][0]] * len(has_source), pa.string()),
        "reason": pa.array(["leaked"] * len(has_source), pa.string()),
        "shared": pc.if_else(has_source, "source_id", "sha256"),
        "value": pc.if_else(has_source, leaked["source_id"], leaked["sha256"]),
        **{f"held_out_{name}": overlapped[name] for name in ("dataset", "split", "key")},
    }
    return mask, pa.table(columns, schema=LEAKED_SCHEMA)


def _overlapping(batch: pa.RecordBatch, held_out: pa.Table, by_source: pa.Array) -> pa.Array:
    """Return, for each row of a batch, the first held-out clip of its source that it overlaps; null for none.

    A clip that is no stretch is all of its source.
    """
    rows = np.flatnonzero(by_source.is_valid().to_numpy(zero_copy_only=False))
    found: list[int | None] = [None] * len(batch)
    if len(rows) == 0:
        return pa.array(found, by_source.type)
    start_s, end_s = _bounds(batch)
    held_start_s, held_end_s = _bounds(held_out)
    clips_of: dict[str, list[int]] = defaultdict(list)
    for clip, source in enumerate(held_out["source_id"].to_pylist()):
        clips_of[source].append(clip)
    places = {source: np.array(clips) for source, clips in clips_of.items()}
    for row in rows:
        clips = places[batch["source_id"][row].as_py()]
        overlaps = clips[(held_start_s[clips] < end_s[row]) & (held_end_s[clips] > start_s[row])]
        found[row] = int(overlaps[0]) if len(overlaps) else None
    return pa.array(found, by_source.type)


def _bounds(clips: pa.RecordBatch | pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where clips begin and end in their sources, as far as they are stretches."""
    if SEGMENT_COLUMNS[0] not in clips.schema.names:
        return np.full(len(clips), -np.inf), np.full(len(clips), np.inf)
    start_s, end_s = (clips[name] for name in SEGMENT_COLUMNS)
    return pc.fill_null(start_s, -np.inf).to_numpy(), pc.fill_null(end_s, np.inf).to_numpy()


def check_leaked(path: Path, leaked: pa.Table, clips: int, policy: str) -> None:
    """Raise `PipelineError` or, under the policy `drop`, log a warning about a manifest's leaked clips.

    leaked: at least one of the manifest's `clips` usable clips. If all of them leak, either policy raises.
    """
    named = [
        f"{row['key']} (has {row['shared']} {row['value']} of {row['held_out_dataset']}/{row['held_out_split']}, "
        f"{row['held_out_key']})"
        for row in leaked.slice(0, NAMED).to_pylist()
    ]
    more = ", ..." if len(leaked) > NAMED else ""
    found = f"{path}: {len(leaked)} of {clips} clips are also in a validation or test split: {', '.join(named)}{more}"
    if len(leaked) == clips:
        raise PipelineError(f"{found}; none is left, check datasets.*.splits")
    if policy == "fail":
        raise PipelineError(
            f"{found}; take them out of the dataset, or set leaks to drop, which skips them and lists them next to "
            "the pairs"
        )
    logger.warning("%s; they are left out", found)


def leaked_path(pairs: Path) -> Path:
    """Return the path of the list of clips that a run leaves out, next to its pairs."""
    return pairs.with_suffix(".leaked.parquet")


def read_leaked(path: Path) -> pa.Table:
    """Return the list of clips that pair_clips left out."""
    return read_table(path, LEAKED_SCHEMA, "pair_clips")
