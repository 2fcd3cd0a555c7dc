"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_shards_argument(parser: argparse.ArgumentParser) -> None:
    """`--shards DIR`, for commands that read a pairs file."""
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="DIR",
        help="folder that holds DATASET/SPLIT/ of the pairs' clips (default: the folder shards next to the pairs)",
    )
