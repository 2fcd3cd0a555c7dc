"""Write a trained run as a folder to pass on.

Write the model, a model card with data, settings, figures and licences, and for ms-clap a checkpoint that msclap's own
wrapper loads.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN_FOLDER", help="for example results/runs/RUN/seed0")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")


def run(args: argparse.Namespace) -> None:
    from pipeline.results.export import describe, export_run

    print(describe(export_run(args.path, args.to)))
