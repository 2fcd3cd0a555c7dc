"""Published figures next to a table's, the differences to them, and gains over finetune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.results.table.names import title
from pipeline.results.table.rows import Figures, Line, Published, Row, Table, number

GAINS = ("t2a_R1", "a2t_R1")
"""Figures whose relative gain over finetune is shown, as in the paper's abstract."""
GAINS_NOTE = "Relative gain in R@1 of composed over finetune, in percent."
COLUMNS = ("published", "ours")
"""Of the table of gains, in each direction."""
NONE_PUBLISHED = "not published"


def read_published(path: Path) -> dict[Row, Figures]:
    """Published figures by row, from a CSV in the columns of `data/paper_table1.csv`.

    The training data of a row are named, in any order of the columns: ("audioset=A", "clotho=A+T").
    """
    try:
        published = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); name another file in study.published") from error
    if missing := [name for name in ("target", "method", *FIGURES) if name not in published]:
        raise PipelineError(f"{path}: has no column {', '.join(missing)}; data/paper_table1.csv shows what is expected")
    datasets = [str(name) for name in published if name not in ("target", "method", *FIGURES)]
    found: dict[Row, Figures] = {}
    for number_of_line, line in enumerate(published.to_dict("records"), start=2):
        row = _with_named_training(line["target"], line["method"], {name: line[name] for name in datasets})
        try:
            figures = {name: float(line[name]) for name in FIGURES}
        except ValueError:
            figures = {"": math.nan}
        if not all(map(math.isfinite, figures.values())):
            raise PipelineError(f"{path} line {number_of_line}: a figure is no number")
        if row in found:
            raise PipelineError(f"{path} line {number_of_line}: repeats the row {row}")
        found[row] = figures
    return found


def _with_named_training(target: Any, method: Any, training: Mapping[str, str]) -> Row:
    named = tuple(sorted(f"{name}={cell}" for name, cell in training.items() if cell != "-"))
    return Row(target=target, method=method, training=named)


def add_published(table: Table, published: Mapping[Row, Figures]) -> Table:
    """The table with the published figures of the same target, method and training data.

    A row with a label has no published counterpart. Differences and gains are of figures as they are printed.
    """
    baselines = {line.row.target: _printed(line) for line in table.lines if line.row.is_baseline}
    published_baselines = {row.target: figures for row, figures in published.items() if row.method == "finetune"}
    lines = []
    for line in table.lines:
        row, ours = line.row, _printed(line)
        training = dict(zip(table.datasets, row.training, strict=True))
        counterpart = _with_named_training(row.target, row.method, training)
        theirs = {} if row.label else published.get(counterpart, {})
        gained = row.method == "composed" and not row.label
        beside = Published(
            figures=theirs,
            differences={name: ours[name] - theirs[name] for name in theirs},
            gains=_gains(ours, baselines.get(row.target, {})) if gained else {},
            published_gains=_gains(theirs, published_baselines.get(row.target, {})) if gained else {},
        )
        lines.append(replace(line, published=beside))
    return replace(table, lines=lines)


def _printed(line: Line) -> Figures:
    return {name: float(number(line.mean[name])) for name in FIGURES}


def _gains(figures: Figures, baseline: Figures) -> Figures:
    """By how many percent the figures are above the baseline's, where both are known."""
    return {
        name: 100 * (figures[name] / baseline[name] - 1) for name in GAINS if name in figures and baseline.get(name)
    }


def gain_rows(table: Table) -> list[tuple[str, list[str]]]:
    """Target and cells of the rows with a gain: training data, then published and ours per direction, "-" if none."""
    return [
        (line.row.target, [*line.row.training, *_gain_cells(line.published)])
        for line in table.lines
        if line.published and GAINS[0] in line.published.gains
    ]


def _gain_cells(published: Published) -> list[str]:
    both = (published.published_gains, published.gains)
    return [format_gain(gains[name]) if name in gains else "-" for name in GAINS for gains in both]


def gains_note(table: Table) -> str:
    """What the table of gains shows, with the largest published gain of each target, in plain text."""
    largest = {target: max(gains) for target, lines in table.by_target().items() if (gains := _published_gains(lines))}
    if not largest:
        return GAINS_NOTE
    each = ", ".join(f"{title(target)} {format_gain(value)} %" for target, value in largest.items())
    return f"{GAINS_NOTE} The largest published from text to audio: {each}."


def _published_gains(lines: Sequence[Line]) -> list[float]:
    of_lines = [line.published.published_gains for line in lines if line.published]
    return [gains[GAINS[0]] for gains in of_lines if GAINS[0] in gains]


def format_gain(value: float) -> str:
    """A relative gain, in percent, as every output writes it."""
    return f"{value:.1f}"


def format_difference(value: float) -> str:
    """A difference in percentage points with its sign."""
    return f"{value + 0.0:+.2f}" if abs(value) >= 0.005 else "0.00"
