"""Collect the metrics of all rows into the paper's Table 1, as CSV, Markdown and a LaTeX document."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import write_atomically
from pipeline.results.comparisons import read_comparisons
from pipeline.results.tables import (
    Row,
    add_row_arguments,
    read_published,
    set_beside,
    tabulate,
    to_csv,
    to_latex,
    to_markdown,
)
from pipeline.stages import run

logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> dict[str, Any]:
    """The contents of a metrics.json."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file; make it with the stage evaluate") from None
    except ValueError as error:
        raise PipelineError(f"{path}: is no JSON ({error}); make it again with the stage evaluate") from error


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_row_arguments(parser, "metrics.json")
    parser.add_argument("--study-name", required=True, help="what the caption calls the study")
    parser.add_argument("--study-note", default="", help="what the notes say of the study, in plain text")
    parser.add_argument("--comparisons", type=Path, help="CSV file of compare; what is significant is marked")
    parser.add_argument(
        "--published",
        type=Path,
        help="CSV of published figures, in the columns of data/paper_table1.csv, to set beside",
    )
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file to write")
    parser.add_argument("--tex", type=Path, required=True, help="LaTeX document to write")
    args = parser.parse_args(argv)

    results = []
    for spec, *paths in args.row:
        files = {path: read_metrics(path) for path in map(Path, paths)}
        if len(files) < len(paths):
            raise PipelineError(f"row {spec} names a metrics file twice")
        results.append((Row.parse(spec, args.datasets), files))
    table = tabulate(results, args.datasets, args.protocol)
    if args.published:
        table = set_beside(table, read_published(args.published))
    comparisons = read_comparisons(args.comparisons) if args.comparisons else None
    for path, content in (
        (args.csv, to_csv(table)),
        (args.markdown, to_markdown(table, comparisons)),
        (args.tex, to_latex(table, args.study_name, args.study_note, comparisons)),
    ):
        if path is None:
            continue
        with write_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    logger.info("%d rows of %d targets", len(table), table["target"].nunique())
    if args.published:
        logger.info("%d of them have published figures in %s", table["published_t2a_R1"].notna().sum(), args.published)


if __name__ == "__main__":
    run(main)
