"""Find the clips or captions of a split that are nearest to a text or a sound.

Rank the clips of a split, or its captions, by their cosine to a text or an audio file. The split's embeddings are
computed on the first search and kept for the next ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.stages import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="TEXT", help="text to search with")
    query.add_argument("--audio", type=Path, metavar="FILE", help="audio file, in any format, to search with")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument("--in", dest="split", type=Path, required=True, metavar="SHARDS", help="folder of a split")
    parser.add_argument("--captions", action="store_true", help="rank the split's captions instead of its clips")
    parser.add_argument(
        "--top", type=at_least(1), default=10, metavar="N", help="results to show (default: %(default)s)"
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="folder that keeps the split's embeddings (default: the folder index of the run; of an exported or "
        "read-only model ~/.cache/audio-composed-text/index)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import to_json
    from pipeline.evaluation.search import render, search

    query = args.audio or args.text
    results = search(query, args.run, args.split, captions=args.captions, top=args.top, index=args.index)
    print(to_json({"results": [found.as_json() for found in results]}) if args.json else render(results))
