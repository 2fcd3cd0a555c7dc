"""The files of a split and their checks: tars, one row file per tar, manifest.parquet and manifest.json."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.addresses import check_sizes, read_file
from pipeline.data.catalogs import OK, SEGMENT_COLUMNS, fitting, read_table
from pipeline.data.parquet import open_parquet
from pipeline.errors import PipelineError, read_error_message
from pipeline.files import parse_json, read_json, sha256_of, write_atomically

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        # The rest is null unless status is ok. Offsets count from the start of the tar.
        pa.field("data_offset", pa.int64()),
        pa.field("data_size", pa.int64()),
        pa.field("pcm_offset", pa.int64()),  # null for FLAC
        pa.field("frames", pa.int64()),  # at sample_rate_hz
        pa.field("sample_rate_hz", pa.int32()),
        pa.field("source_sample_rate_hz", pa.int32()),
        pa.field("source_channels", pa.int32()),
        pa.field("peak_dbfs", pa.float32()),
        pa.field("rms_dbfs", pa.float32()),
        pa.field("sha256", pa.string()),  # of the audio member's bytes
    ]
)
"""Columns of the manifest and of a shard's row file; a split with stretches has those of `with_segments`, too."""

SUMMARY_FACTS = {
    *("dataset", "split", "format", "sample_rate_hz", "rows", "clips", "duration_s", "status", "reason"),
    *("manifest_sha256", "shards"),
}
"""Entries of a split's manifest.json."""

BATCH_ROWS = 1 << 16  # of a manifest, read together

_BUFFER_BYTES = 1 << 20  # each column of a row group is read in pieces of this size


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFacts:
    """The footer of a row file: how its tar was made."""

    shard: str
    format: str
    sample_rate_hz: int
    clips: int
    bytes: int
    sha256: str
    rows_digest: str
    """Digest of the catalog's rows that it was made from (`pipeline.data.shards.partition.digest_of`)."""
    channels: str = "mean"
    """Which channels were kept (`pipeline.data.audio.CHANNELS`); earlier versions kept the mean."""
    min_duration_s: float | None = None
    """Shorter clips were dropped; None in row files of earlier versions, which did not record it."""
    version: int = 1
    """Version of the stage shard_audio."""
    sources: str | None = None
    """Digest of the sizes and times of the source files; None in row files of earlier versions."""
    min_level_dbfs: float | None = None
    """Softer stretches were dropped; None for no such limit."""

    def footer(self) -> str:
        """Return the facts as JSON; a limit that is not there is left out, as in row files of earlier versions."""
        values = asdict(self)
        if self.min_level_dbfs is None:
            del values["min_level_dbfs"]
        return json.dumps(values)


FACTS_KEY = b"shard"

REPAIRS = ".repairs"
"""Suffix of the file, next to a part's record, with the time of the last repair request."""


def read_summary(path: Path) -> dict[str, Any]:
    """Return a split's manifest.json; PipelineError if it is missing, damaged or incomplete."""
    if not path.exists():
        raise PipelineError(f"{path}: not found; make it with python -m pipeline.stages.index_shards")
    summary = read_json(path)
    if missing := _missing_facts(summary):
        raise PipelineError(f"{path}: has no {', '.join(missing[:3])}; make it again with index_shards")
    _check_entries(summary, path)
    return {"channels": "mean", **summary}  # earlier versions kept the mean and did not record it


def _check_entries(summary: Mapping[str, Any], path: Path | str) -> None:
    """Raise PipelineError if an entry of a shard cannot be right; a tar's name could lead out of the folder."""
    for shard in summary["shards"]:
        name, tar = shard["shard"], shard["tar"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or tar != f"{name}.tar":
            raise PipelineError(f"{path}: {tar!r} is not the name of a shard's tar; use another copy")
        for key, kind in (("bytes", int), ("clips", int), ("sha256", str)):
            if not isinstance(shard[key], kind):
                raise PipelineError(f"{path}: {key} of shard {name} is {shard[key]!r}; use another copy")


def _missing_facts(summary: Mapping[str, Any]) -> list[str]:
    """Return the entries that a split's manifest.json lacks."""
    missing = sorted(SUMMARY_FACTS - summary.keys())
    shards = summary.get("shards")
    for shard in shards if isinstance(shards, list) else [{}]:
        missing += [f"shards.{name}" for name in ("shard", "tar", "bytes", "sha256", "clips") if name not in shard]
    return missing


def write_card(summary: Mapping[str, Any], folder: Path) -> None:
    """Write a dataset card for the library `datasets`, which would otherwise read each clip once per Parquet file."""
    card = (
        '---\nconfigs:\n- config_name: default\n  data_files: "*.tar"\n---\n'
        f"{summary['clips']} clips of {summary['dataset']}/{summary['split']} as mono audio at "
        f"{summary['sample_rate_hz']} Hz, in WebDataset tars. `manifest.parquet` has one row per clip.\n"
    )
    with write_atomically(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def read_published_summary(address: str) -> dict[str, Any]:
    """Return the manifest.json at an address; PipelineError if it is no manifest or names files in other folders."""
    path = f"{address}/manifest.json"
    try:
        text = read_file(path)
    except PipelineError as error:
        raise PipelineError(f"{error}; give the address of one split's shards, .../DATASET/SPLIT") from error
    summary = parse_json(text, path)
    if missing := _missing_facts(summary):
        raise PipelineError(f"{path}: has no {', '.join(missing[:3])}; it is not what index_shards writes")
    _check_entries(summary, path)
    return summary


@contextlib.contextmanager
def _opened_manifest(path: Path) -> Iterator[pq.ParquetFile]:
    """A manifest; its checksum is in manifest.json, see `check_manifest`."""
    with open_parquet(path, "index_shards", is_checked=True, buffer_bytes=_BUFFER_BYTES) as file:
        if not is_manifest(file.schema_arrow.names):
            raise PipelineError(f"{path}: is not a manifest of this pipeline; make it again with index_shards")
        yield file


def is_manifest(names: Sequence[str]) -> bool:
    """Return whether these are the columns of a manifest."""
    return list(names) == fitting(MANIFEST_SCHEMA, names).names


def segment_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of stretches of a manifest: none if all its rows are whole files."""
    with _opened_manifest(path) as file:
        return SEGMENT_COLUMNS if SEGMENT_COLUMNS[0] in file.schema_arrow.names else ()


def check_manifest(path: Path, summary: Mapping[str, Any]) -> None:
    """Raise `PipelineError` unless a manifest is there and the one that its manifest.json was written for."""
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; make it with index_shards") from None
    except OSError as error:
        raise PipelineError(read_error_message(path, error, "make it again with index_shards")) from error
    if found != summary["manifest_sha256"]:
        raise PipelineError(
            f"{path}: is damaged, or not the manifest that {path.with_suffix('.json')} was written for; make both "
            "again with index_shards"
        )


def count_rows(path: Path) -> int:
    """Return the number of rows of a manifest, including unusable clips."""
    with _opened_manifest(path) as file:
        return file.metadata.num_rows


def manifest_batches(path: Path, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a manifest in batches of rows, including unusable clips."""
    with _opened_manifest(path) as file:
        # no threads: each would hold its own buffers
        yield from file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)


def usable_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of the usable rows of a manifest in batches of rows."""
    for batch in manifest_batches(path, dict.fromkeys([*columns, "status"])):
        yield batch.filter(pc.equal(batch["status"], OK))


def read_manifest(path: Path) -> pa.Table:
    """A split's manifest as written by index_shards, unusable clips included."""
    with _opened_manifest(path) as file:
        return file.read()


def check_tar(path: Path, size: int, sha256: str | None) -> None:
    """Raise `PipelineError` unless the tar exists and has that size and, if given, that checksum."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; {remake(path)}") from None
    if found != size:
        raise PipelineError(f"{path}: {found} bytes, {size} expected; {remake(path)}")
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        raise PipelineError(f"{path}: SHA-256 {digest}, {sha256} expected; {remake(path)}")


def check_tars(folder: Path, summary: Mapping[str, Any], *, verify: bool = False, share: slice = slice(None)) -> None:
    """Raise `PipelineError` unless every tar of a split exists in its folder or at its address with its size.

    verify: also compare the checksums of tars in a folder; share: the tars that this process compares.
    """
    shards = summary["shards"]
    if "address" in summary:
        check_sizes({f"{summary['address']}/{shard['tar']}": shard["bytes"] for shard in shards})
        return
    for shard in shards:
        check_tar(folder / shard["tar"], shard["bytes"], None)
    for shard in shards[share] if verify else []:
        check_tar(folder / shard["tar"], shard["bytes"], shard["sha256"])


def remake(tar: Path) -> str:
    """Request that the next run of the workflow makes a tar again, and return the advice for the user.

    Removes the tar's row file and records a repair of its part of the split. The repair is a parameter of the rule, so
    Snakemake plans this part again. The part's other tars are kept.
    """
    records = sorted((tar.parent / "parts").glob("*.json"))
    if not records:
        return "make it again with shard_audio, or with stage_shards if the shards were copied"
    with contextlib.suppress(OSError):  # a read-only folder
        tar.with_suffix(".parquet").unlink(missing_ok=True)
        for record in records:
            if f'"{tar.stem}"' in record.read_text(encoding="utf-8", errors="replace"):
                record.with_suffix(REPAIRS).write_text(f"{time.time_ns()}\n", encoding="utf-8")
        return "run the same Snakemake command again, which makes this tar again"
    return "delete it, and run the same Snakemake command again with --forcerun shard_audio"


def read_rows(path: Path) -> tuple[pa.Table, ShardFacts]:
    """Return the rows and the footer of a shard's row file."""
    table = read_table(path, MANIFEST_SCHEMA, "shard_audio")
    footer = (table.schema.metadata or {}).get(FACTS_KEY)
    if footer is None:
        raise PipelineError(f"{path}: is not a row file (its footer names no tar); make it with shard_audio")
    known = {field.name for field in fields(ShardFacts)}
    try:
        return table, ShardFacts(**{name: value for name, value in json.loads(footer).items() if name in known})
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{path}: its footer is damaged; make it again with shard_audio") from error


def rows_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows of a manifest as a table; missing values are null."""
    rows = list(rows)
    return pa.Table.from_pylist(rows, schema=fitting(MANIFEST_SCHEMA, rows[0] if rows else ()))
