"""Compare the rows of a table with their target's finetune row: paired bootstrap over clips, interval and p-value."""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import write_atomically
from pipeline.results.comparisons import SAMPLES, Evaluation, compare, corrected, mean_over_seeds, read_contributions
from pipeline.results.table.rows import Row, add_row_arguments, number
from pipeline.stages import run

logger = logging.getLogger(__name__)

BASELINE = "finetune"
"""The method whose row without a label the others are compared with: fine-tuned on the target's own pairs."""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_row_arguments(parser, "contributions.parquet")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="draws of the clips (default: %(default)s)")
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    if args.samples < 1:
        parser.error(f"--samples must be at least 1, not {args.samples}")

    rows: dict[Row, tuple[Evaluation, int]] = {}
    for spec, *paths in args.row:
        row = Row.parse(spec, args.datasets)
        if row in rows:
            raise PipelineError(f"row {spec} is given twice")
        if not paths:
            raise PipelineError(f"row {spec} has no contributions file; give at least one")
        evaluation = mean_over_seeds([read_contributions(Path(path), args.protocol) for path in paths])
        if evaluation.test_set["target"] != row.target:
            raise PipelineError(f"{paths[0]}: is of the target {evaluation.test_set['target']}, but row {spec} is not")
        rows[row] = evaluation, len(paths)

    compared, comparisons = [], []
    for target in dict.fromkeys(row.target for row in rows):
        of_target = [row for row in rows if row.target == target]
        baselines = [row for row in of_target if row.method == BASELINE and not row.label]
        if len(baselines) > 1:
            raise PipelineError(
                f"{target} has {len(baselines)} rows of {BASELINE} ({', '.join(map(str, baselines))}); "
                "which one the others are compared with must be clear, so give a label to all but that one"
            )
        if not baselines:
            logger.info("%s: no row of %s, nothing to compare with", target, BASELINE)
            continue
        others = [row for row in of_target if row not in baselines]
        compared += [(row, rows[baselines[0]][1]) for row in others]
        evaluations = [rows[row][0] for row in others]
        comparisons += compare(evaluations, rows[baselines[0]][0], seed=args.seed, samples=args.samples)

    with write_atomically(args.csv) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "target",
                "method",
                *args.datasets,
                "label",
                "figure",
                "difference",
                "low",
                "high",
                "p",
                "p_holm",
                "significant",
            ]
            + ["seeds", "baseline_seeds", "n_audio", "protocol"]
        )
        for (row, baseline_seeds), figures in zip(compared, corrected(comparisons), strict=True):
            evaluation, seeds = rows[row]
            facts = [seeds, baseline_seeds, len(evaluation.key), args.protocol]
            for name, found in figures.items():
                percent = [number(value + 0.0) for value in (found.difference, found.low, found.high)]
                writer.writerow(
                    [
                        row.target,
                        row.method,
                        *row.training,
                        row.label,
                        name,
                        *percent,
                        f"{found.p:.4f}",
                        f"{found.p_holm:.4f}",
                    ]
                    + ["yes" if found.is_significant else "no", *facts]
                )
    logger.info("%d rows compared with %s, %d draws of the clips", len(compared), BASELINE, args.samples)


if __name__ == "__main__":
    run(main)
