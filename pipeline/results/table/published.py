"""Published figures next to a table's, the differences from them, and gains over finetune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_FIGURES
from pipeline.results.table.names import title
from pipeline.results.table.rows import Figures, Line, Published, Row, Table, number

GAINS = ("t2a_R1", "a2t_R1")
"""Figures with a relative gain over finetune, as in the paper's abstract."""
GAINS_NOTE = "Relative gain in R@1 of composed over finetune, in percent."
COLUMNS = ("published", "ours")
"""Columns of the table of gains, per direction."""
NONE_PUBLISHED = "not published"


def read_published(path: Path, names: Sequence[str]) -> dict[Row, Figures]:
    """Return the published figures `names` by row, from a CSV with columns as in `data/paper_table1.csv`.

    The training data of a row carry their names, so the order of the columns is free: ("audioset=A", "clotho=A+T").
    """
    import pandas as pd

    try:
        published = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); name another file in study.published") from error
    if missing := [name for name in ("target", "method", *names) if name not in published]:
        raise PipelineError(f"{path}: has no column {', '.join(missing)}; see data/paper_table1.csv for an example")
    datasets = [str(name) for name in published if name not in ("target", "method", *ALL_FIGURES)]
    found: dict[Row, Figures] = {}
    for number_of_line, line in enumerate(published.to_dict("records"), start=2):
        row = _with_named_training(line["target"], line["method"], {name: line[name] for name in datasets})
        try:
            figures = {name: float(line[name]) for name in names}
        except ValueError:
            figures = {"": math.nan}
        if not all(map(math.isfinite, figures.values())):
            raise PipelineError(f"{path} line {number_of_line}: a figure is no number; correct it")
        if row in found:
            raise PipelineError(f"{path} line {number_of_line}: repeats the row {row}; remove one of them")
        found[row] = figures
    return found


def _with_named_training(target: Any, method: Any, training: Mapping[str, str]) -> Row:
    named = tuple(sorted(f"{name}={cell}" for name, cell in training.items() if cell != "-"))
    return Row(target=target, method=method, training=named)


def add_published(table: Table, published: Mapping[Row, Figures]) -> Table:
    """Return the table with the published figures of the same target, method and training data.

    A row with a label has no published counterpart. Differences and gains are computed from rounded figures.
    """
    baselines = {line.row.target: _printed(line) for line in table.lines if line.row.is_baseline()}
    published_baselines = {row.target: figures for row, figures in published.items() if row.method == "finetune"}
    lines = []
    for line in table.lines:
        row, ours = line.row, _printed(line)
        training = dict(zip(table.datasets, row.training, strict=True))
        counterpart = _with_named_training(row.target, row.method, training)
        theirs = {} if row.label else published.get(counterpart, {})
        gained = row.method == "composed" and not row.label
        counterpart_figures = Published(
            figures=theirs,
            differences={name: ours[name] - theirs[name] for name in theirs},
            gains=_gains(ours, baselines.get(row.target, {})) if gained else {},
            published_gains=_gains(theirs, published_baselines.get(row.target, {})) if gained else {},
        )
        lines.append(replace(line, published=counterpart_figures))
    return replace(table, lines=lines)


def _printed(line: Line) -> Figures:
    return {name: float(number(value)) for name, value in line.mean.items()}


def _gains(figures: Figures, baseline: Figures) -> Figures:
    """Return the relative gains over the baseline in percent, if both figures are known."""
    return {
        name: 100 * (figures[name] / baseline[name] - 1) for name in GAINS if name in figures and baseline.get(name)
    }


def gain_rows(table: Table) -> list[tuple[str, list[str]]]:
    """Return target and cells of the rows with a gain: training data, then published and ours per direction or "-"."""
    return [
        (line.row.target, [*line.row.training, *_gain_cells(line.published)])
        for line in table.lines
        if line.published and GAINS[0] in line.published.gains
    ]


def _gain_cells(published: Published) -> list[str]:
    both = (published.published_gains, published.gains)
    return [format_gain(gains[name]) if name in gains else "-" for name in GAINS for gains in both]


def gains_note(table: Table) -> str:
    """Return the note on the table of gains, with the largest published gain per target, in plain text."""
    largest = {target: max(gains) for target, lines in table.by_target().items() if (gains := _published_gains(lines))}
    if not largest:
        return GAINS_NOTE
    each = ", ".join(f"{title(target)} {format_gain(value)} %" for target, value in largest.items())
    return f"{GAINS_NOTE} The largest published from text to audio: {each}."


def _published_gains(lines: Sequence[Line]) -> list[float]:
    of_lines = [line.published.published_gains for line in lines if line.published]
    return [gains[GAINS[0]] for gains in of_lines if GAINS[0] in gains]


def format_gain(value: float) -> str:
    """Return a relative gain in percent, as written in every output."""
    return f"{value:.1f}"


def format_difference(value: float) -> str:
    """Return a difference in percentage points with its sign."""
    return f"{value + 0.0:+.2f}" if abs(value) >= 0.005 else "0.00"
