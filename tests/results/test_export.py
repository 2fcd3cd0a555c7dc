"""Exported runs load in any folder and describe themselves; an incomplete run is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline.__main__ import main
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.files import read_json
from pipeline.models import load_model
from pipeline.results.export import export_run
from pipeline.stages import embed, evaluate, train


@pytest.fixture(scope="module")
def run(tiny_study, tmp_path_factory):
    """results/runs/birds/seed0, trained and evaluated."""
    results = tmp_path_factory.mktemp("export") / "results"
    run, evaluation = results / "runs" / "birds" / "seed0", results / "evaluations" / "birds" / "seed0" / "labeled"
    words = ["--pretrained", tiny_study.pretrained, "--pairs", tiny_study.pairs("composed"), "--shards"]
    words += [tiny_study.shards, "--seed", 0, "--out", run, "--objective", "composed", "--conjunction", " and "]
    train.main(list(map(str, words)))
    words = ["--model", run, "--shards", tiny_study.shards / "labeled" / "train", "--windows", "mean"]
    embed.main(list(map(str, [*words, "--embeddings", evaluation / "embeddings.npz"])))
    words = ["--embeddings", evaluation / "embeddings.npz", "--run", "birds", "--seed", 0, "--target", "labeled"]
    words += ["--split", "train", "--metrics", evaluation / "metrics.json", "--ranks", evaluation / "ranks.parquet"]
    words += ["--contributions", evaluation / "contributions.parquet"]
    evaluate.main(list(map(str, words)))
    shutil.copytree(tiny_study.folder / "catalogs", results / "catalogs")
    return run


def test_an_exported_folder_loads_to_the_same_model(run, tmp_path, capsys):
    main(["export", str(run), "--to", str(tmp_path / "a" / "birds")])
    folder = tmp_path / "a" / "birds"
    names = ["README.md", "learning_curves.svg", "model.json", "model.safetensors", "tokenizer.json", "training.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [str(folder / name) for name in names]
    before, after = load_model(run), load_model(folder)
    assert after.a2t is not None
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert torch.equal(before.encode_text(["a dog barks"]), after.encode_text(["a dog barks"]))


def test_the_card_has_data_method_settings_and_figures(run, tmp_path):
    export_run(run, tmp_path / "birds")
    card = (tmp_path / "birds" / "README.md").read_text()
    _, _, body = card.split("---\n", 2)
    assert "# birds seed0" in body and "Eq. (18)" in body
    assert "| labeled/train | clips and captions | raw files of this dataset |" in body
    assert "| unlabeled/train | audio only | raw files of this dataset |" in body
    assert "2 epochs, 6 steps of 8 clips, seed 0" in body
    assert '| conjunction | `" and "` |' in body
    assert '| captions_per_clip | `"one"` |' in body and '| partners | `"each_epoch"` |' in body
    assert "2.56 s of mono audio (the mean of the channels) at 16,000 Hz; a shorter sound is repeated. Its" in body
    metrics = read_json(run.parents[2] / "evaluations/birds/seed0/labeled/metrics.json")
    cells = " | ".join(f"{metrics['protocols']['dcase'][name]:.1f}" for name in FIGURES)
    assert f"| labeled/train | 48, 24 | dcase | {cells} |" in body
    assert "Komatsu" in body


def test_the_card_shows_figures_of_every_protocol(run, tmp_path):
    results = Path(shutil.copytree(run.parents[2], tmp_path / "results"))
    path = results / "evaluations/birds/seed0/labeled/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["protocols"]["dcase2025"] = dict.fromkeys(("t2a_R1", "t2a_R5", "t2a_R10", "t2a_mAP10", "t2a_mAP16"), 12.3)
    metrics.pop("contents_sha256", None)
    path.write_text(json.dumps(metrics))
    export_run(results / "runs" / "birds" / "seed0", tmp_path / "birds")
    card = (tmp_path / "birds" / "README.md").read_text()
    assert "| a2t_mAP10 | t2a_mAP16 |" in card
    assert f"| dcase2025 | {' | '.join(['12.3'] * 4 + ['-'] * 4 + ['12.3'])} |" in card


def test_the_lines_of_the_card_run_on_a_file_of_any_rate_and_length(run, tmp_path, monkeypatch, capsys):
    import numpy as np
    import soundfile

    export_run(run, tmp_path / "birds")
    card = (tmp_path / "birds" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "birds"))
    monkeypatch.chdir(tmp_path)
    soundfile.write("file.wav", np.random.default_rng(0).normal(0, 0.1, (30_000, 2)), 44_100)
    exec(code, {})
    assert capsys.readouterr().out.startswith("[[")
    assert len(code.splitlines()) == 6


def test_the_card_describes_the_input_of_a_model_with_other_settings(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "run"))
    for name, entries in (
        ("model.json", {"short_clips": "pad", "channels": "first"}),
        ("training.json", {"data": {**read_json(run / "training.json")["data"], "partners": "fixed"}}),
    ):
        (other / name).write_text(json.dumps({**read_json(run / name), **entries}))
    export_run(other, tmp_path / "birds")
    card = (tmp_path / "birds" / "README.md").read_text()
    assert "(the first channel) at 16,000 Hz; a shorter sound is followed by silence." in card
    assert '| partners | `"fixed"` |' in card


def card_of(run, tmp_path):
    """Front matter and body of the run's card."""
    export_run(run, tmp_path / "exported")
    _, header, body = (tmp_path / "exported" / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def generate(results, *datasets):
    """Make the clips of datasets come from the small study."""
    for dataset in datasets:
        catalog = results / "catalogs" / dataset / "train.parquet"
        table = pq.read_table(catalog)
        paths = [f"results/raw/clotho/{name}" for name in table["source_name"].to_pylist()]
        place = table.column_names.index("path")
        pq.write_table(table.set_column(place, table.schema.field("path"), [paths]), catalog)


def pretrain(results, run, dataset):
    """Record that the small model was pretrained on a dataset."""
    account = read_json(run / "training.json")
    account["data"]["labeled"] = {f"results/shards/{dataset}/train": "0"}
    (results / "pretrained" / "mini").mkdir(parents=True)
    (results / "pretrained" / "mini" / "training.json").write_text(json.dumps(account))


@pytest.fixture
def results(run, tmp_path):
    """A copy of the folder `results`."""
    return Path(shutil.copytree(run.parents[2], tmp_path / "results"))


def test_the_card_of_a_users_run_asks_for_licences_and_names_none(run, tmp_path):
    header, body = card_of(run, tmp_path)
    assert header["license"] == "other" and "CC BY" not in body and "oundscape" not in body
    assert "The licences of these datasets are not recorded: labeled/train, unlabeled/train." in body


def test_the_card_of_a_users_run_states_that_mini_knows_only_the_small_study(run, tmp_path):
    _, body = card_of(run, tmp_path)
    assert "before this training it knew nothing but that study's sounds" in body


def test_a_card_of_the_small_study_names_its_licence(run, tmp_path, results):
    generate(results, "labeled", "unlabeled")
    header, body = card_of(results / "runs" / "birds" / "seed0", tmp_path)
    assert header["license"] == "cc-by-sa-4.0"
    assert "| unlabeled/train | audio only | soundscapes of the small study, in this dataset's layout |" in body
    assert "CC BY-SA 4.0" in body and "not recorded" not in body and "knew nothing but" not in body


def test_a_card_of_own_pairs_with_soundscapes_names_both(run, tmp_path, results):
    generate(results, "unlabeled")
    header, body = card_of(results / "runs" / "birds" / "seed0", tmp_path)
    assert header["license"] == "other"
    assert "| labeled/train | clips and captions | raw files of this dataset |" in body
    assert "not recorded: labeled/train." in body and "CC BY-SA 4.0" in body


def test_a_card_lists_what_mini_was_pretrained_on(run, tmp_path, results):
    pretrain(results, run, "labeled")
    _, body = card_of(results / "runs" / "birds" / "seed0", tmp_path)
    assert "| labeled/train | clips and captions, in pretraining | raw files of this dataset |" in body
    assert "trained from random weights on labeled/train, and knows no other sounds" in body


def test_a_run_without_evaluations_is_exported_without_figures(run, tmp_path):
    shutil.copytree(run, tmp_path / "alone")
    export_run(tmp_path / "alone", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "No evaluation of the run was at hand" in card
        and "| labeled/train | clips and captions | not recorded |" in card
    )


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("one", "two"):
        export_run(run, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: shutil.rmtree(run), "seed0: not found; give the folder of a trained run"),
        (lambda run: [path.unlink() for path in run.glob("training*")], "not a run, it holds no training log"),
        (lambda run: (run / "checkpoints").mkdir(), "the training is not finished"),
        (lambda run: (run / "model.json").unlink(), "it lacks model.json; run the training again"),
        (
            lambda run: (run / "model.safetensors").write_bytes(b"x"),
            "model.safetensors: is damaged",
        ),
    ],
)
def test_an_incomplete_run_is_refused_with_the_reason(run, tmp_path, change, message):
    copy = tmp_path / "results" / "runs" / "birds" / "seed0"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tensorboard"))
    change(copy)
    with pytest.raises(PipelineError, match=message):
        export_run(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_a_killed_export_left_is_removed(run, tmp_path):
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_target_that_is_not_empty_stays_unchanged(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(PipelineError, match="out: exists already and is not an empty folder"):
        export_run(run, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").unlink()
    assert len(export_run(run, tmp_path / "out")) == 6
    assert sys.platform == "win32" or (tmp_path / "out").stat().st_mode & 0o777 == 0o755
