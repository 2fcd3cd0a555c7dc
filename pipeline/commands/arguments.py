"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_shards_argument(parser: argparse.ArgumentParser) -> None:
    """`--shards DIR`, for commands that read a pairs file."""
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="DIR",
        help="folder that holds DATASET/SPLIT/ of the pairs' clips (default: the folder shards next to the pairs)",
    )


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    number.__name__ = "whole number"  # argparse puts it into its message
    return number


def share(text: str) -> float:
    """A type for argparse: numbers from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value
