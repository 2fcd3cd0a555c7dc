"""Plots as SVG in the text colour of the surrounding page, readable on light and dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.results.comparisons import Comparison

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

INK = "#010203"
"""Placeholder of the page's text colour, replaced in the SVG, because matplotlib does not support `currentColor`."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999999", "#b15928")
"""Okabe and Ito's palette for the colour-blind without black and yellow, and two more colours."""
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.size": 10,
    "text.parse_math": False,  # names and labels are plain text
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "pipeline",  # the same plot gives the same bytes
}
MOST_POINTS = 400
"""Points per line of `training_curves`; in a longer log each point is the mean of neighbouring steps."""
_OWN_THEME = (
    "svg { color: #1b1f24; background: #fff } "
    "@media (prefers-color-scheme: dark) { svg { color: #e6e9ed; background: #14171b } }"
)


def colours_of(runs: Iterable[str]) -> dict[str, str]:
    """Return one colour per run, the same in every plot; colours repeat if there are more runs than colours."""
    return dict(zip(dict.fromkeys(runs), itertools.cycle(COLOURS), strict=False))


def recall_curves(recalls: Mapping[str, pd.DataFrame], colours: Mapping[str, str]) -> str:
    """Plot recall against k, one panel per direction (title -> k x runs, in percent)."""
    with _figure(9.5, 3.6) as figure:
        panels = figure.subplots(1, len(recalls), sharey=True, squeeze=False)[0]
        for panel, (title, recall) in zip(panels, recalls.items(), strict=True):
            for run in recall.columns.astype(str):
                panel.plot(recall.index, recall[run], color=colours[run], label=run)
            panel.set(title=title, xlabel="k", xscale="log", xlim=(1, recall.index[-1]), ylim=(0, 100))
            ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= recall.index[-1]]
            panel.set_xticks(ticks, labels=[str(k) for k in ticks])
            panel.minorticks_off()
        panels[0].set_ylabel("recall@k in percent")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        return _svg(figure)


def differences(compared: Mapping[str, Mapping[str, Comparison]], figures: Mapping[str, str]) -> str:
    """Plot differences from finetune with their 95 % intervals (row -> figure -> comparison), one panel per figure.

    A filled point is significant after the correction for all rows.
    """
    places = range(len(compared), 0, -1)
    with _figure(9.5, 1.2 + 0.42 * len(compared)) as drawn:
        panels = drawn.subplots(1, len(figures), sharey=True, squeeze=False)[0]
        for panel, (figure, title) in zip(panels, figures.items(), strict=True):
            panel.axvline(0, color=INK, linewidth=1)
            for place, row in zip(places, compared.values(), strict=True):
                found = row[figure]
                fill = COLOURS[0] if found.is_significant else "none"
                panel.plot([found.low, found.high], [place, place], color=COLOURS[0])
                panel.plot(found.difference, place, "o", markeredgecolor=COLOURS[0], markerfacecolor=fill)
            panel.set(title=title, xlabel="percentage points", ylim=(0.4, len(compared) + 0.6))
        panels[0].set_yticks(list(places), labels=list(compared))
        return _svg(drawn)


def learning_curves(losses: Mapping[str, pd.DataFrame], colours: Mapping[str, str]) -> str:
    """Plot every term of the loss by epoch, one panel per term (run -> epochs x terms)."""
    terms = list(dict.fromkeys(term for table in losses.values() for term in table))
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with _figure(9.5, 0.6 + 2.6 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        lines = {}
        for panel, term in zip(panels, terms, strict=False):
            for run, table in losses.items():
                if term in table:
                    (lines[run],) = panel.plot(table.index + 1, table[term], color=colours[run], label=run)
            panel.set(title=term, xlabel="epoch")
        for panel in panels[len(terms) :]:
            panel.remove()
        figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=3)
        return _svg(figure)


def data_curves(points: pd.DataFrame, axis: str, axes: Mapping[str, str], figures: Mapping[str, str]) -> str:
    """Plot R@1 against the amount of training data: one panel per figure (-> title), one line per method.

    `points` come from `pipeline.results.curves.draw_points`; bars are their 95 % intervals. A line with one point is
    drawn across the panel, dashed. A filled point differs significantly from the first line.
    """
    amounts = sorted(set(points[axis]))
    lines = list(dict.fromkeys(points["line"]))
    with _figure(8.5, 3.6) as drawn:
        panels = drawn.subplots(1, len(figures), sharey=True, squeeze=False)[0]
        for panel, (figure, title) in zip(panels, figures.items(), strict=True):
            for line, colour in colours_of(lines).items():
                own = points[(points["line"] == line) & (points["figure"] == figure)].sort_values(axis)
                if len(own) == 1 and len(lines) > 1:
                    only = own.iloc[0]
                    panel.axhline(only["value"], color=colour, linestyle="--", label=line)
                    panel.axhspan(only["low"], only["high"], color=colour, alpha=0.12, linewidth=0)
                    amounts = [amount for amount in amounts if amount != only[axis]]
                    continue
                panel.plot(own[axis], own["value"], color=colour, label=line)
                for point in own.to_dict("records"):
                    fill = colour if point["significant"] == "yes" else "none"
                    panel.plot([point[axis]] * 2, [point["low"], point["high"]], color=colour, alpha=0.5)
                    panel.plot(point[axis], point["value"], "o", markeredgecolor=colour, markerfacecolor=fill)
            panel.set(title=title, xlabel=axes[axis], xscale="log")
            panel.set_xticks(
                amounts, labels=[f"{amount:.3g}" if amount < 1000 else f"{amount:,.0f}" for amount in amounts]
            )
            panel.minorticks_off()
        panels[0].set_ylim(bottom=0)  # after all panels: it fixes the top, which they share
        panels[0].set_ylabel("R@1 in percent")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        return _svg(drawn)


def training_curves(log: pa.Table, title: str) -> str:
    """Plot a training over its steps: terms of the loss, learning rates, logit scale.

    Two more panels show the norm of the gradient and the mAP@10 of validations, where the log has them.
    `log` is the table of training.parquet; it is empty if the training diverged in its first step.
    """
    names = log.column_names
    rates = [name for name in names if name.endswith("learning_rate")]
    validated = [name for name in names if name.startswith("validation_")]
    others = ("step", "epoch", "logit_scale", "gradient_norm", *rates, *validated)
    losses = [name for name in names if name not in others]
    contents = [losses, rates, ["logit_scale"]]
    contents += [["gradient_norm"]] if "gradient_norm" in names else []
    contents += [[name for name in validated if name.endswith("mAP10")]] if validated else []
    steps = log.to_pandas()
    steps = steps.groupby(steps.index * MOST_POINTS // max(MOST_POINTS, len(steps))).mean()
    with _figure(8, 1 + 2 * len(contents)) as figure:
        figure.suptitle(title)
        panels = figure.subplots(len(contents), 1, sharex=True)
        for panel, columns in zip(panels, contents, strict=True):
            for colour, name in zip(COLOURS, columns, strict=False):
                if name in steps:
                    # Validations are in few rows.
                    points, marker = (steps[["step", name]].dropna(), ".") if name in validated else (steps, None)
                    panel.plot(points["step"], points[name], color=colour, label=name, linewidth=1, marker=marker)
            if panel.lines:
                panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        panels[-1].set_xlabel("step")
        return _svg(figure)


def as_file(svg: str) -> str:
    """Return the plot as a file that follows the light or dark theme of the reader's system."""
    return svg.replace(">", f"><style>{_OWN_THEME}</style>", 1)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in inches, in the style of all plots."""
    import matplotlib  # here, because --help of a stage needs none of it: 0.4 s
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)  # ids repeat in every plot, and a page holds several
