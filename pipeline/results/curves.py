"""R@1 against the amount of training data: the points of a curve, their intervals, and differences between its lines.

A point is a run. Its amount comes from its pairs files, its figures from its contributions; both are means over its
seeds. Intervals and p-values come from the paired bootstrap of `pipeline.results.comparisons`.
"""

# F = figures, K = seeds of a run, S = bootstrap samples

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.pairs import read_facts
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import resampled, totals
from pipeline.evaluation.protocols import DIRECTIONS
from pipeline.files import read_checked_text
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

if TYPE_CHECKING:
    import pandas as pd

AXES = {
    "labeled_clips": "labeled clips",
    "labeled_captions": "captions of labeled clips",
    "unlabeled_hours": "hours of unlabeled audio",
}
"""The horizontal axes, and their labels."""
SHOWN = {"t2a_R1": DIRECTIONS["t2a"], "a2t_R1": DIRECTIONS["a2t"], "t2m_R1_50": f"{DIRECTIONS['t2m']}, IoU 0.5"}
"""The figures of a curve, as far as the protocol has them, and their labels."""


def shown_in(points: pd.DataFrame) -> dict[str, str]:
    """Return the figures that the points have, with their labels."""
    return {figure: label for figure, label in SHOWN.items() if figure in set(points["figure"])}


_POINT = ("line", "run", "figure", "value", "low", "high", "sd", "seeds")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "p", "p_holm", "significant")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run on a line of a curve."""

    line: str
    amount: float
    """Value on the axis, the mean over the seeds."""
    evaluation: Evaluation
    """Averaged over the seeds."""
    figures_KF: np.ndarray
    """Figures of each seed, in percent."""


def read_point(line: str, pairs: Sequence[Path], contributions: Sequence[Path], axis: str, protocol: str) -> Point:
    """Return the point of a run from its pairs files and contributions, one of each per seed."""
    of_seeds = [read_contributions(path, protocol) for path in contributions]
    amounts = {amount_of(read_facts(path), axis, path) for path in pairs}
    return Point(
        line=line,
        amount=float(np.mean(list(amounts))),  # the hours of a share differ slightly between seeds
        evaluation=mean_over_seeds(of_seeds),
        figures_KF=np.array([100 * one.contributions_NF.sum(axis=0) / totals(one.queries) for one in of_seeds]),
    )


def amount_of(facts: Mapping[str, Any], axis: str, path: Path) -> float:
    """Return the amount of training data on an axis, from the footer of the pairs file `path`."""
    name = "unlabeled_s" if axis == "unlabeled_hours" else axis
    if name not in facts:
        raise PipelineError(f"{path}: its footer has no {name}; make it again with pair_clips")
    return facts[name] / 3600 if axis == "unlabeled_hours" else facts[name]


def draw_points(
    runs: Sequence[tuple[str, Sequence[Path], Sequence[Path]]],
    axis: str,
    protocol: str,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
) -> pd.DataFrame:
    """Return one row per point and figure, in the order given.

    Args:
        runs: line, pairs files and contributions of each run, one of each file per seed.
        axis: a key of `AXES`.
        protocol: the protocol of the figures.
        seed: of the bootstrap.
        samples: number of bootstrap samples.

    Returns:
        The columns line, run, the axis, figure, value with its 95 % interval (low, high) in percent, sd over the seeds
        (NaN for one) and seeds. The columns difference, difference_low, difference_high, p, p_holm and significant
        compare with the first line's point at the same amount, or with its only point. They are corrected over all
        points of the curve, and NaN or "" if there is no such point.

    Raises:
        PipelineError: Seeds, files or test sets do not match, or two points of a line have the same amount.
    """
    import pandas as pd

    # Points that belong on one curve.
    points: list[Point] = []
    for line, pairs, contributions in runs:
        point = read_point(line, pairs, contributions, axis, protocol)
        if points:
            check_same_clips(point.evaluation, points[0].evaluation)
        for other in points:
            if (other.line, other.amount) == (line, point.amount):
                raise PipelineError(
                    f"line {line}: the runs {other.evaluation.run} and {point.evaluation.run} both have "
                    f"{point.amount:g} {AXES[axis]}; give each point of a line another amount"
                )
        points.append(point)

    # Figures with intervals, and differences from the first line.
    compared = _against_first_line(points, seed, samples)
    rows = []
    for index, point in enumerate(points):
        evaluation, seeds = point.evaluation, len(point.figures_KF)
        drawn_SF = resampled(evaluation.contributions_NF, evaluation.queries, seed, samples)
        low_F, high_F = 100 * np.percentile(drawn_SF, [2.5, 97.5], axis=0)
        for figure in (name for name in SHOWN if name in evaluation.figures):
            f = evaluation.figures.index(figure)
            row: dict[str, Any] = {"line": point.line, "run": evaluation.run, axis: point.amount, "figure": figure}
            row |= {"value": point.figures_KF[:, f].mean(), "low": low_F[f], "high": high_F[f]}
            row |= {"sd": point.figures_KF[:, f].std(ddof=1) if seeds > 1 else np.nan, "seeds": seeds}
            if index in compared:
                row |= _difference(compared[index][figure])
            rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=[*_POINT[:2], axis, *_POINT[2:], *_DIFFERENCE])
    table["significant"] = table["significant"].fillna("")
    return table


def _against_first_line(points: Sequence[Point], seed: int, samples: int) -> dict[int, dict[str, Comparison]]:
    """Return the comparisons of the other lines' points by their index, corrected over all of them."""
    first_line = [point for point in points if point.line == points[0].line]
    baselines = {point.amount: point.evaluation for point in first_line}
    only = first_line[0].evaluation if len(first_line) == 1 else None
    compared: dict[int, dict[str, Comparison]] = {}
    for index, point in enumerate(points):
        baseline = baselines.get(point.amount, only)
        if point.line != points[0].line and baseline is not None:
            (compared[index],) = compare([point.evaluation], baseline, seed=seed, samples=samples)
    return dict(zip(compared, corrected(list(compared.values())), strict=True))


def _difference(found: Comparison) -> dict[str, Any]:
    values = (found.difference, found.low, found.high, found.p, found.p_holm, "yes" if found.is_significant else "no")
    return dict(zip(_DIFFERENCE, values, strict=True))


def to_csv(table: pd.DataFrame) -> str:
    """Return the points as CSV, percentages with two decimals and p with four."""
    written = table.copy()
    for name in ("value", "low", "high", "sd", "difference", "difference_low", "difference_high"):
        written[name] = written[name].map(lambda value: "" if np.isnan(value) else f"{value + 0.0:.2f}")
    for name in ("p", "p_holm"):
        written[name] = written[name].map(lambda value: "" if np.isnan(value) else f"{value:.4f}")
    axis = table.columns[2]
    written[axis] = written[axis].map(lambda value: f"{value:.4g}" if axis == "unlabeled_hours" else f"{value:.0f}")
    return written.to_csv(index=False, lineterminator="\n")


def read_points(path: Path) -> tuple[pd.DataFrame, str]:
    """Return the rounded points that `to_csv` wrote, and their axis.

    Raises:
        PipelineError: The file is missing or was not written by draw_curves.
    """
    import pandas as pd

    text = io.StringIO(read_checked_text(path, "draw_curves"))
    try:
        table = pd.read_csv(text, dtype={name: str for name in ("line", "run", "significant")})
    except ValueError as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); make it with draw_curves") from error
    axis = next((name for name in AXES if name in table.columns), None)
    if axis is None or not {*_POINT, "significant"} <= set(table.columns):
        found = ", ".join(map(str, table.columns))
        raise PipelineError(f"{path}: has the columns {found}; give a file of draw_curves")
    table["significant"] = table["significant"].fillna("")
    return table, axis
