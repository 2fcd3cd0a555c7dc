"""List every clip of a split with its file, captions and source, or the reason for its loss; plan the shards."""

from __future__ import annotations

import argparse
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.adapters import ADAPTERS
from pipeline.data.catalogs import ROW_GROUP_ROWS, Loss, catalog_of, check_losses
from pipeline.data.parquet import write_parquet
from pipeline.data.segments import SegmentSettings, cut_recordings
from pipeline.data.shards.partition import read_assignment, write_plan
from pipeline.stages import at_least, between, run

logger = logging.getLogger(__name__)

LEAST_SEGMENT_S = 0.1
LOGGED_LOSSES = 20  # per reason; the catalog has them all


def log_losses(losses: Sequence[Loss]) -> None:
    """Log the first losses of each reason by name, and the number of the others."""
    counts: Counter[str] = Counter()
    for loss in losses:
        counts[loss.reason] += 1
        if counts[loss.reason] <= LOGGED_LOSSES:
            logger.log(logging.INFO if loss.is_expected else logging.WARNING, "%s", loss)
    for reason, count in counts.items():
        if count > LOGGED_LOSSES:
            logger.warning("... and %d more %s", count - LOGGED_LOSSES, reason)


def segment_settings(args: argparse.Namespace) -> SegmentSettings | None:
    """Return how recordings are cut; None if each file is one clip."""
    if args.segment_length_s is None:
        return None
    hop_s = args.segment_length_s if args.segment_hop_s is None else args.segment_hop_s
    return SegmentSettings(length_s=args.segment_length_s, hop_s=hop_s, min_share=args.segment_min_share)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of the dataset in the study")
    parser.add_argument("--split", required=True, help="the publisher's name of the split")
    parser.add_argument("--adapter", required=True, choices=sorted(ADAPTERS), help="layout of the raw dataset")
    parser.add_argument("--root", type=Path, required=True, help="folder of the raw dataset")
    captions = parser.add_mutually_exclusive_group(required=True)
    captions.add_argument("--labeled", action="store_true", help="drop clips without a caption")
    captions.add_argument("--unlabeled", action="store_true", help="ignore captions")
    parser.add_argument(
        "--max-dropped-fraction",
        type=between(0, 1),
        default=0.0,
        help="fail if more rows are lost (default: %(default)s)",
    )
    parser.add_argument("--clips-per-shard", type=at_least(1), required=True, help="maximum of catalog rows per shard")
    seconds = between(LEAST_SEGMENT_S, math.inf)
    parser.add_argument("--segment-length-s", type=seconds, help="cut recordings into segments (default: whole files)")
    parser.add_argument(
        "--segment-hop-s", type=seconds, help="from a segment's start to the next (default: the length)"
    )
    parser.add_argument(
        "--segment-min-share",
        type=between(0, 1),
        default=0.5,
        help="drop a last piece shorter than this share of the length (default: %(default)s)",
    )
    parser.add_argument("--catalog", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--plan", type=Path, required=True, help="Parquet file to write the list of shards to")
    args = parser.parse_args(argv)

    rows = cut_recordings(ADAPTERS[args.adapter](args.root, args.split), segment_settings(args))
    catalog, losses = catalog_of(rows, dataset=args.dataset, split=args.split, labeled=args.labeled)
    log_losses(losses)
    check_losses(losses, len(catalog), args.max_dropped_fraction, str(args.root))
    write_parquet(catalog, args.catalog, ROW_GROUP_ROWS)
    write_plan(read_assignment(args.catalog, args.clips_per_shard), args.plan)
    logger.info("%s: %d clips, %d of them usable", args.catalog, len(catalog), len(catalog) - len(losses))


if __name__ == "__main__":
    run(main)
