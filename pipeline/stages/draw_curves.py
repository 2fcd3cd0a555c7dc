"""Draw R@1 against the amount of training data, with intervals and significant differences, as CSV and SVG."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_PROTOCOLS
from pipeline.files import write_atomically, write_checked_text
from pipeline.results.comparisons import SAMPLES
from pipeline.results.curves import AXES, draw_points, shown_in, to_csv
from pipeline.results.plots import as_file, data_curves
from pipeline.stages import at_least, run

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--point", nargs="+", action="append", required=True, metavar=("LINE", "FILE"),
        help="name of the line, then the pairs file and contributions.parquet of a run for every seed; once per run",
    )  # fmt: skip
    parser.add_argument("--against", choices=AXES, required=True, help="the horizontal axis")
    parser.add_argument("--protocol", choices=ALL_PROTOCOLS, required=True)
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the draws (default: %(default)s)")
    parser.add_argument(
        "--samples", type=at_least(1), default=SAMPLES, help="number of bootstrap draws (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--svg", type=Path, required=True, help="plot to write")
    args = parser.parse_args(argv)

    points = []
    for line, *files in args.point:
        if not files or len(files) % 2:
            raise PipelineError(f"line {line}: {len(files)} files; give a pairs file and a contributions file per seed")
        points.append((line, [Path(path) for path in files[::2]], [Path(path) for path in files[1::2]]))
    table = draw_points(points, args.against, args.protocol, seed=args.seed, samples=args.samples)
    svg = as_file(data_curves(table, args.against, AXES, shown_in(table)))
    write_checked_text(to_csv(table), args.csv)
    with write_atomically(args.svg) as temporary:
        temporary.write_text(svg, encoding="utf-8")
    logger.info("%d points on %d lines", len(points), table["line"].nunique())


if __name__ == "__main__":
    run(main)
