"""The rows of a table: means and standard deviations over seeds, and significant differences from finetune."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_PROTOCOLS, DCASE2025, MOMENTS, figures_of
from pipeline.results.comparisons import Comparison
from pipeline.results.table.names import CELLS, METHODS

Figures = Mapping[str, float]
"""Figures in percent, by their names in the protocol."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The identity of a row: the target it is evaluated on, the method, and the use of each training set."""

    target: str
    method: str
    training: tuple[str, ...]
    """A key of `CELLS` for each dataset of the table."""
    label: str = ""
    """Distinguishes the row from others of its method and training data, in plain text."""

    @classmethod
    def parse(cls, text: str, datasets: Sequence[str]) -> Row:
        """Return the row from TARGET|METHOD, one cell per dataset and an optional label, joined by |.

        For example clotho|composed|A+T|A|- or clotho|composed|A+T|A|-|without the third term.
        """
        fields = text.split("|", 2 + len(datasets))
        label = fields.pop() if len(fields) > 2 + len(datasets) else ""
        if len(fields) != 2 + len(datasets):
            raise PipelineError(
                f"row {text!r} has {len(fields)} fields; expected TARGET|METHOD|{'|'.join(datasets).upper()}"
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

    def is_baseline(self, method: str = "finetune") -> bool:
        """Whether this is the row of a method that others are compared with: the one without a label."""
        return self.method == method and not self.label


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The clips and captions that a row is evaluated on, and their embedding."""

    split: str
    n_text: int
    n_audio: int
    n_audio_expected: int | None
    """Clips that the split was published with."""
    windows: str
    n_queries: int | None = None
    """Captions with known relevant clips, under `dcase2025`."""
    relevance: str = ""
    """SHA-256 of the relevance file."""
    note: str = ""
    """The queries of the protocol and those left out, for the notes."""

    def differences(self, other: TestSet) -> str:
        """Return the values that differ, as text."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name])


TEST_SET = ("split", "n_text", "n_audio", "n_audio_expected", "windows")
"""Entries of metrics.json that describe the test set under every protocol."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published counterpart of a line, in percent, rounded; empty if there is none."""

    figures: Figures
    differences: Figures
    """Our figures minus the published."""
    gains: Figures
    """Relative gains of `composed` over finetune, for the figures in `published.GAINS`."""
    published_gains: Figures


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row with its figures."""

    row: Row
    mean: Figures
    """Mean over the seeds."""
    sd: Figures
    """Sample standard deviation over the seeds; NaN for one seed."""
    seeds: int
    test_set: TestSet
    significant: frozenset[str] = frozenset()
    """Figures that differ from finetune's beyond chance."""
    published: Published | None = None
    """None in a table that shows no published figures."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The lines in the order given, ready to be written as CSV, Markdown and LaTeX."""

    lines: Sequence[Line] = field(repr=False)
    datasets: Sequence[str]
    """The columns of training data."""
    protocol: str
    has_marks: bool = False
    """Whether significant differences are marked."""

    @property
    def figures(self) -> tuple[str, ...]:
        """The columns of figures."""
        return figures_of(self.protocol)

    @property
    def has_deviations(self) -> bool:
        """Whether a row has several seeds."""
        return any(line.seeds > 1 for line in self.lines)

    @property
    def has_published(self) -> bool:
        """Whether it shows published figures."""
        return any(line.published for line in self.lines)

    def by_target(self) -> dict[str, list[Line]]:
        """Return the lines of each target, in the order in which targets first occur."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            groups.setdefault(line.row.target, []).append(line)
        return groups


def add_row_arguments(parser: argparse.ArgumentParser, file: str) -> None:
    """Add `--row ROW FILES...`, `--datasets` and `--protocol`: a table's rows, each with `file` of every seed."""
    parser.add_argument(
        "--row", nargs="+", action="append", required=True, metavar=("ROW", "FILE"),
        help=f"TARGET|METHOD, a cell (A+T, A or -) per dataset and a label if it has one, then {file} of every seed; "
        "again for every row",
    )  # fmt: skip
    parser.add_argument("--datasets", nargs="*", required=True, help="columns of training data")
    parser.add_argument("--protocol", choices=ALL_PROTOCOLS, required=True)


def tabulate(
    results: Sequence[tuple[Row, Mapping[Path, Mapping[str, Any]]]], datasets: Sequence[str], protocol: str
) -> Table:
    """Return the table of `results`: each row with the contents of its metrics.json files, one per seed.

    Raises:
        PipelineError: A row is given twice or without files, a file has another target or not the protocol, the seeds
            of a row repeat or come from different runs, or a target is evaluated on different test sets.
    """
    import pandas as pd

    lines: list[Line] = []
    test_sets: dict[str, tuple[Path, TestSet]] = {}
    for row, files in results:
        if any(row == line.row for line in lines):
            raise PipelineError(f"row {row} is given twice")
        if not files:
            raise PipelineError(f"row {row} has no metrics file; give at least one")
        _check_seeds(row, files, protocol)
        for path, metrics in files.items():
            test_set = test_set_of(metrics, protocol)
            other, expected = test_sets.setdefault(row.target, (path, test_set))
            if test_set != expected:
                raise PipelineError(
                    f"{path} and {other} are not comparable: {test_set.differences(expected)}; "
                    "evaluate every row of a target on the same clips in the same way"
                )
        figures = pd.DataFrame([metrics["protocols"][protocol] for metrics in files.values()])
        lines.append(
            Line(
                row=row,
                mean={name: float(figures[name].mean()) for name in figures_of(protocol)},
                sd={name: float(figures[name].std()) for name in figures_of(protocol)},
                seeds=len(files),
                test_set=test_sets[row.target][1],
            )
        )
    windows = list(dict.fromkeys(line.test_set.windows for line in lines))
    if len(windows) > 1:
        raise PipelineError(
            f"targets are embedded with different windows ({', '.join(windows)}); evaluate them with the same"
        )
    return Table(lines=lines, datasets=datasets, protocol=protocol)


def _check_seeds(row: Row, files: Mapping[Path, Mapping[str, Any]], protocol: str) -> None:
    """Raise PipelineError unless the files are of the row's target, of one run, and each of another seed."""
    by_seed: dict[int, Path] = {}
    first = next(iter(files))
    for path, metrics in files.items():
        _check_file(path, metrics, row, protocol)
        if metrics["run"] != files[first]["run"]:
            raise PipelineError(
                f"row {row} mixes runs: {path} is of {metrics['run']}, {first} of {files[first]['run']}"
            )
        other = by_seed.setdefault(metrics["seed"], path)
        if other != path:
            raise PipelineError(f"row {row}: {path} and {other} are both of seed {metrics['seed']}")


def _check_file(path: Path, metrics: Mapping[str, Any], row: Row, protocol: str) -> None:
    missing = [name for name in ("run", "seed", "target", "protocols", *TEST_SET) if name not in metrics]
    if missing:
        raise PipelineError(f"{path}: holds no {', '.join(missing)}; make it with the stage evaluate")
    if metrics["target"] != row.target:
        raise PipelineError(f"{path}: is of the target {metrics['target']}, but row {row} is of {row.target}")
    if protocol not in metrics["protocols"]:
        raise PipelineError(f"{path}: has no protocol {protocol!r}, only {', '.join(metrics['protocols'])}")
    found = metrics["protocols"][protocol]
    for name in figures_of(protocol):
        if not isinstance(found.get(name), int | float) or not math.isfinite(found[name]):
            raise PipelineError(f"{path}: {protocol} {name} is {found.get(name)}, expected a number; evaluate it again")


def test_set_of(metrics: Mapping[str, Any], protocol: str) -> TestSet:
    """Return what a protocol evaluates on, from the contents of a metrics.json that has it."""
    test_set = TestSet(**{name: metrics[name] for name in TEST_SET})
    if protocol == DCASE2025:
        found = metrics["relevance"]
        return replace(test_set, n_queries=found["queries"], relevance=found["sha256"], note=found["note"])
    if protocol == MOMENTS:
        found = metrics["moments"]
        counts = {"n_text": found["queries"], "n_audio": found["recordings"], "n_audio_expected": None}
        return replace(test_set, **counts, windows=found["windows"], note=found["note"])
    return test_set


def mark_significant(table: Table, comparisons: Mapping[Row, Mapping[str, Comparison]]) -> Table:
    """Return the table with its significant differences from finetune marked."""
    lines = []
    for line in table.lines:
        compared = comparisons.get(line.row, {})
        significant = frozenset(name for name, found in compared.items() if found.is_significant)
        lines.append(replace(line, significant=significant))
    return replace(table, lines=lines, has_marks=bool(comparisons))


def number(value: float) -> str:
    """Return a figure or its standard deviation in percent, as written in every output."""
    return f"{value:.2f}"
