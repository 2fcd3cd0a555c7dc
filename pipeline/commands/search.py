"""Find the moments of recordings, or the clips or captions of a split, that are nearest to a text or a sound.

In a folder of recordings, of any format and length: rank its moments. In a split: rank its clips, or its captions. The
score is the cosine. Embeddings are computed on the first search and kept for the next ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.stages import at_least, between

FOR_RECORDINGS = ("hop", "like_chance", "csv", "audacity", "raven", "page")
"""Options that a split does not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="TEXT", help="text to search with")
    query.add_argument("--audio", type=Path, metavar="FILE", help="audio file, in any format, to search with")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument(
        "--in",
        dest="folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of recordings, with subfolders, or of a split's shards",
    )
    parser.add_argument("--captions", action="store_true", help="rank the split's captions instead of its clips")
    parser.add_argument(
        "--top", type=at_least(1), default=10, metavar="N", help="results to show (default: %(default)s)"
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="folder that keeps the embeddings (default: the folder index of the run; of an exported or read-only "
        "model ~/.cache/audio-composed-text/index)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    recordings = parser.add_argument_group("for a folder of recordings")
    recordings.add_argument(
        "--hop",
        type=between(0, float("inf")),
        metavar="S",
        help="seconds from window to window (default: half of the model's window)",
    )
    recordings.add_argument(
        "--like-chance",
        type=between(0, 1),
        metavar="P",
        help="show only hits that stand out: of texts whose sound is not in the folder, this share has any hit",
    )
    recordings.add_argument("--csv", type=Path, metavar="FILE", help="write the hits as CSV")
    recordings.add_argument(
        "--audacity", type=Path, metavar="DIR", help="write a label track of Audacity per recording with hits"
    )
    recordings.add_argument(
        "--raven", type=Path, metavar="DIR", help="write a selection table of Raven per recording with hits"
    )
    recordings.add_argument(
        "--page", type=Path, metavar="DIR", help="write a page to hear and see the hits; it needs no network"
    )


def run(args: argparse.Namespace) -> None:
    if (args.folder / "manifest.json").exists() or (args.folder / "manifest.parquet").exists():
        _search_split(args)
    else:
        _search_recordings(args)


def _search_split(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import to_json
    from pipeline.evaluation.search import render, search

    for name in FOR_RECORDINGS:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise PipelineError(f"{args.folder}: is a split, and {option} is for a folder of recordings; leave it out")
    query = args.audio or args.text
    results = search(query, args.run, args.folder, captions=args.captions, top=args.top, index=args.index)
    print(to_json({"results": [found.as_json() for found in results]}) if args.json else render(results))


def _search_recordings(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import to_json
    from pipeline.evaluation.folders.search import search_folder
    from pipeline.evaluation.model import load
    from pipeline.results.hits import labels
    from pipeline.results.hits.page import check_page_folder, write_page
    from pipeline.results.hits.text import as_json, render

    if args.captions:
        raise PipelineError(f"{args.folder}: is no split, and --captions is for splits; leave it out")
    if args.page:
        check_page_folder(args.page, args.folder)
    model = load(args.run)
    result = search_folder(
        args.audio or args.text,
        model,
        args.folder,
        top=args.top,
        hop_s=args.hop,
        like_chance=args.like_chance,
        index=args.index,
    )
    query = str(args.audio or args.text)
    if args.csv:
        labels.write_csv(result.hits, args.csv)
    if args.audacity:
        labels.write_label_tracks(result.hits, query, args.audacity)
    if args.raven:
        labels.write_selection_tables(result.hits, query, args.folder, model.sample_rate_hz / 2, args.raven)
    if args.page:
        write_page(result, query, args.folder, model.network, args.page)
    text = to_json(as_json(result)) if args.json else render(result)
    print(text.encode("utf-8", "backslashreplace").decode())  # a surrogate, of a name, becomes its escape in JSON
