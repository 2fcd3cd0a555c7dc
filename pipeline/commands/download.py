"""Fetch raw datasets, if they are available without an account.

Fetch Clotho (audio and captions), or the lists of AudioCaps or AudioSet, into the layout that the pipeline reads. Sizes
and licence are printed first; an interrupted download continues when run again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=["audiocaps", "audioset", "clotho"])
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="root of the dataset, for example data/clotho"
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="publisher's names (default: those of the paper)")
    parser.add_argument("--from", dest="address", metavar="URL", help="a mirror's folder instead of the publisher's")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be fetched")


def run(args: argparse.Namespace) -> None:
    from pipeline.data.downloads import download

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    download(args.dataset, args.to, splits=args.splits, address=args.address, dry_run=args.dry_run)
