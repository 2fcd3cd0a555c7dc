"""Compare the rows of a table with one row of their target, finetune by default: paired tests over clips and seeds."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import write_checked_text
from pipeline.results.comparisons import (
    SAMPLES,
    Evaluation,
    compare,
    corrected,
    mean_over_seeds,
    p_over_seeds,
    read_contributions,
)
from pipeline.results.table.differences import ComparedRow, comparisons_csv
from pipeline.results.table.names import METHODS
from pipeline.results.table.rows import Row, add_row_arguments
from pipeline.stages import at_least, run

logger = logging.getLogger(__name__)


def read_rows(specs: Sequence[Sequence[str]], datasets: Sequence[str], protocol: str) -> dict[Row, list[Evaluation]]:
    """Return the evaluations of each row, one per seed.

    Args:
        specs: per row its description and its files.

    Raises:
        PipelineError: A row is repeated or has no files, or a file belongs to another target.
    """
    rows: dict[Row, list[Evaluation]] = {}
    for spec, *paths in specs:
        row = Row.parse(spec, datasets)
        if row in rows:
            raise PipelineError(f"row {spec} is given twice")
        if not paths:
            raise PipelineError(f"row {spec} has no contributions file; give at least one")
        rows[row] = [read_contributions(Path(path), protocol) for path in paths]
        if (target := rows[row][0].test_set["target"]) != row.target:
            raise PipelineError(f"{paths[0]}: is of the target {target}, row {spec} is of another")
    return rows


def baseline_of(target: str, rows: Sequence[Row], method: str) -> Row | None:
    """Return the method's row without a label, with which the target's other rows are compared.

    Raises:
        PipelineError: There are several.
    """
    baselines = [row for row in rows if row.target == target and row.is_baseline(method)]
    if len(baselines) > 1:
        raise PipelineError(
            f"{target} has {len(baselines)} rows of {method} ({', '.join(map(str, baselines))}); "
            "give a label to all but the one that the others are compared with"
        )
    return baselines[0] if baselines else None


def compare_rows(
    rows: Mapping[Row, Sequence[Evaluation]], method: str, *, seed: int, samples: int
) -> list[ComparedRow]:
    """Compare each row with its target's row of a method; p is corrected over all rows.

    Targets without such a row are skipped.
    """
    means = {row: mean_over_seeds(evaluations) for row, evaluations in rows.items()}
    compared: list[ComparedRow] = []
    for target in dict.fromkeys(row.target for row in rows):
        baseline = baseline_of(target, list(rows), method)
        if baseline is None:
            logger.info("%s: no row of %s without a label, so nothing is compared", target, method)
            continue
        others = [row for row in rows if row.target == target and row != baseline]
        found = compare([means[row] for row in others], means[baseline], seed=seed, samples=samples)
        for row, figures in zip(others, found, strict=True):
            p_seeds = p_over_seeds(rows[row], rows[baseline])
            compared.append(
                ComparedRow(
                    row=row,
                    figures={name: replace(one, p_seeds=p_seeds[name]) for name, one in figures.items()},
                    seeds=len(rows[row]),
                    baseline_seeds=len(rows[baseline]),
                    n_audio=len(means[row].key),
                )
            )
    figures_of_rows = corrected([row.figures for row in compared])
    return [replace(row, figures=figures) for row, figures in zip(compared, figures_of_rows, strict=True)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_row_arguments(parser, "contributions.parquet")
    parser.add_argument(
        "--baseline",
        choices=METHODS,
        default="finetune",
        help="method whose row without a label the other rows are compared with (default: %(default)s)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the draws (default: %(default)s)")
    parser.add_argument(
        "--samples", type=at_least(1), default=SAMPLES, help="number of bootstrap draws (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)

    rows = read_rows(args.row, args.datasets, args.protocol)
    compared = compare_rows(rows, args.baseline, seed=args.seed, samples=args.samples)
    write_checked_text(comparisons_csv(compared, args.datasets, args.protocol), args.csv)
    logger.info("%d rows compared with %s, %d draws of the clips", len(compared), args.baseline, args.samples)


if __name__ == "__main__":
    run(main)
