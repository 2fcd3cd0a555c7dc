"""Inspect, verify and hear what the stages made, search it with a model, fetch raw datasets, pass a run on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.commands.inspection.facts import facts_of
from pipeline.commands.inspection.listening import read_slot, write_slot
from pipeline.commands.inspection.targets import find_target
from pipeline.commands.inspection.text import render, to_json
from pipeline.commands.inspection.verification import verify, verify_published
from pipeline.data.downloads import PUBLICATIONS, download
from pipeline.errors import PipelineError, printable
from pipeline.results.export import describe, export_run


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shards_help = "folder that holds DATASET/SPLIT/ of the pairs' clips (default: the folder shards beside the pairs)"

    inspect = commands.add_parser(
        "inspect",
        help="what shards, a catalog, pairs or a run hold",
        description="Show counts, reasons, durations, levels, captions and sample rows of shards, a catalog or pairs, "
        "and settings, weights and losses of a run.",
    )
    inspect.add_argument(
        "path", type=Path, metavar="PATH",
        help="a folder of shards or its manifest, a catalog, a pairs file, or the folder of a run",
    )  # fmt: skip
    inspect.add_argument("--json", action="store_true", help="the same as one JSON object")
    inspect.add_argument(
        "--samples", type=int, default=3, metavar="N",
        help="sample rows, lost rows a reason and duplicate captions to show (default: %(default)s)",
    )  # fmt: skip
    inspect.add_argument("--shards", type=Path, metavar="DIR", help=shards_help)

    check = commands.add_parser(
        "verify",
        help="whether shards or pairs are to the byte what their manifests say",
        description="Recompute checksums, offsets and counts. If all is well, print one line and exit with 0; "
        "otherwise name the first damaged shard and member, or the first wrong row, and exit with 1.",
    )
    check.add_argument(
        "path",
        metavar="PATH",
        help="a folder of shards or its manifest, a pairs file, or the address of a split's shards (https://, s3://, "
        "...), which are fetched one after another",
    )
    check.add_argument(
        "--quick", action="store_true", help="manifests, sizes and numbers of rows alone, which takes seconds"
    )
    check.add_argument("--shards", type=Path, metavar="DIR", help=shards_help)

    listen = commands.add_parser(
        "listen",
        help="hear one pair as training hears it",
        description="Write labeled.wav, partner.wav and composed.wav, (x + u) / 2 of Eq. (11), of one slot, and "
        "index.html to play them with their captions. Epochs, steps and slots count from 0.",
    )
    listen.add_argument("path", type=Path, metavar="PAIRS", help="Parquet file of pair_clips")
    listen.add_argument("--shards", type=Path, metavar="DIR", help=shards_help)
    listen.add_argument("--epoch", type=int, default=0, help="(default: %(default)s)")
    listen.add_argument("--step", type=int, default=0, help="of the epoch (default: %(default)s)")
    listen.add_argument("--slot", type=int, default=0, help="of the step's batch (default: %(default)s)")
    listen.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")

    fetch = commands.add_parser(
        "download",
        help="raw datasets, as far as they are given out without an account",
        description="Fetch Clotho (audio and captions), or the lists of AudioCaps or AudioSet, into the layout that "
        "the pipeline reads. Sizes and licence are printed first; a download that broke off goes on when run again.",
    )
    fetch.add_argument("dataset", choices=sorted(PUBLICATIONS))
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="root of the dataset, data/clotho for one")
    fetch.add_argument("--splits", nargs="+", metavar="SPLIT", help="publisher's names (default: those of the paper)")
    fetch.add_argument("--from", dest="address", metavar="URL", help="a mirror's folder instead of the publisher's")
    fetch.add_argument("--dry-run", action="store_true", help="only say what would be fetched")

    export = commands.add_parser(
        "export",
        help="a trained run as a folder to pass on",
        description="Write the model, a model card with data, settings, figures and licences, and for ms-clap a "
        "checkpoint that msclap's own wrapper loads.",
    )
    export.add_argument("path", type=Path, metavar="RUN_FOLDER", help="as results/runs/RUN/seed0")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")

    find = commands.add_parser(
        "search",
        help="the clips or captions of a split that are nearest to a text or a sound",
        description="Rank the clips of a split, or its captions, by their cosine to a text or an audio file. The "
        "split's embeddings are computed on the first search and kept in the folder index of the run.",
    )
    query = find.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="TEXT", help="text to search with")
    query.add_argument("--audio", type=Path, metavar="FILE", help="audio file, in any format, to search with")
    find.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    find.add_argument("--in", dest="split", type=Path, required=True, metavar="SHARDS", help="folder of a split")
    find.add_argument("--captions", action="store_true", help="rank the split's captions instead of its clips")
    find.add_argument("--top", type=int, default=10, metavar="N", help="results to show (default: %(default)s)")
    find.add_argument("--json", action="store_true", help="the same as a JSON object")

    zero_shot = commands.add_parser(
        "classify",
        help="how well a model classifies sounds that it was not trained to classify",
        description="Zero-shot accuracy, with a 95 %% interval, on a folder with a subfolder a class, or on one in "
        "ESC-50's layout (meta/esc50.csv and audio/): each file goes to the class whose prompt is nearest.",
    )
    zero_shot.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    zero_shot.add_argument("--in", dest="root", type=Path, required=True, metavar="DIR", help="folder of the clips")
    zero_shot.add_argument(
        "--prompt",
        default="this is a sound of {class}",
        metavar="TEXT",
        help="prompt of a class (default: %(default)s)",
    )
    zero_shot.add_argument("--confusion", type=Path, metavar="FILE", help="CSV file of classes by classes to write")
    zero_shot.add_argument("--json", action="store_true", help="the same as one JSON object")
    return parser


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Name the file when its contents contradict each other in a way that no check foresaw: a flipped bit can."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise PipelineError(f"{path}: is damaged, make it again ({type(error).__name__}: {error})") from error


def main(argv: list[str]) -> None:
    """Run a command and print what it found."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "inspect" and args.samples < 0:
        parser.error(f"--samples must be at least 0, not {args.samples}")
    if args.command == "download":
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        download(args.dataset, args.to, splits=args.splits, address=args.address, dry_run=args.dry_run)
        return
    if args.command == "export":
        print(describe(export_run(args.path, args.to)))
        return
    if args.command == "search":
        if args.top < 1:
            parser.error(f"--top must be at least 1, not {args.top}")
        from pipeline.evaluation.search import (
            render as render_results,  # with torch, which the other commands do without
        )
        from pipeline.evaluation.search import search

        results = search(args.audio or args.text, args.run, args.split, captions=args.captions, top=args.top)
        print(to_json({"results": results}) if args.json else render_results(results))
        return
    if args.command == "classify":
        from pipeline.evaluation.zero_shot import classify, write_confusion

        facts, counts = classify(args.run, args.root, args.prompt)
        if args.confusion:
            write_confusion(facts, counts, args.confusion)
        print(to_json(facts) if args.json else render(facts))
        return
    if args.command == "verify" and "://" in args.path:
        print(printable(verify_published(args.path, quick=args.quick)))
        return
    args.path = Path(args.path)
    target = find_target(args.path)
    if args.command == "inspect":
        with damage_named(args.path):
            facts = facts_of(target, shards=args.shards, samples=args.samples)
        print(to_json(facts) if args.json else render(facts))
    elif args.command == "verify":
        with damage_named(args.path):
            found = verify(target, shards=args.shards, quick=args.quick)
        print(printable(found))
    else:
        if target.kind != "pairs":
            raise PipelineError(f"{args.path}: {target.kind}, not a pairs file; give a file that pair_clips made")
        sounds, sample_rate_hz = read_slot(args.path, args.shards, epoch=args.epoch, step=args.step, slot=args.slot)
        title = f"{args.path}: epoch {args.epoch}, step {args.step}, slot {args.slot}"
        write_slot(sounds, sample_rate_hz, args.out, title)
        for sound in sounds:
            print(printable(f"{args.out / sound.name}.wav  {sound.origin}: {sound.text}"))
        print(printable(f"{args.out / 'index.html'}"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except PipelineError as error:
        sys.exit(f"python -m pipeline: {printable(str(error))}")
    except BrokenPipeError:  # the reader of a pipe, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
