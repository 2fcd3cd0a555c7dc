"""The rule by which the sweep chooses, and what becomes of candidates that diverged."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.stages import choose_learning_rates


def candidate(folder, rate, run, target, t2a, a2t):
    path = folder / rate / run / target / "metrics.json"
    path.parent.mkdir(parents=True)
    figures = {"t2a_mAP10": t2a, "a2t_mAP10": a2t}
    path.write_text(json.dumps({"run": run, "target": target, "split": "validation", "protocols": {"paper": figures}}))
    return str(path)


def outcome(folder, rate, run, text):
    path = folder / rate / run / "outcome.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return str(path)


def chosen(folder, metrics, diverged=()):
    csv = folder / "sweep.csv"
    arguments = ["--metrics", *metrics, "--diverged", *diverged, "--protocol", "paper", "--csv", str(csv)]
    choose_learning_rates.main(arguments)
    return pd.read_csv(csv)


def test_the_highest_mean_over_directions_and_targets_is_chosen_and_ties_go_to_the_lower_rate(tmp_path):
    metrics = [
        candidate(tmp_path, "0.001", "both", "clotho", 10, 20),
        candidate(tmp_path, "0.001", "both", "audiocaps", 30, 40),
        candidate(tmp_path, "0.0001", "both", "clotho", 40, 40),
        candidate(tmp_path, "0.0001", "both", "audiocaps", 0, 10),
        candidate(tmp_path, "0.001", "tied", "clotho", 10, 10),
        candidate(tmp_path, "0.0001", "tied", "clotho", 5, 15),
    ]
    table = chosen(tmp_path, metrics)
    assert table[["run", "learning_rate", "mAP10", "chosen"]].values.tolist() == [
        ["both", 0.0001, 22.5, False],
        ["both", 0.001, 25.0, True],
        ["tied", 0.0001, 10.0, True],
        ["tied", 0.001, 10.0, False],
    ]


def test_a_candidate_that_diverged_is_listed_with_its_reason_and_never_chosen(tmp_path):
    metrics = [candidate(tmp_path, "0.001", "run", "clotho", 0, 0)]
    table = chosen(tmp_path, metrics, [outcome(tmp_path, "1.0", "run", "step 3: the loss is nan")])
    assert table["chosen"].tolist() == [True, False]
    assert table["diverged"].fillna("").tolist() == ["", "step 3: the loss is nan"]
    assert table["mAP10"].isna().tolist() == [False, True]


def test_a_run_all_of_whose_candidates_diverged_is_named(tmp_path):
    diverged = [outcome(tmp_path, rate, "lost", "step 1: the loss is nan") for rate in ("1.0", "2.0")]
    with pytest.raises(PipelineError, match="every training of the sweep diverged for lost; add lower rates"):
        chosen(tmp_path, [candidate(tmp_path, "1.0", "run", "clotho", 1, 1)], diverged)
