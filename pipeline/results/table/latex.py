"""The table as a LaTeX document."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import PROTOCOLS
from pipeline.evaluation.protocols import DCASE2025, MOMENTS, by_direction, measure_of
from pipeline.results.comparisons import SIGNIFICANCE_NOTE
from pipeline.results.table.names import CELLS, DATASETS, GROUPS, METHODS, PROTOCOL_NOTES
from pipeline.results.table.published import COLUMNS, NONE_PUBLISHED, format_difference, gain_rows, gains_note
from pipeline.results.table.rows import Line, Table, number

MOST_LINES = 32
"""Of a table on a sheet of A4 in landscape, with caption and notes."""
WINDOW_NOTES = {
    "mean": "A clip longer than the model's window is embedded as the mean over evenly spaced windows.",
    "first": "Of a clip longer than the model's window, the beginning is embedded.",
    "center": "Of a clip longer than the model's window, the middle is embedded.",
}

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
\sbox{\results}{\begin{tabular}{@{}l%(training_columns)s%(figure_columns)s@{}}
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
 & %(directions)s \\
\cmidrule(lr){2-%(training)d}%(rules)s
 & %(names)s & %(figures)s \\"""
_DIRECTIONS = {
    "t2a": r"text $\rightarrow$ audio",
    "a2t": r"audio $\rightarrow$ text",
    "t2m": r"text $\rightarrow$ moment",
}

_MARK = "$^{*}$"


def to_latex(table: Table, study_name: str, study_note: str = "") -> str:
    """The table as a LaTeX document that compiles as it stands, in the paper's arrangement.

    Standard deviations over seeds are small next to the means; an asterisk marks what differs significantly from
    finetune. `study_name` and `study_note` are plain text, for the caption and the notes.

    Raises:
        PipelineError: a name, label or note holds a character that LaTeX's standard font lacks.
    """
    blocks = [_block(target, lines, table) for target, lines in table.by_target().items()]
    body = "\n\\midrule[\\heavyrulewidth]\n".join(blocks)
    return _DOCUMENT % {
        # A sheet as wide and twice as high where the rows need it.
        "paper": "a4paper,landscape" if body.count(r"\\") <= MOST_LINES else "a3paper",
        "training_columns": "c" * len(table.datasets),
        "figure_columns": "r" * len(table.figures),
        "caption": _caption(table, study_name),
        "blocks": body,
        "gains": _gains(table),
        "notes": " \\\\\n".join(_notes(table, study_note)),
    }


def _block(target: str, lines: Sequence[Line], table: Table) -> str:
    """The part of a target: header, then its lines under the headings of their groups."""
    training = 1 + len(table.datasets)  # the last column of training data, counted from 1
    directions, rules, last = [], [], training
    for direction, figures in by_direction(table.figures).items():
        directions.append(rf"\multicolumn{{{len(figures)}}}{{c}}{{{_DIRECTIONS[direction]} retrieval}}")
        first, last = last + 1, last + len(figures)
        rules.append(rf"\cmidrule({'l' if last == training + len(table.figures) else 'lr'}){{{first}-{last}}}")
    header = {
        "width": last,
        "target": _dataset(target),
        "datasets": len(table.datasets),
        "training": training,
        "directions": " & ".join(directions),
        "rules": "".join(rules),
        "figures": " & ".join(map(measure_of, table.figures)),
        "names": " & ".join(map(_dataset, table.datasets)),
    }
    written = [_HEADER % header]
    for group in GROUPS:
        of_group = [line for line in lines if METHODS[line.row.method].group == group]
        if not of_group:
            continue
        written.append(r"\midrule")
        if group:
            written.append(rf"\multicolumn{{{header['width']}}}{{@{{}}l}}{{\emph{{{group}}}}} \\")
        for line in of_group:
            written += [_line(line, table), *_published_lines(line, table)]
    return "\n".join(written)


def _line(line: Line, table: Table) -> str:
    method = METHODS[line.row.method]
    label = f" ({escape(line.row.label)})" if line.row.label else ""
    cells = [method.label + method.mark + label, *(CELLS[cell] for cell in line.row.training)]
    # Cells without a deviation or a mark are as wide as those with one, so that the figures stay below each other.
    for name in table.figures:
        cell = number(line.mean[name])
        if table.has_deviations:
            cell += _spread(line.sd[name]) if line.seeds > 1 else rf"\phantom{{{_spread(0.0)}}}"
        if table.has_marks:
            cell += _MARK if name in line.significant else rf"\phantom{{{_MARK}}}"
        cells.append(cell)
    return " & ".join(cells) + r" \\"


def _published_lines(line: Line, table: Table) -> list[str]:
    """The published figures and the differences to them, small and below each figure of ours."""
    found = line.published
    if found is None:
        return []
    small, skipped = r"\quad\footnotesize\emph{%s}", " & " * len(table.datasets)
    if not found.figures:
        return [small % NONE_PUBLISHED + r" \\"]
    room = (rf"\phantom{{{_spread(0.0)}}}" if table.has_deviations else "") + (
        rf"\phantom{{{_MARK}}}" if table.has_marks else ""
    )
    published = [number(found.figures[name]) for name in table.figures]
    differences = [f"${format_difference(found.differences[name])}$" for name in table.figures]
    return [
        " & ".join([small % kind + skipped, *(rf"\footnotesize {cell}{room}" for cell in cells)]) + r" \\"
        for kind, cells in (("published", published), ("difference", differences))
    ]


def _spread(sd: float) -> str:
    return rf"\,{{\tiny$\pm${number(sd)}}}"


def _gains(table: Table) -> str:
    rows = gain_rows(table)
    if not rows:
        return ""
    directions = r"\multicolumn{2}{c}{text $\rightarrow$ audio} & \multicolumn{2}{c}{audio $\rightarrow$ text} \\"
    head = " & ".join(["Target", *map(_dataset, table.datasets), *COLUMNS, *COLUMNS])
    body = [
        " & ".join([_dataset(target), *(CELLS.get(cell, cell) for cell in cells)]) + r" \\" for target, cells in rows
    ]
    lines = [
        "",
        r"\medskip",
        escape(gains_note(table)),
        "",
        r"\smallskip",
        rf"\begin{{tabular}}{{@{{}}l{'c' * len(table.datasets)}rrrr@{{}}}}",
        r"\toprule",
        f"{' & ' * (1 + len(table.datasets))}{directions}",
        rf"{head} \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _caption(table: Table, study_name: str) -> str:
    targets = [_dataset(target) for target in table.by_target()]
    return (
        rf"Retrieval results on the {' and '.join(targets)} {'dataset' if len(targets) == 1 else 'datasets'}, "
        rf"study \emph{{{escape(study_name)}}}, protocol \emph{{{table.protocol}}}. "
        rf"{_REPORTED[table.protocol]} are reported, in percent. ``A+T'' indicates the usage of "
        r"audio-text pairs for training, ``Audio'' "
        r"indicates the use of only audio as unlabeled data, and ``-'' indicates that the dataset was not used."
    )


_BOTH_DIRECTIONS = (
    r"Recall@1, Recall@5, Recall@10, and mAP@10 for both text $\rightarrow$ audio and audio $\rightarrow$ text tasks"
)
_REPORTED = {
    **dict.fromkeys(PROTOCOLS, _BOTH_DIRECTIONS),
    DCASE2025: r"Recall@1, Recall@5, Recall@10, mAP@10, and mAP@16 for text $\rightarrow$ audio",
    MOMENTS: r"R1 and mAP for text $\rightarrow$ moment",
}


def _notes(table: Table, study_note: str) -> list[str]:
    """The footnotes of the methods, then how the figures came about."""
    notes = []
    for name, method in METHODS.items():
        lines = [line for line in table.lines if line.row.method == name]
        if method.mark and lines:
            notes.append(f"{method.mark} {method.note.replace('%s', _paired_sets(lines, table.datasets))}")
    if table.has_marks:
        notes.append(f"{_MARK} {escape(SIGNIFICANCE_NOTE)}")
    for target, lines in table.by_target().items():
        test_set = lines[0].test_set
        expected = test_set.n_audio_expected or test_set.n_audio
        few = f" of the {expected:,} published" if expected != test_set.n_audio else ""
        warning = "; a smaller gallery makes every figure higher" if expected > test_set.n_audio else ""
        notes.append(
            f"{_dataset(target)}, {escape(test_set.split)} split: {test_set.n_text:,} captions, "
            f"{test_set.n_audio:,} {'recordings' if table.protocol == MOMENTS else 'clips'}{few}{warning}."
            + (f" {escape(test_set.note)}" if test_set.note else "")
        )
    notes.append(rf"Protocol \emph{{{table.protocol}}}: {PROTOCOL_NOTES[table.protocol]}")
    if table.protocol != MOMENTS:  # its note has the windows
        notes.append(WINDOW_NOTES[table.lines[0].test_set.windows])
    notes.append(_seeds_note([line.seeds for line in table.lines]))
    if study_note:
        notes.append(escape(study_note))
    return notes


def _paired_sets(lines: Sequence[Line], datasets: Sequence[str]) -> str:
    """The datasets that gave pairs to any of the lines."""
    names = [_dataset(name) for i, name in enumerate(datasets) if any(line.row.training[i] == "A+T" for line in lines)]
    return f"both {' and '.join(names)}" if len(names) == 2 else ", ".join(names)


def _seeds_note(seeds: Sequence[int]) -> str:
    several = " or ".join(map(str, sorted(set(seeds) - {1})))
    if not several:
        return "One seed a row."
    single = "; a figure without one is of a single seed" if 1 in seeds else ""
    return rf"Means over {several} seeds; after $\pm$, the standard deviation over the seeds{single}."


def _dataset(name: str) -> str:
    return DATASETS.get(name) or escape(name)


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
