"""Join the row files of a split's shards to its manifest, and account for every source row."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.assignment import Assignment, read_assignment
from pipeline.catalogs import OK, Loss, check_losses
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_json, write_parquet
from pipeline.shards import MANIFEST_SCHEMA, ShardFacts, check_tar, read_rows
from pipeline.stages import run

logger = logging.getLogger(__name__)


def check_shard(path: Path, facts: ShardFacts, reference: ShardFacts, assignment: Assignment) -> None:
    """Raise PipelineError unless a row file is of these rows of the catalog, made as the reference was, its tar beside.

    Two shards whose footers disagree with each other cannot both be right, and which is wrong only the settings tell.
    """
    if (facts.shard, facts.rows_digest) != (assignment.shard, assignment.digest):
        raise PipelineError(
            f"{path}: was made of other rows than the catalog has for shard {assignment.shard}; make it again with "
            "shard_audio"
        )
    if (facts.format, facts.sample_rate_hz) != (reference.format, reference.sample_rate_hz):
        raise PipelineError(
            f"{path}: {facts.format} at {facts.sample_rate_hz} Hz, shard {reference.shard} is {reference.format} at "
            f"{reference.sample_rate_hz} Hz; make all shards again with the same settings"
        )
    check_tar(path.with_suffix(".tar"), facts.bytes, None)


def warn_of_strangers(folder: Path, shards: Sequence[Assignment]) -> None:
    """Log the tars of earlier shards that still lie in the folder: nothing reads them, but they take room."""
    names = {assignment.shard for assignment in shards}
    if strangers := sorted(path for path in folder.glob("*.tar") if path.stem not in names):
        logger.warning(
            "%s: %d tars (%.1f GB) belong to no shard of the catalog any more; they are left out, delete them: %s",
            folder, len(strangers), sum(path.stat().st_size for path in strangers) / 1e9,
            " ".join(path.name for path in strangers[:20]) + (" ..." if len(strangers) > 20 else ""),
        )  # fmt: skip


def summarize(manifest: pa.Table, facts: Sequence[ShardFacts], manifest_sha256: str) -> dict[str, Any]:
    """What other stages need to know of a split before they open its manifest."""
    usable = manifest.filter(pc.equal(manifest["status"], OK))
    rate = facts[0].sample_rate_hz
    return {
        "dataset": manifest["dataset"][0].as_py(),
        "split": manifest["split"][0].as_py(),
        "sample_rate_hz": rate,
        "format": facts[0].format,
        "rows": len(manifest),
        "clips": len(usable),
        "duration_s": round((pc.sum(usable["frames"]).as_py() or 0) / rate, 3),
        "status": dict(Counter(manifest["status"].to_pylist())),
        "reason": dict(Counter(reason for reason in manifest["reason"].to_pylist() if reason is not None)),
        "manifest_sha256": manifest_sha256,
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


def losses_of(manifest: pa.Table) -> list[Loss]:
    """The clips that are not used, named by their source and key."""
    lost = manifest.filter(pc.not_equal(manifest["status"], OK))
    columns = (lost[name].to_pylist() for name in ("reason", "source_name", "key"))
    return [Loss(reason, f'"{name}" ({key})') for reason, name, key in zip(*columns, strict=True)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", type=Path, required=True, help="Parquet file of index_audio")
    parser.add_argument("--clips-per-shard", type=int, required=True, help="as the shards were made with")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the row files and tars of all shards")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file to write, beside the tars")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--max-dropped-fraction", type=float, default=0.0, help="fail above it (default: %(default)s)")
    args = parser.parse_args(argv)

    shards = read_assignment(args.catalog, args.clips_per_shard)
    paths = [args.shards / f"{assignment.shard}.parquet" for assignment in shards]
    tables, facts = zip(*(read_rows(path) for path in paths), strict=True)
    for path, fact, assignment in zip(paths, facts, shards, strict=True):
        check_shard(path, fact, facts[0], assignment)
    warn_of_strangers(args.shards, shards)
    manifest = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).cast(MANIFEST_SCHEMA)
    check_losses(losses_of(manifest), len(manifest), args.max_dropped_fraction, str(args.manifest.parent))
    write_parquet(manifest.combine_chunks(), args.manifest)
    summary = summarize(manifest, facts, sha256_of(args.manifest))
    write_json(summary, args.summary)
    logger.info(
        "%s: %d of %d clips, %.1f h, %s", args.manifest, summary["clips"], summary["rows"],
        summary["duration_s"] / 3600, summary["reason"] or "none lost",
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
