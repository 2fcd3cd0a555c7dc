"""Fetch ready shards from an address: the manifest, and the tars as checked copies or later by byte range."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.data.addresses import check_ranges, copy_file
from pipeline.data.leaks import AudioForm, write_identities
from pipeline.data.shards.format import read_published_summary, write_card
from pipeline.files import sha256_of, write_json
from pipeline.stages import run

logger = logging.getLogger(__name__)

CONNECTIONS = 4


def stage_tar(address: str, folder: Path, shard: Mapping[str, Any]) -> bool:
    """Copy a tar unless a complete copy exists; return whether it was copied."""
    path = folder / shard["tar"]
    if path.exists() and path.stat().st_size == shard["bytes"] and sha256_of(path) == shard["sha256"]:
        return False
    copy_file(f"{address}/{shard['tar']}", path, shard["sha256"])
    return True


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="folder with manifest.json: https://..., s3://... or a path")
    parser.add_argument(
        "--tars", choices=["copy", "remote"], default="copy", help="copy, or remote: read by byte range"
    )
    parser.add_argument(
        "--manifest", type=Path, required=True, help="manifest.parquet to write; tars are written next to it"
    )
    parser.add_argument("--summary", type=Path, required=True, help="manifest.json to write")
    parser.add_argument("--identities", type=Path, required=True, help="Parquet file to write, for the leak guard")
    args = parser.parse_args(argv)

    address = args.address.rstrip("/")
    summary = read_published_summary(address)
    shards = summary["shards"]
    if args.tars == "remote":
        for shard in tqdm(shards, unit="shard", disable=None):
            check_ranges(f"{address}/{shard['tar']}", shard["bytes"])
        summary["address"] = address
        found = "read by byte range"
    else:
        summary.pop("address", None)  # present if the publisher reads the tars at another address
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            tasks = pool.map(lambda shard: stage_tar(address, args.manifest.parent, shard), shards)
            copied = sum(tqdm(tasks, total=len(shards), unit="shard", disable=None))
        write_card(summary, args.manifest.parent)
        found = f"{copied} copied, {len(shards) - copied} present before"
    copy_file(f"{address}/manifest.parquet", args.manifest, summary["manifest_sha256"])
    write_identities(args.manifest, AudioForm.of({"channels": "mean", **summary}), args.identities)
    write_json(summary, args.summary)
    logger.info("%s: %d clips in %d shards, %s", address, summary["clips"], len(shards), found)


if __name__ == "__main__":
    run(main)
