"""The rule by which the sweep chooses, its standard errors, and candidates that diverged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.results.comparisons import CONTRIBUTIONS, FOOTER
from pipeline.stages import choose_settings

CLIPS = 40


def candidate(folder, name, run, target, t2a, a2t, seed=0, clips=CLIPS):
    """Write an evaluation whose mAP@10 is `t2a` and `a2t` percent: that share of its clips is found first."""
    here = folder / name / run / f"seed{seed}" / target
    here.mkdir(parents=True)
    first = {"t2a_mAP10": t2a, "a2t_mAP10": a2t}
    found = {f: (np.arange(clips) < clips * first.get(f, 0) / 100).astype(float) for f in FIGURES}
    columns = {
        "protocol": ["paper"] * clips,
        "key": [f"clip{i}" for i in range(clips)],
        "captions": np.ones(clips, int),
        **found,
    }
    identity = {"run": run, "seed": seed, "target": target, "split": "validation", "windows": "mean"}
    table = pa.table(columns, schema=CONTRIBUTIONS).replace_schema_metadata({FOOTER: json.dumps(identity)})
    write_parquet(table, here / "contributions.parquet")
    (here / "metrics.json").write_text(json.dumps({"run": run, "protocols": {"paper": first}}))
    return str(here)


def diverged(folder, name, run, target, sentence, seed=0):
    here = folder / name / run / f"seed{seed}" / target
    here.mkdir(parents=True)
    (here / "metrics.json").write_text(json.dumps({"run": run, "diverged": sentence}))
    return str(here)


def chosen(folder, evaluations):
    paths = [folder / "sweep.csv", folder / "sweep.yaml"]
    choose_settings.main(
        ["--evaluations", *evaluations, "--protocol", "paper", "--csv", str(paths[0]), "--yaml", str(paths[1])]
    )
    return pd.read_csv(paths[0]), yaml.safe_load(paths[1].read_text())["runs"]


def test_the_highest_mean_over_directions_and_targets_is_chosen_and_ties_go_to_the_first(tmp_path):
    table, runs = chosen(
        tmp_path,
        [
            candidate(tmp_path, "learning_rate=0.0001", "both", "clotho", 40, 40),
            candidate(tmp_path, "learning_rate=0.0001", "both", "audiocaps", 0, 10),
            candidate(tmp_path, "learning_rate=0.0001", "tied", "clotho", 5, 15),
            candidate(tmp_path, "learning_rate=0.001", "both", "clotho", 10, 20),
            candidate(tmp_path, "learning_rate=0.001", "both", "audiocaps", 30, 40),
            candidate(tmp_path, "learning_rate=0.001", "tied", "clotho", 10, 10),
        ],
    )
    assert table[["run", "learning_rate", "targets", "mAP10", "chosen"]].values.tolist() == [
        ["both", 0.001, "audiocaps+clotho", 25.0, True],
        ["both", 0.0001, "audiocaps+clotho", 22.5, False],
        ["tied", 0.0001, "clotho", 10.0, True],
        ["tied", 0.001, "clotho", 10.0, False],
    ]
    assert runs == {"both": {"settings": {"learning_rate": 0.001}}, "tied": {"settings": {"learning_rate": 0.0001}}}


def test_seeds_are_averaged(tmp_path):
    figures = {"a=1": [(10, 10), (30, 30)], "a=2": [(15, 15), (15, 15)]}
    evaluations = [
        candidate(tmp_path, name, "run", "clotho", *figure, seed=seed)
        for name, of_seeds in figures.items()
        for seed, figure in enumerate(of_seeds)
    ]
    table, _ = chosen(tmp_path, evaluations)
    assert table[["a", "mAP10"]].values.tolist() == [[1, 20.0], [2, 15.0]]


def test_standard_errors_are_of_a_mean_over_clips(tmp_path):
    """Both directions find the same share p of n clips: sqrt(p (1 - p) / n), here to 10 %, as of a bootstrap."""
    table, _ = chosen(
        tmp_path,
        [
            candidate(tmp_path, "a=1", "run", "clotho", 30, 30, clips=400),
            candidate(tmp_path, "a=2", "run", "clotho", 20, 20, clips=400),
        ],
    )
    assert table["standard_error"].tolist() == pytest.approx(
        [100 * np.sqrt(0.3 * 0.7 / 400), 100 * np.sqrt(0.2 * 0.8 / 400)], rel=0.1
    )
    assert table["difference"].tolist() == [0, -10]
    assert table["difference_error"].tolist() == pytest.approx([0, 100 * np.sqrt(0.1 * 0.9 / 400)], rel=0.1)


def test_a_candidate_that_diverged_is_listed_with_its_reason_and_never_chosen(tmp_path):
    sentence = "step 3: the loss is nan"
    evaluations = [diverged(tmp_path, "learning_rate=1.0", "run", target, sentence) for target in ("clotho", "caps")]
    table, _ = chosen(tmp_path, [*evaluations, candidate(tmp_path, "learning_rate=0.001", "run", "clotho", 0, 0)])
    assert table["chosen"].tolist() == [True, False]
    assert table["diverged"].fillna("").tolist() == ["", sentence]
    assert table["mAP10"].isna().tolist() == [False, True]


def test_a_candidate_of_which_one_seed_diverged_is_never_chosen(tmp_path):
    evaluations = [
        candidate(tmp_path, "a=1", "run", "clotho", 90, 90, seed=0),
        diverged(tmp_path, "a=1", "run", "clotho", "step 3: the loss is nan", seed=1),
        *(candidate(tmp_path, "a=2", "run", "clotho", 1, 1, seed=seed) for seed in (0, 1)),
    ]
    table, _ = chosen(tmp_path, evaluations)
    assert table["a"].tolist() == [2, 1]


def test_an_objective_without_unlabeled_audio_leaves_it_out_in_the_yaml(tmp_path):
    evaluations = [
        candidate(tmp_path, "objective=finetune,learning_rate=0.1", "run", "clotho", 20, 20),
        candidate(tmp_path, "objective=composed,learning_rate=0.1", "run", "clotho", 10, 10),
    ]
    _, runs = chosen(tmp_path, evaluations)
    entry = {"objective": "finetune", "unlabeled": None, "unlabeled_fraction": None, "settings": {"learning_rate": 0.1}}
    assert runs == {"run": entry}


def test_a_run_all_of_whose_candidates_diverged_is_named(tmp_path):
    evaluations = [diverged(tmp_path, f"a={rate}", "lost", "clotho", "step 1: the loss is nan") for rate in (1, 2)]
    with pytest.raises(PipelineError, match="every training of the sweep diverged for lost; add lower rates"):
        chosen(tmp_path, [candidate(tmp_path, "a=1", "run", "clotho", 1, 1), *evaluations])
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": "run", "target": "clotho"}'])
def test_damaged_metrics_are_named(tmp_path, text):
    folder = tmp_path / "a=1" / "run" / "seed0" / "clotho"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(text)
    with pytest.raises(PipelineError, match=r"clotho/metrics\.json: "):
        chosen(tmp_path, [str(folder)])


def test_another_folder_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"runs/x/seed0/clotho: is not the folder CANDIDATE/RUN/seedN/TARGET"):
        chosen(tmp_path, [str(tmp_path / "runs" / "x" / "seed0" / "clotho")])
