"""The table as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.evaluation.metrics import PROTOCOLS
from pipeline.evaluation.protocols import direction_of, measure_of
from pipeline.results.comparisons import SIGNIFICANCE_NOTE
from pipeline.results.table.names import PROTOCOL_NOTES, title
from pipeline.results.table.published import COLUMNS, NONE_PUBLISHED, format_difference, gain_rows, gains_note
from pipeline.results.table.rows import Line, Table, number


def to_markdown(table: Table) -> str:
    """Return the figures of the CSV, with standard deviations if there are several seeds.

    An asterisk marks a significant difference from finetune.
    """
    datasets = [title(name) for name in table.datasets]
    head = ["target", "method", *datasets, *map(_heading, table.figures)]
    lines = [head, ["---"] * (2 + len(datasets)) + ["---:"] * len(table.figures)]
    for line in table.lines:
        lines.append(_cells(line, table.figures))
        lines += _published_cells(line, table.figures)
    text = _join(lines)
    if table.has_marks:
        text += f"\n\\* {SIGNIFICANCE_NOTE}\n"
    if table.protocol not in PROTOCOLS:  # figures of another kind than those of the paper's table
        text += f"\nProtocol `{table.protocol}`: {PROTOCOL_NOTES[table.protocol]}\n"
        text += "".join(f"\n{title(target)}: {found[0].test_set.note}\n" for target, found in table.by_target().items())
    if gains := gain_rows(table):
        head = ["target", *datasets, *(f"{way} {column}" for way in ("t2a", "a2t") for column in COLUMNS)]
        rule = ["---"] * (1 + len(datasets)) + ["---:"] * 4
        text += f"\n{gains_note(table)}\n\n{_join([head, rule, *([title(target), *cells] for target, cells in gains)])}"
    return text


def _heading(figure: str) -> str:
    """Return the heading of a column: `t2a R1` as in the CSV, or `t2m R1@0.5`."""
    name = figure.replace("_", " ")
    return name if name.count(" ") == 1 else f"{direction_of(figure)} {measure_of(figure)}"


def _cells(line: Line, figures: Sequence[str]) -> list[str]:
    row = line.row
    label = f" ({row.label})" if row.label else ""
    cells = [title(row.target), row.method + label, *row.training]
    for name in figures:
        spread = "" if math.isnan(line.sd[name]) else f" ± {number(line.sd[name])}"
        mark = "\\*" if name in line.significant else ""
        cells.append(number(line.mean[name]) + mark + spread)
    return [cell.replace("|", "\\|") for cell in cells]


def _published_cells(line: Line, figures: Sequence[str]) -> list[list[str]]:
    """Return the published figures and the differences from them, in italics below a line."""
    found, nothing = line.published, [""] * len(line.row.training)
    if found is None:
        return []
    if not found.figures:
        return [["", f"*{NONE_PUBLISHED}*", *nothing, *([""] * len(figures))]]
    return [
        ["", "*published*", *nothing, *(f"*{number(found.figures[name])}*" for name in figures)],
        ["", "*difference*", *nothing, *(f"*{format_difference(found.differences[name])}*" for name in figures)],
    ]


def _join(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
