"""Choose the clips of a split that are most worth a caption, and write a page to caption them.

The clips cover the split best, given the clips that are captioned already. On the page each clip can be played and
described with the keyboard alone. It saves captions.csv, which makes the page's folder a dataset with captions.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from pipeline.stages import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument("--in", dest="split", type=Path, required=True, metavar="SHARDS", help="folder of a split")
    parser.add_argument(
        "--captioned",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="SHARDS",
        help="folders of splits whose clips have captions; clips with the same audio are not suggested",
    )
    parser.add_argument(
        "--count", type=at_least(1), default=50, metavar="N", help="clips to suggest (default: %(default)s)"
    )
    parser.add_argument("--page", type=Path, metavar="DIR", help="new folder for the page and the audio of the clips")
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="folder that keeps the embeddings (default: as for the command search)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import to_json
    from pipeline.data.shards.reader import open_shards
    from pipeline.errors import printable
    from pipeline.evaluation.selection import suggest
    from pipeline.results.captioning.page import check_new_folder, write_page

    if args.page:
        check_new_folder(args.page)
    found = suggest(args.run, args.split, captioned=args.captioned, count=args.count, index=args.index)
    if args.page:
        write_page(found, open_shards(args.split), args.page)
    if args.json:
        print(to_json({"suggestions": [asdict(clip) for clip in found]}))
        return
    print("rank  coverage  share  clip")
    for clip in found:
        print(f"{clip.rank:4d}  {clip.coverage:8.3f}  {clip.share:5.1%}  {clip.key}  {printable(clip.source_name)}")
    if args.page:
        print(printable(f"{args.page / 'index.html'}"))
