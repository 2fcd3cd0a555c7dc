"""Check that shards or pairs are, byte for byte, as their manifests say.

Recompute checksums, offsets and counts. If all is well, print one line and exit with 0; otherwise name the first
damaged shard and member, or the first wrong row, and exit with 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_shards_argument
from pipeline.errors import PipelineError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a folder of shards or its manifest, a pairs file, or the address of a split's shards (https://, s3://, "
        "...), which are fetched one after another",
    )
    parser.add_argument(
        "--quick", action="store_true", help="check manifests, sizes and numbers of rows alone, which takes seconds"
    )
    add_shards_argument(parser)


def run(args: argparse.Namespace) -> None:
    if "://" in args.path:
        from pipeline.commands.inspection.shard_checks import verify_published

        print(printable(verify_published(args.path, quick=args.quick)))
    else:
        print(printable(verify(Path(args.path), shards=args.shards, quick=args.quick)))


def verify(path: Path, *, shards: Path | None, quick: bool) -> str:
    """Check shards or pairs and return one line that says what was checked; PipelineError names the first damage."""
    from pipeline.commands.inspection.pair_checks import verify_pairs
    from pipeline.commands.inspection.shard_checks import verify_shards
    from pipeline.commands.inspection.targets import damage_named, find_target

    target = find_target(path)
    with damage_named(path):
        if target.kind == "shards":
            return verify_shards(target.path, quick=quick)
        if target.kind == "pairs":
            return verify_pairs(target.path, shards, quick=quick)
    raise PipelineError(
        f"{target.path}: a {target.kind}, which has no checksums; give a folder of shards or a pairs file"
    )
