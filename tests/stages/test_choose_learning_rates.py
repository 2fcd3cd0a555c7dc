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


def diverged(folder, rate, run, target, sentence):
    path = folder / rate / run / target / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"run": run, "target": target, "split": "validation", "diverged": sentence}))
    return str(path)


def chosen(folder, metrics):
    csv = folder / "sweep.csv"
    choose_learning_rates.main(["--metrics", *metrics, "--protocol", "paper", "--csv", str(csv)])
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
    sentence = "step 3: the loss is nan"
    metrics = [candidate(tmp_path, "0.001", "run", "clotho", 0, 0)]
    metrics += [diverged(tmp_path, "1.0", "run", target, sentence) for target in ("clotho", "audiocaps")]
    table = chosen(tmp_path, metrics)
    assert table["chosen"].tolist() == [True, False]
    assert table["diverged"].fillna("").tolist() == ["", sentence]
    assert table["mAP10"].isna().tolist() == [False, True]


def test_csv_of_a_sweep_with_a_divergence_has_these_bytes(tmp_path):
    metrics = [
        diverged(tmp_path, "1.0", "run", "clotho", "step 3: the loss is nan"),
        candidate(tmp_path, "0.001", "run", "clotho", 10, 20),
    ]
    chosen(tmp_path, metrics)
    assert (tmp_path / "sweep.csv").read_text() == (
        "run,learning_rate,targets,mAP10,chosen,diverged\n"
        "run,0.001,clotho,15,True,\n"
        "run,1,,,False,step 3: the loss is nan\n"
    )


def test_a_run_all_of_whose_candidates_diverged_is_named(tmp_path):
    metrics = [diverged(tmp_path, rate, "lost", "clotho", "step 1: the loss is nan") for rate in ("1.0", "2.0")]
    with pytest.raises(PipelineError, match="every training of the sweep diverged for lost; add lower rates"):
        chosen(tmp_path, [candidate(tmp_path, "1.0", "run", "clotho", 1, 1), *metrics])
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": "run", "target": "clotho"}'])
def test_damaged_metrics_are_named(tmp_path, text):
    path = tmp_path / "0.1" / "run" / "clotho" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"clotho/metrics\.json: "):
        chosen(tmp_path, [str(path)])
