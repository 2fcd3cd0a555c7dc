"""Measure how well a model classifies sounds that it was not trained to classify.

Zero-shot accuracy, with a 95 % interval, on a folder with one subfolder per class, or on one in ESC-50's layout
(meta/esc50.csv and audio/): each file goes to the class whose prompt is nearest. Files that cannot be used are left
out and counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument("--in", dest="root", type=Path, required=True, metavar="DIR", help="folder of the clips")
    parser.add_argument(
        "--prompt",
        default="this is a sound of {class}",
        metavar="TEXT",
        help="prompt of a class (default: %(default)s)",
    )
    parser.add_argument("--confusion", type=Path, metavar="FILE", help="CSV file of classes by classes to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.text import render, to_json
    from pipeline.evaluation.classification import classify, write_confusion

    result = classify(args.run, args.root, args.prompt)
    if args.confusion:
        write_confusion(result, args.confusion)
    print(to_json(result.as_json()) if args.json else render(result.as_json()))
