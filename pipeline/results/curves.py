"""R@1 against the amount of training data: the points of a curve, their intervals, and what differs between its lines.

A point is a run: its place comes from its pairs files, its figures from its contributions, both means over its seeds.
Intervals and p-values are of the paired bootstrap of `pipeline.results.comparisons`.
"""

# F = figures, K = seeds of a run, S = bootstrap samples

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.pairs import read_facts
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, resampled
from pipeline.results.comparisons import (
    SAMPLES,
    Comparison,
    Evaluation,
    check_same_clips,
    compare,
    corrected,
    mean_over_seeds,
    read_contributions,
)

AXES = {
    "labeled_clips": "labeled clips",
    "labeled_captions": "captions of labeled clips",
    "unlabeled_hours": "hours of unlabeled audio",
}
"""What a curve is drawn against, and how it is written."""
SHOWN = {"t2a_R1": "text \N{RIGHTWARDS ARROW} audio", "a2t_R1": "audio \N{RIGHTWARDS ARROW} text"}
"""The figures of a curve, and how they are written."""

_POINT = ("line", "run", "figure", "value", "low", "high", "sd", "seeds")


def place(facts: Mapping[str, Any], axis: str, path: Path) -> float:
    """Where a run stands on an axis, from the facts of its pairs file."""
    name = "unlabeled_s" if axis == "unlabeled_hours" else axis
    if name not in facts:
        raise PipelineError(f"{path}: its footer has no {name}; make it again with pair_clips")
    return facts[name] / 3600 if axis == "unlabeled_hours" else facts[name]


def draw_points(
    points: Sequence[tuple[str, Sequence[Path], Sequence[Path]]],
    axis: str,
    protocol: str,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
) -> pd.DataFrame:
    """One row a point and figure, in the order given.

    Args:
        points: for each the line it is on, and the pairs files and contributions of its run, one of each a seed.
        axis: a key of `AXES`.
        protocol: whose figures are taken.
        seed: of the draws of the bootstrap.
        samples: number of them.

    Returns:
        line, run, the axis, figure, value and its 95 % interval (low, high) in percent, sd over the seeds (NaN for
        one), seeds; and difference, difference_low, difference_high, p, p_holm and significant against the first
        line's point at the same place, or its only point, corrected over all points of the curve; NaN and "" where
        there is none.

    Raises:
        PipelineError: seeds, files or test sets that do not belong together, or two points of a line at one place.
    """
    runs: list[tuple[str, float, Evaluation, np.ndarray]] = []
    for line, pairs, contributions in points:
        places = {place(read_facts(path), axis, path) for path in pairs}
        of_seeds = [read_contributions(path, protocol) for path in contributions]
        evaluation = mean_over_seeds(of_seeds)
        if runs:
            check_same_clips(evaluation, runs[0][2])
        at = float(np.mean(list(places)))  # the hours of a share differ a little from seed to seed
        if other := [run.run for name, x, run, _ in runs if (name, x) == (line, at)]:
            raise PipelineError(
                f"line {line}: the runs {other[0]} and {evaluation.run} both stand at {at:g} {AXES[axis]}; "
                "give each point of a line another amount"
            )
        figures_KF = np.array([_figures(one.contributions_NF, one.captions_N) for one in of_seeds])
        runs.append((line, at, evaluation, figures_KF))

    first_line = [(at, evaluation) for line, at, evaluation, _ in runs if line == runs[0][0]]
    baselines = dict(first_line)
    only = first_line[0][1] if len(first_line) == 1 else None
    found: list[dict[str, Comparison]] = []
    compared: dict[int, int] = {}
    for index, (line, at, evaluation, _) in enumerate(runs):
        baseline = baselines.get(at, only)
        if line != runs[0][0] and baseline is not None:
            compared[index] = len(found)
            found += compare([evaluation], baseline, seed=seed, samples=samples)
    found = corrected(found)

    rows = []
    for index, (line, at, evaluation, seeds_KF) in enumerate(runs):
        drawn_SF = resampled(evaluation.contributions_NF, evaluation.captions_N, seed, samples)
        low_F, high_F = 100 * np.percentile(drawn_SF, [2.5, 97.5], axis=0)
        for figure in SHOWN:
            f = FIGURES.index(figure)
            row: dict[str, Any] = {
                "line": line,
                "run": evaluation.run,
                axis: at,
                "figure": figure,
                "value": seeds_KF[:, f].mean(),
                "low": low_F[f],
                "high": high_F[f],
                "sd": seeds_KF[:, f].std(ddof=1) if len(seeds_KF) > 1 else np.nan,
                "seeds": len(seeds_KF),
            }
            if index in compared:
                against = found[compared[index]][figure]
                row |= {
                    "difference": against.difference,
                    "difference_low": against.low,
                    "difference_high": against.high,
                    "p": against.p,
                    "p_holm": against.p_holm,
                    "significant": "yes" if against.is_significant else "no",
                }
            rows.append(row)
    names = ["difference", "difference_low", "difference_high", "p", "p_holm", "significant"]
    table = pd.DataFrame(rows).reindex(columns=[*_POINT[:2], axis, *_POINT[2:], *names])
    table["significant"] = table["significant"].fillna("")
    return table


def _figures(contributions_NF: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
    """The figures (F,) in percent."""
    half = len(FIGURES) // 2
    queries_F = np.repeat([captions_N.sum(), len(captions_N)], half)
    return 100 * contributions_NF.sum(axis=0) / queries_F


def to_csv(table: pd.DataFrame) -> str:
    """The points as CSV: percentages to two decimals, p to four."""
    written = table.copy()
    for name in ("value", "low", "high", "sd", "difference", "difference_low", "difference_high"):
        written[name] = written[name].map(lambda value: "" if np.isnan(value) else f"{value + 0.0:.2f}")
    for name in ("p", "p_holm"):
        written[name] = written[name].map(lambda value: "" if np.isnan(value) else f"{value:.4f}")
    axis = table.columns[2]
    written[axis] = written[axis].map(lambda value: f"{value:.4g}" if axis == "unlabeled_hours" else f"{value:.0f}")
    return written.to_csv(index=False, lineterminator="\n")


def read_points(path: Path) -> tuple[pd.DataFrame, str]:
    """The points that `to_csv` wrote, as `draw_points` gave them but for the digits, and their axis.

    Raises:
        PipelineError: no such file, or another one.
    """
    try:
        table = pd.read_csv(path, dtype={name: str for name in ("line", "run", "significant")})
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); make it with draw_curves") from error
    axis = next((name for name in AXES if name in table.columns), None)
    if axis is None or not {*_POINT, "significant"} <= set(table.columns):
        found = ", ".join(map(str, table.columns))
        raise PipelineError(f"{path}: its columns are {found}; a file of draw_curves was expected")
    table["significant"] = table["significant"].fillna("")
    return table, axis
