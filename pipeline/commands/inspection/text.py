"""Sections as text for a terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import printable


def to_json(value: Mapping[str, Any]) -> str:
    """One JSON object; null stands for numbers that are not finite, which JSON does not have."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(sections: Mapping[str, Any]) -> str:
    """The sections, each under a heading; empty ones are left out.

    A section is a mapping of names to values, `counts` by value, a table (a list or mapping of rows of one form), or
    rows that are shown one by one (`leaked`, `samples`).
    """
    lines = [f"{sections['kind']}  {printable(sections['path'])}"]
    for name, section in sections.items():
        if name in ("kind", "path") or not section:
            continue
        lines += ["", name.replace("_", " ")]
        if name == "counts":
            lines += _table(_shares(section), ["", "", "rows", "share"])
        elif name in ("leaked", "samples"):
            for number, row in enumerate(section):
                lines += [""] * bool(number) + _fields(row)
        elif isinstance(section, list):
            lines += _table([list(row.values()) for row in section], list(section[0]))
        elif all(isinstance(value, dict) for value in section.values()):
            columns = list(next(iter(section.values())))
            lines += _table([[row, *values.values()] for row, values in section.items()], ["", *columns])
        else:
            lines += _fields(section)
    return "\n".join(lines)


def _shares(counts: Mapping[str, Mapping[str, int]]) -> list[list[Any]]:
    rows = []
    for name, values in counts.items():
        total = sum(values.values())
        for number, (value, count) in enumerate(values.items()):
            rows.append(["" if number else name, value, count, f"{count / total:.1%}"])
    return rows


def _fields(values: Mapping[str, Any]) -> list[str]:
    """One line per field, or per item of a list; null is left out."""
    lines = []
    width = max(map(len, values), default=0)
    for name, value in values.items():
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            if item is not None:
                lines.append(f"  {'' if number else name:{width}}  {_cell(item)}")
    return lines


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> list[str]:
    """Aligned columns, numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    is_number = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    is_number = [right or header[column] == "share" for column, right in enumerate(is_number)]
    lines = []
    for row in cells:
        columns = zip(row, widths, is_number, strict=True)
        lines.append("  " + "  ".join(f"{text:{'>' if right else '<'}{width}}" for text, width, right in columns))
    return [line.rstrip() for line in lines]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if value is None:
        return "-"
    return printable(str(value))
