"""The results in the arrangement of the paper's Table 1, as CSV, as Markdown and as a LaTeX document."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, PROTOCOLS
from pipeline.results.comparisons import SIGNIFICANT_BELOW, Comparison

DATASETS = {"clotho": "Clotho", "audiocaps": "AudioCaps", "audioset": "AudioSet"}
"""How the datasets of the paper are written; others are written as they are named."""
CELLS = {"A+T": "A+T", "A": "Audio", "-": "-"}
"""What a training set gave: pairs, audio only, nothing; and how it is written."""
GROUPS = ("", "Proposed method", "(Scenario where all paired data is available)")
"""Parts of a block of the table, by their headings; the first has none."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a method is written: its label, the heading it stands under, and its footnote."""

    label: str
    group: str
    mark: str = ""
    note: str = ""


METHODS = {
    "vanilla": Method(label="vanilla CLAP", group=GROUPS[0]),
    "finetune": Method(label="finetune", group=GROUPS[0]),
    "text_mixing": Method(
        label="text mixing",
        group=GROUPS[0],
        mark=r"$^{\S}$",
        note="Two clips of the target's pairs mixed while concatenating their texts: the control for composed.",
    ),
    "composed": Method(label="composed", group=GROUPS[1]),
    "finetune_all_pairs": Method(
        label="finetune",
        group=GROUPS[2],
        mark=r"$^{\dagger}$",
        note="Fine-tuned using paired audio-text data from %s.",
    ),
    "concatenate": Method(
        label="concatenate",
        group=GROUPS[2],
        mark=r"$^{\ddagger}$",
        note=(
            "Mixup-like data augmentation: composing two audio as the proposed method "
            "while concatenating their corresponding texts."
        ),
    ),
    "composed_all_pairs": Method(
        label="composed",
        group=GROUPS[2],
        mark=r"$^{\P}$",
        note="The proposed method on top of paired audio-text data from %s.",
    ),
}

PROTOCOL_NOTES = {
    "paper": (
        "every caption ranks all clips; every clip ranks one caption a clip, the first; "
        "mAP@10 is the mean of 1/rank within 10."
    ),
    "best-of-5": (
        "every caption ranks all clips; every clip ranks all captions, and its best-placed one counts for R@k; "
        "mAP@10 is the sum of i/rank over its captions within 10, i counting them, divided by their number."
    ),
    "dcase": (
        "every caption ranks all clips; every clip ranks all captions, and R@k is the share of its own within k; "
        "mAP@10 is the sum of i/rank over its captions within 10, i counting them, divided by their number."
    ),
}
WINDOW_NOTES = {
    "mean": "A clip longer than the model's window is embedded as the mean over evenly spaced windows.",
    "first": "Of a clip longer than the model's window, the beginning is embedded.",
    "center": "Of a clip longer than the model's window, the middle is embedded.",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: the target it is evaluated on, the method, and what each training set gave it."""

    target: str
    method: str
    training: tuple[str, ...]
    """A key of `CELLS` for each dataset of the table."""
    label: str = ""
    """What tells the row from others of its method and training data, in plain text."""

    @classmethod
    def parse(cls, text: str, datasets: Sequence[str]) -> Row:
        """The row written as TARGET|METHOD, a cell for each of `datasets` and, where it has one, its label.

        For example clotho|composed|A+T|A|- or clotho|composed|A+T|A|-|without the third term.
        """
        fields = text.split("|", 2 + len(datasets))
        label = fields.pop() if len(fields) > 2 + len(datasets) else ""
        if len(fields) != 2 + len(datasets):
            raise PipelineError(
                f"row {text!r} has {len(fields)} fields; TARGET|METHOD|{'|'.join(datasets).upper()} was expected"
            )
        target, method, *training = fields
        if method not in METHODS:
            raise PipelineError(f"row {text!r}: method {method!r} is unknown; choose one of {', '.join(METHODS)}")
        for cell in training:
            if cell not in CELLS:
                raise PipelineError(f"row {text!r}: training data {cell!r} is none of {', '.join(CELLS)}")
        return cls(target=target, method=method, training=tuple(training), label=label)

    def __str__(self) -> str:
        return "|".join([self.target, self.method, *self.training, *filter(None, [self.label])])


def add_row_arguments(parser: argparse.ArgumentParser, file: str) -> None:
    """`--row ROW FILES...`, `--datasets` and `--protocol`: a table's rows, each with `file` of every seed."""
    parser.add_argument(
        "--row", nargs="+", action="append", required=True, metavar=("ROW", "FILE"),
        help=f"TARGET|METHOD, a cell (A+T, A or -) a dataset and a label if it has one, then {file} of every seed; "
        "again for every row",
    )  # fmt: skip
    parser.add_argument("--datasets", nargs="*", required=True, help="columns of training data")
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)


def tabulate(
    results: Sequence[tuple[Row, Mapping[Path, Mapping[str, Any]]]], datasets: Sequence[str], protocol: str
) -> pd.DataFrame:
    """One line a row, in the order given: means over the seeds of each row's metrics.

    Args:
        results: each row with the contents of its metrics.json files, one a seed.
        datasets: the columns of training data.
        protocol: the protocol whose figures are taken.

    Returns:
        The columns of the CSV; for each figure its sample standard deviation as FIGURE_sd, NaN for one seed; and split,
        windows and n_audio_expected. Figures in percent. `attrs["datasets"]` holds the datasets.

    Raises:
        PipelineError: a row that comes twice or without files, a file of another target or without the protocol,
            seeds of a row that repeat or come from different runs, or a target judged on different test sets.
    """
    lines: list[dict[str, Any]] = []
    test_sets: dict[str, tuple[Path, dict[str, Any]]] = {}
    seen: set[Row] = set()
    for row, files in results:
        if row in seen:
            raise PipelineError(f"row {row} is given twice")
        seen.add(row)
        if not files:
            raise PipelineError(f"row {row} has no metrics file; give at least one")
        by_seed: dict[int, Path] = {}
        first = next(iter(files))
        for path, metrics in files.items():
            _check_file(path, metrics, row, protocol)
            if metrics["run"] != files[first]["run"]:
                raise PipelineError(
                    f"row {row} mixes runs: {path} is of {metrics['run']}, {first} of {files[first]['run']}"
                )
            if metrics["seed"] in by_seed:
                raise PipelineError(
                    f"row {row}: {path} and {by_seed[metrics['seed']]} are both of seed {metrics['seed']}"
                )
            by_seed[metrics["seed"]] = path
            test_set = {name: metrics[name] for name in _TEST_SET}
            other, expected = test_sets.setdefault(row.target, (path, test_set))
            if test_set != expected:
                raise PipelineError(
                    f"{path} and {other} are not comparable: {_differences(test_set, expected)}; "
                    "evaluate every row of a target on the same clips in the same way"
                )
        figures = pd.DataFrame([metrics["protocols"][protocol] for metrics in files.values()])[list(FIGURES)]
        lines.append(
            {
                "target": row.target,
                "method": row.method,
                "label": row.label,
                **dict(zip(datasets, row.training, strict=True)),
                **{name: figures[name].mean() for name in FIGURES},
                **{f"{name}_sd": figures[name].std() for name in FIGURES},
                **test_sets[row.target][1],
                "protocol": protocol,
                "seeds": len(files),
            }
        )
    table = pd.DataFrame(lines)
    if table["windows"].nunique() > 1:
        raise PipelineError(
            f"targets are embedded with different windows ({', '.join(table['windows'].unique())}); "
            "evaluate them with the same"
        )
    table.attrs["datasets"] = list(datasets)
    return table


_TEST_SET = ("split", "n_text", "n_audio", "n_audio_expected", "windows")


def _check_file(path: Path, metrics: Mapping[str, Any], row: Row, protocol: str) -> None:
    missing = [name for name in ("run", "seed", "target", "protocols", *_TEST_SET) if name not in metrics]
    if missing:
        raise PipelineError(f"{path}: holds no {', '.join(missing)}; make it with the stage evaluate")
    if metrics["target"] != row.target:
        raise PipelineError(f"{path}: is of the target {metrics['target']}, but row {row} is of {row.target}")
    if protocol not in metrics["protocols"]:
        raise PipelineError(f"{path}: has no protocol {protocol!r}, only {', '.join(metrics['protocols'])}")
    found = metrics["protocols"][protocol]
    for name in FIGURES:
        if not isinstance(found.get(name), int | float) or not math.isfinite(found[name]):
            raise PipelineError(f"{path}: {protocol} {name} is {found.get(name)}; a number was expected")


def _differences(found: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {found[name]} and {other[name]}" for name in found if found[name] != other[name])


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV, figures to two decimals; for Table 1 its first columns are those of `data/paper_table1.csv`.

    A column `label` stands after the method where a row has one. Where a row has several seeds, standard deviations
    follow as FIGURE_sd; what `set_beside` added comes last. A cell without a value is empty.
    """
    datasets = table.attrs["datasets"]
    label = ["label"] if table["label"].any() else []
    names = ["target", "method", *label, *datasets, *FIGURES, "n_text", "n_audio", "protocol", "seeds"]
    more = [f"{name}_sd" for name in FIGURES] if (table["seeds"] > 1).any() else []
    more += _BESIDE if is_beside(table) else []
    written = table[[*names, *more]].copy()
    for name in FIGURES:
        written[name] = written[name].map(number)
    for name in more:
        write = gain if "gain" in name else number
        written[name] = written[name].map(lambda value, write=write: "" if math.isnan(value) else write(value))
    return written.to_csv(index=False, lineterminator="\n")


# --- beside published figures ----------------------------------------------------------------------------------------

GAINS = ("t2a_R1", "a2t_R1")
"""Figures whose relative gain over finetune is told, as the paper's abstract tells it."""
_BESIDE = [
    *(f"{kind}_{name}" for kind in ("published", "difference") for name in FIGURES),
    *(f"{kind}_{name}" for name in GAINS for kind in ("gain", "published_gain")),
]


def is_beside(table: pd.DataFrame) -> bool:
    """Whether the table holds published figures."""
    return _BESIDE[0] in table


def read_published(path: Path) -> dict[Row, dict[str, float]]:
    """Published figures in percent, by row, from a CSV in the columns of `data/paper_table1.csv`.

    Each row's training data are named, whatever the columns: ("clotho=A+T", "audioset=A").
    """
    try:
        published = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); name another file in study.published") from error
    if missing := [name for name in ("target", "method", *FIGURES) if name not in published]:
        raise PipelineError(f"{path}: has no column {', '.join(missing)}; data/paper_table1.csv shows what is expected")
    datasets = [str(name) for name in published if name not in ("target", "method", *FIGURES)]
    found: dict[Row, dict[str, float]] = {}
    for number_of_line, line in enumerate(published.to_dict("records"), start=2):
        row = _named(line, datasets)
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


def _named(line: Mapping[Any, Any], datasets: Sequence[str]) -> Row:
    training = tuple(sorted(f"{name}={line[name]}" for name in datasets if line[name] != "-"))
    return Row(target=line["target"], method=line["method"], training=training)


def set_beside(table: pd.DataFrame, published: Mapping[Row, Mapping[str, float]]) -> pd.DataFrame:
    """The table with the published figures of the same target, method and training data, and the differences to them.

    A row with a label differs from what its columns say and has no published counterpart. Of `composed` rows come the
    relative gains in R@1 over their target's finetune, ours and the published. Differences and gains are of figures as
    they are printed; NaN where something is missing.
    """
    datasets = table.attrs["datasets"]
    lines = table.to_dict("records")
    printed = [{name: float(number(line[name])) for name in FIGURES} for line in lines]
    is_baseline = [line["method"] == "finetune" and not line["label"] for line in lines]
    ours = {line["target"]: figures for line, figures, is_it in zip(lines, printed, is_baseline, strict=True) if is_it}
    theirs = {row.target: figures for row, figures in published.items() if row.method == "finetune"}
    beside = []
    for line, figures in zip(lines, printed, strict=True):
        found = {} if line["label"] else published.get(_named(line, datasets), {})
        cells = {f"published_{name}": found.get(name, math.nan) for name in FIGURES}
        cells |= {f"difference_{name}": figures[name] - found.get(name, math.nan) for name in FIGURES}
        has_gain = line["method"] == "composed" and not line["label"]
        for name in GAINS if has_gain else ():
            cells[f"gain_{name}"] = _relative(figures, ours.get(line["target"], {}), name)
            cells[f"published_gain_{name}"] = _relative(found, theirs.get(line["target"], {}), name)
        beside.append(cells)
    added = pd.DataFrame(beside, index=table.index).reindex(columns=_BESIDE)
    both = pd.concat([table, added], axis=1)
    both.attrs = dict(table.attrs)
    return both


def _relative(figures: Mapping[str, float], baseline: Mapping[str, float], name: str) -> float:
    """By how many percent a figure is above the baseline's."""
    below = baseline.get(name, 0.0)
    return 100 * (figures.get(name, math.nan) / below - 1) if below else math.nan


def gain(value: float) -> str:
    """A relative gain, in percent, as every output writes it."""
    return f"{value:.1f}"


def signed(value: float) -> str:
    """A difference in percentage points with its sign."""
    return f"{value + 0.0:+.2f}" if abs(value) >= 0.005 else "0.00"


def _gain_rows(table: pd.DataFrame) -> list[list[str]]:
    """Target, training data and gains of the composed rows: ours and the published in both directions, "-" if none."""
    names = [f"{kind}_{name}" for name in GAINS for kind in ("published_gain", "gain")]
    rows = []
    for line in table[table["gain_t2a_R1"].notna()].to_dict("records"):
        cells = [line[name] for name in table.attrs["datasets"]]
        rows.append([line["target"], *cells, *("-" if math.isnan(line[name]) else gain(line[name]) for name in names)])
    return rows


def _largest_gains(table: pd.DataFrame) -> str:
    """The largest published gain from text to audio of each target, in plain text."""
    largest = table.groupby("target", sort=False)["published_gain_t2a_R1"].max().dropna()
    return ", ".join(f"{_plain(str(target))} {gain(value)} %" for target, value in largest.items())


# --- Markdown and LaTeX ----------------------------------------------------------------------------------------------


Comparisons = Mapping[str, Mapping[str, Comparison]]
"""Of rows, as `Row` writes them, and their figures with finetune: what `comparisons.read_comparisons` returns."""


def is_significant(row: Mapping[Any, Any], figure: str, datasets: Sequence[str], comparisons: Comparisons) -> bool:
    """Whether a figure of a line of the table differs from finetune's beyond chance."""
    training = tuple(row[dataset] for dataset in datasets)
    name = str(Row(target=row["target"], method=row["method"], training=training, label=row["label"]))
    return name in comparisons and comparisons[name][figure].is_significant


def to_markdown(table: pd.DataFrame, comparisons: Comparisons | None = None) -> str:
    """The table in Markdown: the figures of the CSV, with their standard deviations where there are several seeds.

    An asterisk marks what differs significantly from finetune.
    """
    datasets = table.attrs["datasets"]
    head = ["target", "method", *map(_plain, datasets), *(name.replace("_", " ") for name in FIGURES)]
    lines = [head, ["---"] * (2 + len(datasets)) + ["---:"] * len(FIGURES)]
    for row in table.to_dict("records"):
        label = f" ({row['label']})" if row["label"] else ""
        cells = [_plain(row["target"]), row["method"] + label, *(row[dataset] for dataset in datasets)]
        for name in FIGURES:
            spread = "" if math.isnan(row[f"{name}_sd"]) else f" ± {number(row[f'{name}_sd'])}"
            mark = "\\*" if is_significant(row, name, datasets, comparisons or {}) else ""
            cells.append(number(row[name]) + mark + spread)
        lines.append([cell.replace("|", "\\|") for cell in cells])
        if is_beside(table):
            nothing = [""] * len(datasets)
            if math.isnan(row[_BESIDE[0]]):
                lines.append(["", f"*{_NONE_PUBLISHED}*", *nothing, *([""] * len(FIGURES))])
            else:
                lines.append(["", "*published*", *nothing, *(f"*{number(row[f'published_{n}'])}*" for n in FIGURES)])
                lines.append(["", "*difference*", *nothing, *(f"*{signed(row[f'difference_{n}'])}*" for n in FIGURES)])
    text = _markdown(lines)
    if comparisons:
        text += f"\n\\* {_SIGNIFICANCE_NOTE}\n"
    if is_beside(table) and (gains := _gain_rows(table)):
        head = ["target", *map(_plain, datasets), *(f"{way} {whose}" for way in ("t2a", "a2t") for whose in _WHOSE)]
        rule = ["---"] * (1 + len(datasets)) + ["---:"] * 4
        gains = [[_plain(target), *cells] for target, *cells in gains]
        text += f"\n{_GAINS_NOTE}{_at_most(table)}\n\n{_markdown([head, rule, *gains])}"
    return text


_WHOSE = ("published", "ours")
_NONE_PUBLISHED = "not published"
_GAINS_NOTE = "Relative gain in R@1 of composed over finetune, in percent."


def _at_most(table: pd.DataFrame) -> str:
    largest = _largest_gains(table)
    return f" The largest published from text to audio: {largest}." if largest else ""


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def to_latex(table: pd.DataFrame, study_name: str, study_note: str = "", comparisons: Comparisons | None = None) -> str:
    """The table as a LaTeX document that compiles as it stands, in the paper's arrangement.

    Standard deviations over seeds stand small beside the means, an asterisk beside what differs significantly from
    finetune. The notes say what the figures are figures of.
    """
    has_sd = bool((table["seeds"] > 1).any())
    datasets = table.attrs["datasets"]
    blocks = [
        _block(target, part, datasets, has_sd, comparisons or {})
        for target, part in table.groupby("target", sort=False)
    ]
    body = "\n\\midrule[\\heavyrulewidth]\n".join(blocks)
    return _DOCUMENT % {
        # A sheet as wide and twice as high where the rows need it.
        "paper": "a4paper,landscape" if body.count(r"\\") <= MOST_LINES else "a3paper",
        "training_columns": "c" * len(datasets),
        "caption": _caption(table, study_name),
        "blocks": body,
        "gains": _gains(table) if is_beside(table) else "",
        "notes": " \\\\\n".join(_notes(table, study_note, bool(comparisons))),
    }


MOST_LINES = 32
"""Of a table on a sheet of A4 across, beside caption and notes."""


def number(value: float) -> str:
    """A figure or its standard deviation, in percent, as every output writes it."""
    return f"{value:.2f}"


_DOCUMENT = r"""%% pdflatex sets this file as it stands.
%% To take the table into a document of yours, load the packages booktabs and standalone there and \input this file.
\documentclass{article}
\usepackage{booktabs}
\usepackage[%(paper)s,margin=12mm]{geometry}
\pagestyle{empty}
\begin{document}
\begin{table}
\centering
\small
\setlength{\tabcolsep}{5pt}
\newsavebox{\results}
\sbox{\results}{\begin{tabular}{@{}l%(training_columns)srrrrrrrr@{}}
\toprule
%(blocks)s
\bottomrule
\end{tabular}}
\begin{minipage}{\wd\results} %% caption and notes as wide as the table
\caption{%(caption)s}
\medskip
\usebox{\results}
%(gains)s
\medskip
\footnotesize\raggedright
%(notes)s
\end{minipage}
\end{table}
\end{document}
"""

_HEADER = r"""\multicolumn{%(width)d}{c}{Retrieval performance of the %(target)s dataset} \\
\midrule
Method & \multicolumn{%(datasets)d}{c}{Training data}
 & \multicolumn{4}{c}{text $\rightarrow$ audio retrieval} & \multicolumn{4}{c}{audio $\rightarrow$ text retrieval} \\
\cmidrule(lr){2-%(training)d}\cmidrule(lr){%(t2a)s}\cmidrule(l){%(a2t)s}
 & %(names)s & R@1 & R@5 & R@10 & mAP@10 & R@1 & R@5 & R@10 & mAP@10 \\"""


_SIGNIFICANCE_NOTE = (
    "Differs from finetune on the same clips: paired bootstrap over clips, "
    f"p < {SIGNIFICANT_BELOW} after Holm's correction over the rows."
)
_MARK = "$^{*}$"


def _block(target: Any, part: pd.DataFrame, datasets: Sequence[str], has_sd: bool, comparisons: Comparisons) -> str:
    training = 1 + len(datasets)  # the last column of training data, counted from 1
    header = {
        "width": training + len(FIGURES),
        "target": _dataset(target),
        "datasets": len(datasets),
        "training": training,
        "t2a": f"{training + 1}-{training + 4}",
        "a2t": f"{training + 5}-{training + 8}",
        "names": " & ".join(map(_dataset, datasets)),
    }
    lines = [_HEADER % header]
    for group in GROUPS:
        rows = [row for row in part.to_dict("records") if METHODS[row["method"]].group == group]
        if not rows:
            continue
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{header['width']}}}{{@{{}}l}}{{\emph{{{group}}}}} \\")
        for row in rows:
            method = METHODS[row["method"]]
            label = f" ({escape(row['label'])})" if row["label"] else ""
            cells = [method.label + method.mark + label, *(CELLS[row[name]] for name in datasets)]
            for name in FIGURES:
                mark = ""
                if comparisons:  # as wide without one, so that the figures stay below each other
                    is_marked = is_significant(row, name, datasets, comparisons)
                    mark = _MARK if is_marked else rf"\phantom{{{_MARK}}}"
                cells.append(_figure(row[name], row[f"{name}_sd"], has_sd) + mark)
            lines.append(" & ".join(cells) + r" \\")
            if is_beside(part):
                lines += _published_lines(row, len(datasets), has_sd, bool(comparisons))
    return "\n".join(lines)


def _published_lines(row: Mapping[Any, Any], datasets: int, has_sd: bool, has_marks: bool) -> list[str]:
    """The published figures and the differences to them, small and below each figure of ours."""
    small, skipped = r"\quad\footnotesize\emph{%s}", " & " * datasets
    if math.isnan(row[_BESIDE[0]]):
        return [small % _NONE_PUBLISHED + r" \\"]
    # As wide as the cells above, so that the figures stand below each other.
    room = (rf"\phantom{{{_spread(0.0)}}}" if has_sd else "") + (rf"\phantom{{{_MARK}}}" if has_marks else "")
    lines = []
    for kind, write in (("published", number), ("difference", lambda value: f"${signed(value)}$")):
        figures = (rf"\footnotesize {write(row[f'{kind}_{name}'])}{room}" for name in FIGURES)
        lines.append(" & ".join([small % kind + skipped, *figures]) + r" \\")
    return lines


def _gains(table: pd.DataFrame) -> str:
    rows = _gain_rows(table)
    if not rows:
        return ""
    datasets = table.attrs["datasets"]
    directions = r"\multicolumn{2}{c}{text $\rightarrow$ audio} & \multicolumn{2}{c}{audio $\rightarrow$ text} \\"
    head = " & ".join(["Target", *map(_dataset, datasets), *_WHOSE, *_WHOSE])
    lines = [
        "",
        r"\medskip",
        escape(_GAINS_NOTE + _at_most(table)),
        "",
        r"\smallskip",
        rf"\begin{{tabular}}{{@{{}}l{'c' * len(datasets)}rrrr@{{}}}}",
        r"\toprule",
        f"{' & ' * (1 + len(datasets))}{directions}",
        rf"{head} \\",
        r"\midrule",
        *(
            " & ".join([_dataset(target), *(CELLS.get(cell, cell) for cell in cells)]) + r" \\"
            for target, *cells in rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _figure(mean: float, sd: float, has_sd: bool) -> str:
    if not has_sd:
        return number(mean)
    if math.isnan(sd):  # as wide as one, so that the means stay below each other
        return number(mean) + rf"\phantom{{{_spread(0.0)}}}"
    return number(mean) + _spread(sd)


def _spread(sd: float) -> str:
    return rf"\,{{\tiny$\pm${number(sd)}}}"


def _caption(table: pd.DataFrame, study_name: str) -> str:
    targets = " and ".join(_dataset(target) for target in table["target"].unique())
    datasets = "dataset" if table["target"].nunique() == 1 else "datasets"
    return (
        rf"Retrieval results on the {targets} {datasets}, study \emph{{{escape(study_name)}}}, "
        rf"protocol \emph{{{table['protocol'].iloc[0]}}}. "
        r"Recall@1, Recall@5, Recall@10, and mAP@10 for both text $\rightarrow$ audio and audio $\rightarrow$ text "
        r"tasks are reported, in percent. ``A+T'' indicates the usage of audio-text pairs for training, ``Audio'' "
        r"indicates the use of only audio as unlabeled data, and ``-'' indicates that the dataset was not used."
    )


def _notes(table: pd.DataFrame, study_note: str, has_marks: bool) -> list[str]:
    used = set(table["method"])
    notes = [
        f"{method.mark} {method.note.replace('%s', _paired_sets(table[table['method'] == name]))}"
        for name, method in METHODS.items()
        if method.mark and name in used
    ]
    if has_marks:
        notes.append(f"{_MARK} {escape(_SIGNIFICANCE_NOTE)}")
    sets = table.drop_duplicates("target")
    for row in sets.to_dict("records"):
        expected = row["n_audio_expected"]
        few = f" of the {expected:,.0f} published" if not pd.isna(expected) and expected != row["n_audio"] else ""
        warning = "; a smaller gallery makes every figure higher" if few and expected > row["n_audio"] else ""
        notes.append(
            f"{_dataset(row['target'])}, {escape(row['split'])} split: {row['n_text']:,} captions, "
            f"{row['n_audio']:,} clips{few}{warning}."
        )
    protocol = table["protocol"].iloc[0]
    notes.append(rf"Protocol \emph{{{protocol}}}: {PROTOCOL_NOTES[protocol]}")
    notes.append(WINDOW_NOTES[table["windows"].iloc[0]])
    notes.append(_seeds_note(table["seeds"]))
    if study_note:
        notes.append(escape(study_note))
    return notes


def _paired_sets(rows: pd.DataFrame) -> str:
    names = [_dataset(name) for name in rows.attrs["datasets"] if (rows[name] == "A+T").any()]
    return f"both {' and '.join(names)}" if len(names) == 2 else ", ".join(names)


def _seeds_note(seeds: pd.Series) -> str:
    if (seeds == 1).all():
        return "One seed a row."
    counts = [str(count) for count in sorted(seeds[seeds > 1].unique())]
    alone = "; a figure without one is of a single seed" if (seeds == 1).any() else ""
    return rf"Means over {' or '.join(counts)} seeds; after $\pm$, the standard deviation over the seeds{alone}."


def _plain(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def _dataset(target: str) -> str:
    return DATASETS.get(target) or escape(target)


_ESCAPES = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\n": " ",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{EN DASH}": r"\textendash{}",
    "\N{EM DASH}": r"\textemdash{}",
    "\N{LEFT SINGLE QUOTATION MARK}": r"\textquoteleft{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": r"\textquoteright{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": r"\textquotedblleft{}",
    "\N{RIGHT DOUBLE QUOTATION MARK}": r"\textquotedblright{}",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
}


def escape(text: str) -> str:
    """Plain text as LaTeX that prints it; a character that its standard font has no glyph for raises."""
    for character in text:
        is_letter = "À" <= character <= "ÿ" and character not in "ÐÞðþ"
        if character not in _ESCAPES and not (" " <= character <= "~" or is_letter):
            raise PipelineError(f"{text!r}: LaTeX has no glyph for {character!r}; write it in other words")
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would print as one dash
