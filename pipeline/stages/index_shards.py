"""Join the row files of a split's shards into its manifest, and account for every source row."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.catalogs import EXPECTED, OK, SEGMENT_COLUMNS, Loss, check_losses, fitting, regrouped
from pipeline.data.leaks import AudioForm, write_identities
from pipeline.data.shards.format import (
    MANIFEST_SCHEMA,
    ShardFacts,
    check_tar,
    manifest_batches,
    read_rows,
    segment_columns,
    write_card,
)
from pipeline.data.shards.partition import Assignment, read_plan
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_atomically, write_json
from pipeline.stages import between, run

logger = logging.getLogger(__name__)

ROW_GROUP_ROWS = 1 << 16
"""Rows of a manifest in memory while it is written: about 20 MB."""


def check_shard(path: Path, facts: ShardFacts, reference: ShardFacts, assignment: Assignment) -> None:
    """Raise PipelineError unless a row file belongs to these catalog rows, has the reference's settings, and has a tar.

    When two footers disagree, only the settings of the study show which one is wrong.
    """
    if (facts.shard, facts.rows_digest) != (assignment.shard, assignment.digest):
        raise PipelineError(
            f"{path}: was made from other rows than the catalog has for shard {assignment.shard}; make it again with "
            "shard_audio"
        )
    own, other = (f"{shard.format} at {shard.sample_rate_hz} Hz" for shard in (facts, reference))
    if own == other:
        own, other = (f"the {shard.channels} of the channels" for shard in (facts, reference))
    if own != other:
        raise PipelineError(
            f"{path}: has {own}, shard {reference.shard} has {other}; make all shards again with the same settings"
        )
    check_tar(path.with_suffix(".tar"), facts.bytes, None)


def warn_of_old_tars(folder: Path, shards: Sequence[Assignment]) -> None:
    """Log the tars of earlier shards that are still in the folder: nothing reads them, but they take space."""
    names = {assignment.shard for assignment in shards}
    if old := sorted(path for path in folder.glob("*.tar") if path.stem not in names):
        logger.warning(
            "%s: %d tars (%.1f GB) belong to no shard of the catalog and are ignored; delete them: %s",
            folder, len(old), sum(path.stat().st_size for path in old) / 1e9,
            " ".join(path.name for path in old[:20]) + (" ..." if len(old) > 20 else ""),
        )  # fmt: skip


def joined(paths: Sequence[Path], shards: Sequence[Assignment], facts: list[ShardFacts]) -> Iterator[pa.Table]:
    """Yield the rows of each shard after checking it; append the contents of its footer to `facts`."""
    for path, assignment in zip(paths, shards, strict=True):
        table, fact = read_rows(path)
        facts.append(fact)
        check_shard(path, fact, facts[0], assignment)
        yield table.replace_schema_metadata(None).cast(fitting(MANIFEST_SCHEMA, table.schema.names))


def write_manifest(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables as one file with row groups of `ROW_GROUP_ROWS`; the same rows give the same bytes."""
    tables = iter(tables)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for group in regrouped(itertools.chain([first], tables), itertools.repeat(ROW_GROUP_ROWS)):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)


def summarize(manifest: Path, facts: Sequence[ShardFacts]) -> dict[str, Any]:
    """Return the summary of a split, which other stages read before its manifest."""
    rate = facts[0].sample_rate_hz
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    names: set[tuple[str, str]] = set()
    frames = 0
    for batch in manifest_batches(manifest, ["dataset", "split", "status", "reason", "frames"]):
        statuses.update(batch["status"].to_pylist())
        reasons.update(batch["reason"].drop_null().to_pylist())
        frames += pc.sum(batch["frames"]).as_py() or 0  # null in rows that are not usable
        names.add((batch["dataset"][0].as_py(), batch["split"][0].as_py()))
    dataset, split = names.pop()
    return {
        "dataset": dataset,
        "split": split,
        "sample_rate_hz": rate,
        "format": facts[0].format,
        "channels": facts[0].channels,
        "rows": statuses.total(),
        "clips": statuses[OK],
        "duration_s": round(frames / rate, 3),
        "status": dict(statuses),
        "reason": dict(reasons),
        "manifest_sha256": sha256_of(manifest),
        "shards": [
            {
                "shard": fact.shard,
                "tar": f"{fact.shard}.tar",
                "bytes": fact.bytes,
                "sha256": fact.sha256,
                "clips": fact.clips,
            }
            for fact in facts
        ],
    }


def losses_of(manifest: Path) -> Iterator[Loss]:
    """Yield the unusable clips, named by source and key."""
    for batch in manifest_batches(manifest, ["status", "reason", "source_name", "key", *segment_columns(manifest)]):
        for row in batch.filter(pc.not_equal(batch["status"], OK)).to_pylist():
            is_expected = row.get(SEGMENT_COLUMNS[0]) is not None and row["reason"] in EXPECTED
            yield Loss(row["reason"], f'"{row["source_name"]}" ({row["key"]})', is_expected)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="Parquet file of index_audio, one row per shard")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the row files and tars of all shards")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file to write, next to the tars")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--identities", type=Path, required=True, help="Parquet file to write, for the leak guard")
    parser.add_argument(
        "--max-dropped-fraction",
        type=between(0, 1),
        default=0.0,
        help="fail if more rows are lost (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    shards = read_plan(args.plan)
    paths = [args.shards / f"{assignment.shard}.parquet" for assignment in shards]
    warn_of_old_tars(args.shards, shards)
    facts: list[ShardFacts] = []
    with write_atomically(args.manifest) as temporary:
        write_manifest(joined(paths, shards, facts), temporary)
        rows = sum(assignment.rows for assignment in shards)
        check_losses(losses_of(temporary), rows, args.max_dropped_fraction, str(args.manifest.parent))
    summary = summarize(args.manifest, facts)
    write_identities(args.manifest, AudioForm.of(summary), args.identities)
    write_json(summary, args.summary)
    write_card(summary, args.summary.parent)
    logger.info(
        "%s: %d of %d clips, %.1f h, %s", args.manifest, summary["clips"], summary["rows"],
        summary["duration_s"] / 3600, summary["reason"] or "none lost",
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
