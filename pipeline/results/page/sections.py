"""Tables and plots of the page, from the CSV files of tabulate, compare and draw_curves."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_FIGURES, DIRECTIONS, direction_of, measure_of
from pipeline.files import read_checked_text
from pipeline.results import plots
from pipeline.results.comparisons import Comparison
from pipeline.results.curves import AXES, read_points, shown_in
from pipeline.results.page.contents import Evaluation, recall_at
from pipeline.results.table.differences import read_comparisons

DEPTH = 50
"""Of the recall curves."""
RECALLS = {name: DIRECTIONS[name] for name in ("t2a", "a2t")}
"""Directions with a recall curve."""
DIFFERENCES = {
    name: f"{DIRECTIONS[direction_of(name)]} {measure_of(name)}"
    for name in ("t2a_mAP10", "a2t_mAP10", "t2a_mAP16", "t2m_mAP")
}
"""Figures whose differences are drawn, as far as the protocol has them."""
COUNTS = {"n_text": "captions", "n_audio": "clips", "n_queries": "queries"}
"""Columns of a table that have another heading on the page."""
KINDS = {
    "published_gain_": "published gain, %",
    "gain_": "gain over finetune, %",
    "published_": "published",
    "difference_": "less published",
    "": "",
}
"""Prefixes of columns of figures, and how a heading writes them."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: neighbours of one group share a heading above theirs."""

    group: str
    name: str
    is_number: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    is_best: bool
    """Whether it is the highest of a target."""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table as page.html shows it."""

    name: str
    columns: list[Column]
    rows: list[list[Cell]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings above the columns, each with the number of its columns."""
        return [
            (group, len(list(found))) for group, found in itertools.groupby(column.group for column in self.columns)
        ]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot with the words of its caption."""

    name: str
    subject: str
    svg: str


def read_table(path: Path) -> PageTable:
    """A table's CSV as the page shows it: deviations next to their means, each target's best figures marked.

    The protocol is left out: the page's caption names it.
    """
    import pandas as pd

    text = io.StringIO(read_checked_text(path, "tabulate"))
    try:
        table = pd.read_csv(text, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); make it with tabulate") from error
    if "target" not in table:
        raise PipelineError(f"{path}: has no column target; make it with tabulate")
    figures = table[[name for name in table if name in ALL_FIGURES]].apply(pd.to_numeric, errors="coerce")
    is_best = figures == figures.groupby(table["target"]).transform("max")
    names = [str(name) for name in table if name != "protocol" and not str(name).endswith("_sd")]
    rows = []
    for line, best in zip(table.to_dict("records"), is_best.to_dict("records"), strict=True):
        texts = {name: " ± ".join(filter(None, [line[name], line.get(f"{name}_sd")])) for name in names}
        rows.append([Cell(text=texts[name], is_best=best.get(name, False)) for name in names])
    return PageTable(name=path.stem, columns=[column(name) for name in names], rows=rows)


def column(name: str) -> Column:
    """The heading of a column of a table's CSV: `published_t2a_R1` is R@1 below `published, text to audio`."""
    for prefix, kind in KINDS.items():
        figure = name.removeprefix(prefix)
        if name.startswith(prefix) and figure in ALL_FIGURES:
            group = ", ".join(filter(None, [DIRECTIONS[direction_of(figure)], kind]))
            return Column(group=group, name=measure_of(figure), is_number=True)
    return Column(group="", name=COUNTS.get(name, name), is_number=name in (*COUNTS, "seeds"))


def difference_plots(path: Path) -> list[Plot]:
    """The differences from finetune of a table's rows, one plot per target."""
    compared = read_comparisons(path)
    targets: dict[str, dict[str, dict[str, Comparison]]] = {}
    for row, figures in compared.figures.items():
        used = [f"{name} {cell}" for name, cell in zip(compared.datasets, row.training, strict=True) if cell != "-"]
        method = f"{row.method}: {row.label}" if row.label else row.method
        targets.setdefault(row.target, {})["\n".join(filter(None, [method, ", ".join(used)]))] = figures
    known = {name for figures in compared.figures.values() for name in figures}
    drawn = {name: title for name, title in DIFFERENCES.items() if name in known}
    return [
        Plot(name=path.stem, subject=target, svg=plots.differences(rows, drawn)) for target, rows in targets.items()
    ]


def curve_plot(path: Path) -> Plot:
    """R@1 against the amount of training data."""
    points, axis = read_points(path)
    return Plot(name=path.stem, subject=AXES[axis], svg=plots.data_curves(points, axis, AXES, shown_in(points)))


def recall_plots(targets: Mapping[str, Sequence[Evaluation]], protocol: str, colours: Mapping[str, str]) -> list[Plot]:
    """A pair of recall curves per target."""
    found = []
    for target, group in targets.items():
        recalls = {title: recall_at(group, name, protocol, DEPTH) for name, title in RECALLS.items()}
        found.append(Plot(name="recall", subject=target, svg=plots.recall_curves(recalls, colours)))
    return found
