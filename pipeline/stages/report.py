"""Write the page of a study: tables, curves, data accounts and the retrieved clips of every run."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_PROTOCOLS
from pipeline.files import write_atomically
from pipeline.results import plots
from pipeline.results.page.contents import (
    Evaluation,
    by_target,
    read_account,
    read_evaluation,
    read_leaked,
    read_losses,
    read_test_set,
    retrieved,
)
from pipeline.results.page.pools import PagePool, read_pools
from pipeline.results.page.render import render_data, render_page
from pipeline.results.page.sections import curve_plot, difference_plots, read_table, recall_plots
from pipeline.stages import run

logger = logging.getLogger(__name__)


EXCERPT_S = 10
"""Length of the sound of a dot that is no test clip."""


def write_audio(reader: ShardReader, keys: Iterable[str], folder: Path, most_s: float = math.inf) -> None:
    """Write each clip, or its first `most_s` seconds, as `KEY.mp3`, which every browser plays.

    index.html is written after the clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key in keys:
        frames = int(min(reader.frames(key), most_s * reader.sample_rate_hz))
        samples_S = reader.read_window(key, 0, frames)
        with write_atomically(folder / f"{key}.mp3") as temporary:
            soundfile.write(temporary, samples_S, reader.sample_rate_hz, format="MP3")


def write_answers(
    targets: Mapping[str, Sequence[Evaluation]], folders: Mapping[tuple[str, str], Path], audio: Path
) -> dict[str, Any]:
    """Write the clips of every target to `audio`; return the data that the browser shows per target.

    Raises:
        PipelineError: `folders`, from (dataset, split) to shards, lacks the split of a target.
    """
    answers = {}
    for target, group in targets.items():
        test_set = read_test_set(group)
        folder = folders.get((target, test_set.split))
        if folder is None:
            raise PipelineError(f"{target}/{test_set.split} was evaluated, but its manifest.json is not in --summaries")
        answers[target] = retrieved(group, test_set)
        write_audio(open_shards(folder, verify=True), test_set.keys, audio)
    return answers


def write_maps(
    pools: Sequence[PagePool], folders: Mapping[tuple[str, str], Path], audio: Path, written: Iterable[str]
) -> dict[str, Any]:
    """Write the sounds of all dots to `audio`; return the maps by name.

    folders: from (dataset, split) to shards.
    written: keys of the clips that are there already, whole.

    Raises:
        PipelineError: `folders` lacks the split of a dot, or the split lacks its clip.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for pool in pools:
        for row in pool.dots.select(["dataset", "split", "key"]).to_pylist():
            wanted.setdefault((row["dataset"], row["split"]), set()).add(row["key"])
    for split, keys in wanted.items():
        if split not in folders:
            raise PipelineError(f"{'/'.join(split)} is on a map, but its manifest.json is not in --summaries")
        write_audio(open_shards(folders[split], verify=True), sorted(keys.difference(written)), audio, EXCERPT_S)
    return {pool.name: pool.data() for pool in pools}


def contents(args: argparse.Namespace, targets: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    """Return the variables of page.html."""
    losses = {path.parent.parent.name: read_losses(path) for path in args.logs}
    colours = plots.colours_of([*losses, *(evaluation.run for group in targets.values() for evaluation in group)])
    leaked = read_leaked(args.logs)
    return {
        "name": args.name,
        "note": args.note,
        "protocol": args.protocol,
        "tables": [read_table(path) for path in args.tables],
        "differences": [plot for path in args.comparisons for plot in difference_plots(path)],
        "curves": [curve_plot(path) for path in args.curves],
        "recall": recall_plots(targets, args.protocol, colours),
        "learning": plots.learning_curves(losses, colours) if losses else "",
        "accounts": [read_account(path, leaked) for path in args.summaries],
        "pools": read_pools(args.pools),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the study")
    parser.add_argument("--note", required=True, help="note on the study's figures")
    parser.add_argument("--protocol", choices=ALL_PROTOCOLS, required=True)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="CSV files of tabulate")
    parser.add_argument("--comparisons", type=Path, nargs="*", default=[], help="CSV files of compare")
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="CSV files of draw_curves")
    parser.add_argument("--evaluations", type=Path, nargs="+", required=True, help="folders of embed and evaluate")
    parser.add_argument(
        "--logs", type=Path, nargs="*", default=[], help="RUN/SEED/training.parquet of trained runs, with training.json"
    )
    parser.add_argument("--summaries", type=Path, nargs="+", required=True, help="manifest.json of every split used")
    parser.add_argument("--pools", type=Path, nargs="*", default=[], help="folders of describe_pool")
    parser.add_argument("--out", type=Path, required=True, help="folder to write index.html, data.js and audio/ to")
    args = parser.parse_args(argv)

    targets = by_target(map(read_evaluation, args.evaluations))
    page = contents(args, targets)
    folders = {
        (account.dataset, account.split): path.parent
        for account, path in zip(page["accounts"], args.summaries, strict=True)
    }
    answers = write_answers(targets, folders, args.out / "audio")
    written = {key for answer in answers.values() for key in answer["keys"]}
    maps = write_maps(page["pools"], folders, args.out / "audio", written)
    for name, text in (("data.js", render_data(answers, maps)), ("index.html", render_page(page))):
        with write_atomically(args.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    logger.info("%s: %d targets, %d evaluations", args.out / "index.html", len(targets), len(args.evaluations))


if __name__ == "__main__":
    run(main)
