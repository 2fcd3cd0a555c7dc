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

from pipeline.catalogs import OK, Loss, check_losses
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_json, write_parquet
from pipeline.shards import MANIFEST_SCHEMA, ShardFacts, check_tar, read_rows, shard_name
from pipeline.stages import run

logger = logging.getLogger(__name__)


def check_shards(paths: Sequence[Path], tables: Sequence[pa.Table], facts: Sequence[ShardFacts]) -> None:
    """Raise PipelineError unless the row files are all shards of one split, made alike, of one catalog."""
    first, reference = paths[0], (tables[0]["dataset"][0].as_py(), tables[0]["split"][0].as_py())
    last_key, last_path = "", first
    for index, (path, table, fact) in enumerate(zip(paths, tables, facts, strict=True)):
        if fact.shard != shard_name(index):
            raise PipelineError(f"{path}: is shard {fact.shard}, expected {shard_name(index)}; pass every shard once")
        found = (table["dataset"][0].as_py(), table["split"][0].as_py())
        if found != reference:
            raise PipelineError(f"{path}: is of {'/'.join(found)}, {first} of {'/'.join(reference)}; pass one split")
        if (fact.format, fact.sample_rate_hz) != (facts[0].format, facts[0].sample_rate_hz):
            raise PipelineError(
                f"{path}: {fact.format} at {fact.sample_rate_hz} Hz, {first} is {facts[0].format} at "
                f"{facts[0].sample_rate_hz} Hz; make all shards again with the same settings"
            )
        for key in table["key"].to_pylist():
            if key <= last_key:
                raise PipelineError(
                    f"{path}: {key} does not follow {last_key} of {last_path}; the shards were made from different "
                    "catalogs or sizes, make them all again"
                )
            last_key, last_path = key, path
        check_tar(path.with_suffix(".tar"), fact.bytes, None)


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
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="row files of all shards, tars beside them")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file to write, beside the tars")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--max-dropped-fraction", type=float, default=0.0, help="fail above it (default: %(default)s)")
    args = parser.parse_args(argv)

    paths = sorted(args.rows)
    tables, facts = zip(*(read_rows(path) for path in paths), strict=True)
    check_shards(paths, tables, facts)
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
