"""The table as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.results.table.published import GAINS, format_gain
from pipeline.results.table.rows import Line, Table, number


def to_csv(table: Table) -> str:
    """Return the table as CSV, figures with two decimals; Table 1 begins with the columns of `data/paper_table1.csv`.

    If a row has a label, a column `label` follows the method. If a row has several seeds, standard deviations follow as
    FIGURE_sd. Published figures, differences and gains come last. A cell without a value is empty.
    """
    import pandas as pd

    has_labels = any(line.row.label for line in table.lines)
    lines = []
    for line in table.lines:
        row, test_set = line.row, line.test_set
        cells: dict[str, str | int] = {"target": row.target, "method": row.method}
        if has_labels:
            cells["label"] = row.label
        cells |= zip(table.datasets, row.training, strict=True)
        cells |= {name: number(line.mean[name]) for name in table.figures}
        cells |= {"n_text": test_set.n_text, "n_audio": test_set.n_audio}
        cells |= {} if test_set.n_queries is None else {"n_queries": test_set.n_queries}
        cells |= {"protocol": table.protocol, "seeds": line.seeds}
        if table.has_deviations:
            cells |= {f"{name}_sd": _or_empty(line.sd, name) for name in table.figures}
        if table.has_published:
            cells |= _published_cells(line, table.figures)
        lines.append(cells)
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _published_cells(line: Line, names: Sequence[str]) -> dict[str, str]:
    found = line.published
    assert found is not None, "either all lines of a table have it, or none"
    cells = {f"published_{name}": _or_empty(found.figures, name) for name in names}
    cells |= {f"difference_{name}": _or_empty(found.differences, name) for name in names}
    for name in (name for name in GAINS if name in names):
        for column, gains in (("gain", found.gains), ("published_gain", found.published_gains)):
            cells[f"{column}_{name}"] = format_gain(gains[name]) if name in gains else ""
    return cells


def _or_empty(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(name, math.nan)
    return "" if math.isnan(value) else number(value)
