"""The CSV of a table's differences from finetune: compare writes it, tabulate and the page read it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import read_checked_text
from pipeline.results.comparisons import Comparison
from pipeline.results.table.rows import Row, number

NUMBERS = ("difference", "low", "high", "p", "p_holm")


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A row compared with the baseline of its target."""

    row: Row
    figures: dict[str, Comparison]
    seeds: int
    baseline_seeds: int
    n_audio: int


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """The content of a CSV of differences."""

    datasets: list[str]
    """The columns of training data."""
    figures: dict[Row, dict[str, Comparison]]
    """Without the baseline itself, and without rows of a target that has no baseline."""


def comparisons_csv(compared: Sequence[ComparedRow], datasets: Sequence[str], protocol: str) -> str:
    """Return one line per row and figure, percentage points with two decimals and p with four; empty where NaN."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["target", "method", *datasets, "label", "figure", *NUMBERS, "significant"]
        + ["p_seeds", "p_seeds_holm", "seeds", "baseline_seeds", "n_audio", "protocol"])  # fmt: skip
    for line in compared:
        row = [line.row.target, line.row.method, *line.row.training, line.row.label]
        for name, found in line.figures.items():
            points = [number(value + 0.0) for value in (found.difference, found.low, found.high)]
            p_values = [f"{value:.4f}" for value in (found.p, found.p_holm)]
            significant = "yes" if found.is_significant else "no"
            over_seeds = ["" if math.isnan(value) else f"{value:.4f}" for value in (found.p_seeds, found.p_seeds_holm)]
            sizes = [line.seeds, line.baseline_seeds, line.n_audio]
            writer.writerow([*row, name, *points, *p_values, significant, *over_seeds, *sizes, protocol])
    return text.getvalue()


def read_comparisons(path: Path) -> Comparisons:
    """Return the comparisons that `comparisons_csv` wrote; PipelineError if the file is missing or damaged."""
    needed = ("target", "method", "label", "figure", *NUMBERS)
    text = read_checked_text(path, "compare")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names, lines = list(reader.fieldnames or []), list(reader)
    except csv.Error as error:
        raise PipelineError(f"{path}: is not CSV ({error}); make it again with compare") from error
    if missing := [name for name in needed if name not in names]:
        raise PipelineError(f"{path}: has no column {', '.join(missing)}; make it with the stage compare")
    datasets = names[names.index("method") + 1 : names.index("label")]
    found: dict[Row, dict[str, Comparison]] = {}
    for number_of_line, line in enumerate(lines, start=2):
        training = tuple(line[name] for name in datasets)
        row = Row(target=line["target"], method=line["method"], training=training, label=line["label"])
        try:
            values = {name: float(line[name]) for name in NUMBERS}
        except (TypeError, ValueError):
            values = {"difference": math.nan}
        if not all(map(math.isfinite, values.values())):
            raise PipelineError(f"{path} line {number_of_line}: a number is missing; make the file again with compare")
        found.setdefault(row, {})[line["figure"]] = Comparison(**values)
    return Comparisons(datasets=datasets, figures=found)
