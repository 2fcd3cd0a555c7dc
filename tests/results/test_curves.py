"""Pairs files and contributions in, a curve over the amount of training data out."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from pipeline.data.pairs import SCHEMA, write_pairs
from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import figures, intervals
from pipeline.evaluation.ranking import rank_embeddings
from pipeline.files import sha256_of
from pipeline.results.comparisons import contributions_table
from pipeline.results.plots import data_curves
from pipeline.stages import draw_curves

CLIPS, CAPTIONS, WIDTH = 60, 3, 16
AUDIO_OF_TEXT = np.repeat(np.arange(CLIPS), CAPTIONS)


def ranked(noise: float, seed: int = 0):
    """The retrieval of a model whose text embeddings are its clips' with noise."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(size=(CLIPS, WIDTH))
    text = audio[AUDIO_OF_TEXT] + noise * generator.normal(size=(len(AUDIO_OF_TEXT), WIDTH))
    return rank_embeddings(text, audio, AUDIO_OF_TEXT)


def write_point(folder: Path, run: str, noise: float, *, seeds=(0,), **sizes) -> list[str]:
    """Pairs file and contributions of a run for every seed."""
    files = []
    for seed in seeds:
        pairs = folder / f"{run}_{seed}.pairs.parquet"
        write_pairs(
            iter([SCHEMA.empty_table()]),
            pairs,
            {"labeled_clips": 100, "labeled_captions": 500, "unlabeled_s": 0.0, **sizes},
        )
        facts = {"run": run, "seed": seed, "target": "clotho", "split": "test", "windows": "mean"}
        table = contributions_table(ranked(noise, seed), [f"clip_{clip}" for clip in range(CLIPS)], facts)
        contributions = folder / f"{run}_{seed}.parquet"
        write_parquet(table, contributions)
        files += [str(pairs), str(contributions)]
    return files


def draw(folder: Path, points: list[list[str]], against: str = "labeled_clips", samples: int = 1000):
    """The CSV's rows and the SVG of a curve."""
    flags = [word for point in points for word in ("--point", *point)]
    outputs = folder / "curve.csv", folder / "curve.svg"
    draw_curves.main(
        [*flags, "--against", against, "--protocol", "paper", "--samples", str(samples)]
        + ["--csv", str(outputs[0]), "--svg", str(outputs[1])]
    )
    return list(csv.DictReader(outputs[0].open())), outputs[1].read_text()


def two_lines(folder: Path) -> list[list[str]]:
    """Finetune and composed at 50 and 100 clips; composed is far better at 100 and the same at 50."""
    return [
        ["finetune", *write_point(folder, "finetune_half", 1.5, labeled_clips=50)],
        ["finetune", *write_point(folder, "finetune", 1.5)],
        ["composed", *write_point(folder, "composed_half", 1.5, labeled_clips=50)],
        ["composed", *write_point(folder, "composed", 0.4)],
    ]


def test_points_have_the_figures_and_intervals_of_their_evaluations(tmp_path):
    rows, _ = draw(tmp_path, two_lines(tmp_path))
    places = [("finetune", "50"), ("finetune", "100"), ("composed", "50"), ("composed", "100")]
    assert [(row["line"], row["labeled_clips"]) for row in rows[::2]] == places
    assert [row["figure"] for row in rows] == ["t2a_R1", "a2t_R1"] * 4
    expected, interval = figures(ranked(0.4), "paper"), intervals(ranked(0.4), "paper")
    for row in rows[-2:]:
        low, high = interval[row["figure"]]
        assert float(row["value"]) == pytest.approx(expected[row["figure"]], abs=0.006)
        assert (float(row["low"]), float(row["high"])) == (
            pytest.approx(low, abs=0.006),
            pytest.approx(high, abs=0.006),
        )
        assert row["sd"] == "" and row["seeds"] == "1"


def test_every_point_is_compared_with_the_first_line_at_the_same_amount(tmp_path):
    rows, _ = draw(tmp_path, two_lines(tmp_path))
    assert [row["significant"] for row in rows if row["figure"] == "t2a_R1"] == ["", "", "no", "yes"]
    half, whole = rows[4], rows[6]
    assert (half["difference"], half["p_holm"]) == ("0.00", "1.0000")
    assert float(whole["difference"]) == pytest.approx(float(whole["value"]) - float(rows[2]["value"]), abs=0.011)
    assert float(whole["p_holm"]) == pytest.approx(2 * float(whole["p"]), abs=1e-4), "Holm, of two points"


def test_a_first_line_with_one_point_is_the_baseline_of_all_others(tmp_path):
    points = [["finetune", *write_point(tmp_path, "finetune", 1.5)]]
    for run, hours in (("little", 0.5), ("much", 1.0)):
        points.append(["composed", *write_point(tmp_path, run, 0.4, unlabeled_s=3600 * hours)])
    rows, svg = draw(tmp_path, points, "unlabeled_hours")
    assert [row["unlabeled_hours"] for row in rows[::2]] == ["0", "0.5", "1"]
    assert [row["significant"] for row in rows[::2]] == ["", "yes", "yes"]
    assert svg.count("stroke-dasharray") >= 2, "across both panels"


def test_seeds_give_mean_and_deviation(tmp_path):
    rows, _ = draw(tmp_path, [["finetune", *write_point(tmp_path, "finetune", 1.0, seeds=(0, 1, 2))]])
    values = [figures(ranked(1.0, seed), "paper")["t2a_R1"] for seed in (0, 1, 2)]
    assert float(rows[0]["value"]) == pytest.approx(np.mean(values), abs=0.006)
    assert float(rows[0]["sd"]) == pytest.approx(np.std(values, ddof=1), abs=0.006)
    assert rows[0]["seeds"] == "3"


def test_same_files_give_the_same_bytes_and_a_labelled_plot(tmp_path):
    points = two_lines(tmp_path)
    _, svg = draw(tmp_path, points)
    checksums = [sha256_of(tmp_path / name) for name in ("curve.csv", "curve.svg")]
    draw(tmp_path, points)
    assert [sha256_of(tmp_path / name) for name in ("curve.csv", "curve.svg")] == checksums
    ElementTree.fromstring(svg)
    for text in ("labeled clips", "R@1 in percent", "finetune", "composed", "text → audio", "audio → text"):
        assert text in svg
    assert {"50", "100"} <= set(re.findall(r">(\d+)</text>", svg))


def test_both_panels_show_their_highest_point():
    values = [("t2a_R1", 2.0), ("a2t_R1", 47.0)]
    points = pd.DataFrame(
        [
            {"line": "composed", "figure": figure, "labeled_clips": clips, "value": value, "low": 0, "high": value + 1}
            for figure, value in values
            for clips in (48, 96)
        ]
    ).assign(significant="no")
    svg = data_curves(
        points,
        "labeled_clips",
        {"labeled_clips": "labeled clips"},
        {"t2a_R1": "text to audio", "a2t_R1": "audio to text"},
    )
    assert "40" in re.findall(r">(\d+)</text>", svg), "ticks of the axis that both share"


def test_files_that_do_not_match_are_refused(tmp_path):
    one = write_point(tmp_path, "one", 1.0)
    with pytest.raises(PipelineError, match="line finetune: 1 files; give a pairs file and a contributions file"):
        draw(tmp_path, [["finetune", one[0]]])
    other = write_point(tmp_path, "other", 1.0)
    with pytest.raises(PipelineError, match="the runs one and other both have 100 labeled clips"):
        draw(tmp_path, [["finetune", *one], ["finetune", *other]])
    old = tmp_path / "old.pairs.parquet"
    write_pairs(iter([SCHEMA.empty_table()]), old, {"seed": 0})
    with pytest.raises(PipelineError, match=r"old\.pairs\.parquet: its footer has no labeled_clips; make it again"):
        draw(tmp_path, [["finetune", str(old), one[1]]])
    assert not (tmp_path / "curve.csv").exists()
