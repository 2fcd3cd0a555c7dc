"""Write the metrics of all rows as a table like the paper's Table 1: CSV, Markdown and a LaTeX document."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import read_json, write_atomically, write_checked_text
from pipeline.results.table.csv import to_csv
from pipeline.results.table.differences import read_comparisons
from pipeline.results.table.latex import to_latex
from pipeline.results.table.markdown import to_markdown
from pipeline.results.table.published import add_published, read_published
from pipeline.results.table.rows import Row, add_row_arguments, mark_significant, tabulate
from pipeline.stages import run

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_row_arguments(parser, "metrics.json")
    parser.add_argument("--study-name", required=True, help="name of the study, for the caption")
    parser.add_argument("--study-note", default="", help="note on the study in plain text, shown under the table")
    parser.add_argument("--comparisons", type=Path, help="CSV file of compare; significant differences are marked")
    parser.add_argument(
        "--published",
        type=Path,
        help="CSV file of published figures to show, with the columns of data/paper_table1.csv",
    )
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file to write")
    parser.add_argument("--tex", type=Path, required=True, help="LaTeX document to write")
    return parser


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    results = []
    for spec, *paths in args.row:
        files = {path: read_json(path) for path in map(Path, paths)}
        if len(files) < len(paths):
            raise PipelineError(f"row {spec} names a metrics file twice")
        results.append((Row.parse(spec, args.datasets), files))
    table = tabulate(results, args.datasets, args.protocol)
    if args.comparisons:
        table = mark_significant(table, read_comparisons(args.comparisons).figures)
    if args.published:
        table = add_published(table, read_published(args.published, table.figures))
    write_checked_text(to_csv(table), args.csv)
    outputs = {args.tex: to_latex(table, args.study_name, args.study_note)}
    if args.markdown:
        outputs[args.markdown] = to_markdown(table)
    for path, content in outputs.items():
        with write_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    logger.info("%d rows of %d targets", len(table.lines), len(table.by_target()))


if __name__ == "__main__":
    run(main)
