"""Write the page that shows a study: tables, curves, data accounts, and every run's answers, to see and to hear."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, PROTOCOLS
from pipeline.files import write_atomically
from pipeline.results import plots
from pipeline.results.comparisons import Comparison, read_comparisons
from pipeline.results.curves import AXES, SHOWN, read_points
from pipeline.results.page.contents import (
    Evaluation,
    by_target,
    read_account,
    read_evaluation,
    read_losses,
    read_test_set,
    recall_at,
    retrieved,
)
from pipeline.results.page.render import render_data, render_page
from pipeline.stages import run

logger = logging.getLogger(__name__)

DEPTH = 50
"""Of the recall curves."""
DIFFERENCES = {"t2a_mAP10": "text → audio mAP@10", "a2t_mAP10": "audio → text mAP@10"}
DIRECTIONS = {"t2a": "text → audio", "a2t": "audio → text"}


def read_rows(path: Path) -> dict[str, Any]:
    """A table's CSV as the template takes it: columns, and cells with whether they are numbers, and a target's best."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as CSV ({error}); make it with tabulate") from error
    figures = [name for name in table if name in FIGURES]
    values = table[figures].apply(pd.to_numeric, errors="coerce")
    is_best = (values == values.groupby(table["target"]).transform("max")).reindex(
        columns=table.columns, fill_value=False
    )
    rows = [
        [
            {"text": text, "is_number": text.replace(".", "", 1).isdigit(), "is_best": best}
            for text, best in zip(row, marks, strict=True)
        ]
        for row, marks in zip(table.to_numpy().tolist(), is_best.to_numpy(bool).tolist(), strict=True)
    ]
    return {"name": path.stem, "columns": list(table.columns), "rows": rows}


def write_audio(reader: ShardReader, keys: Iterable[str], folder: Path) -> None:
    """Write each clip as `KEY.mp3`, which every browser plays; not synced one by one, for index.html comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in keys:
        samples_S = reader.read_window(key, 0, reader.frames(key))
        soundfile.write(folder / f"{key}.mp3", samples_S, reader.sample_rate_hz)


def difference_plots(path: Path) -> list[dict[str, str]]:
    """The differences from finetune of a table's rows, a plot a target."""
    targets: dict[str, dict[str, dict[str, Comparison]]] = {}
    compared = read_comparisons(path)
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    datasets = header[header.index("method") + 1 : header.index("label")]
    for row, figures in compared.items():
        target, method, *rest = row.split("|", 2 + len(datasets))
        cells, label = rest[: len(datasets)], rest[len(datasets) :]
        used = [f"{name} {cell}" for name, cell in zip(datasets, cells, strict=True) if cell != "-"]
        targets.setdefault(target, {})["\n".join(filter(None, [": ".join([method, *label]), ", ".join(used)]))] = (
            figures
        )
    return [
        {"table": path.stem, "target": target, "svg": plots.differences(rows, DIFFERENCES)}
        for target, rows in targets.items()
    ]


def curve_plot(path: Path) -> dict[str, str]:
    """R@1 against the amount of training data."""
    points, axis = read_points(path)
    return {"name": path.stem, "axis": AXES[axis], "svg": plots.data_curves(points, axis, AXES, SHOWN)}


def recall_plots(
    targets: Mapping[str, Sequence[Evaluation]], protocol: str, colours: Mapping[str, str]
) -> list[dict[str, str]]:
    """A pair of recall curves a target."""
    return [
        {
            "target": target,
            "svg": plots.recall_curves(
                {title: recall_at(group, name, protocol, DEPTH) for name, title in DIRECTIONS.items()}, colours
            ),
        }
        for target, group in targets.items()
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the study")
    parser.add_argument("--note", required=True, help="what the study says of its figures")
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="CSV files of tabulate")
    parser.add_argument("--comparisons", type=Path, nargs="*", default=[], help="CSV files of compare")
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="CSV files of draw_curves")
    parser.add_argument("--evaluations", type=Path, nargs="+", required=True, help="folders of embed and evaluate")
    parser.add_argument("--logs", type=Path, nargs="*", default=[], help="RUN/SEED/training.parquet of trained runs")
    parser.add_argument("--summaries", type=Path, nargs="+", required=True, help="manifest.json of every split used")
    parser.add_argument("--out", type=Path, required=True, help="folder to write index.html, data.js and audio/ to")
    args = parser.parse_args(argv)

    targets = by_target(map(read_evaluation, args.evaluations))
    accounts = [read_account(path) for path in args.summaries]
    folders = {
        (account["dataset"], account["split"]): path.parent
        for account, path in zip(accounts, args.summaries, strict=True)
    }
    data = {}
    for target, group in targets.items():
        test_set = read_test_set(group)
        folder = folders.get((target, test_set.split))
        if folder is None:
            raise PipelineError(f"{target}/{test_set.split} was evaluated, but its manifest.json is not in --summaries")
        data[target] = retrieved(group, test_set)
        write_audio(open_shards(folder), test_set.keys, args.out / "audio")
    losses = {path.parent.parent.name: read_losses(path) for path in args.logs}
    colours = plots.colours_of([*losses, *(evaluation.run for group in targets.values() for evaluation in group)])
    page = render_page(
        {
            "name": args.name,
            "note": args.note,
            "protocol": args.protocol,
            "tables": [read_rows(path) for path in args.tables],
            "differences": [plot for path in args.comparisons for plot in difference_plots(path)],
            "curves": [curve_plot(path) for path in args.curves],
            "recall": recall_plots(targets, args.protocol, colours),
            "learning": plots.learning_curves(losses, colours) if losses else "",
            "accounts": accounts,
        }
    )
    for name, text in (("data.js", render_data(data)), ("index.html", page)):
        with write_atomically(args.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    logger.info("%s: %d targets, %d evaluations", args.out / "index.html", len(targets), len(args.evaluations))


if __name__ == "__main__":
    run(main)
