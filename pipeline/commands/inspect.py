"""Show the contents of shards, a catalog, pairs or a run.

Show counts, reasons, durations, levels, captions and sample rows of shards, a catalog or pairs, and settings, weights
and losses of a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.arguments import add_shards_argument
from pipeline.stages import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a folder of shards or its manifest, a catalog, a pairs file, or the folder of a run",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--samples",
        type=at_least(0),
        default=3,
        metavar="N",
        help="sample rows, lost rows per reason and duplicate captions to show (default: %(default)s)",
    )
    add_shards_argument(parser)


def run(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import render, to_json

    sections = describe(args.path, shards=args.shards, samples=args.samples)
    print(to_json(sections) if args.json else render(sections))


def describe(path: Path, *, shards: Path | None, samples: int) -> dict[str, Any]:
    """The kind, the path and the sections of an output of the stages; see `inspection.text.render`."""
    from pipeline.commands.inspection.pairs import describe_pairs
    from pipeline.commands.inspection.runs import describe_run
    from pipeline.commands.inspection.splits import describe_catalog, describe_shards
    from pipeline.commands.inspection.targets import damage_named, find_target

    target = find_target(path)
    with damage_named(path):
        if target.kind == "shards":
            sections = describe_shards(target.path, samples)
        elif target.kind == "catalog":
            sections = describe_catalog(target.path, samples)
        elif target.kind == "pairs":
            sections = describe_pairs(target.path, shards, samples)
        else:
            sections = describe_run(target.path)
    return {"kind": target.kind, "path": str(target.path), **sections}
