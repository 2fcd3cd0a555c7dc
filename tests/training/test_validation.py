"""Validation while a model is trained: its figures, the weights that are kept, the early end, kills and processes."""

from __future__ import annotations

import json
import signal
import socket

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import (
    EXACT,
    KILL_IN_STEP,
    arguments,
    assert_same_training,
    assert_same_weights,
    finish,
    launch,
    losses_of,
    stopped_in_step,
)

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.files import read_json
from pipeline.models import load_model
from pipeline.stages import embed, evaluate, train
from pipeline.training.distributed import Processes
from pipeline.training.failures import DivergedError
from pipeline.training.outputs import Origin, ValidationPlan
from pipeline.training.settings import ADDED, TrainingSettings, settings_flags
from pipeline.training.trainer import Trainer
from pipeline.training.validation import Selection, Validation

MEAN = "validation_mAP10"
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
ALL_ON = [
    "--keep=best", "--average-decay=0.9", "--max-gradient-norm=1", "--layer-decay=0.8", "--freeze=text",
    "--unfrozen-groups=2",
]  # fmt: skip


def validated(study, *flags, every=1):
    """Flags of a training that is validated on the clips of the labeled split."""
    splits = [f"--validation={study.shards / 'labeled' / 'train'}", "--validation-windows=mean"]
    return [f"--validate-every={every}", *splits, *flags]


def log_of(run):
    return pq.read_table(run / "training.parquet")


def column(run, name):
    """The rows of the log in which a column has a value: step -> value."""
    log = log_of(run)
    values = zip(log["step"].to_pylist(), log[name].to_pylist(), strict=True)
    return {step: value for step, value in values if value is not None}


def evaluated(study, run, folder):
    """The figures of a run's model by the stages that evaluate a finished run."""
    embeddings, metrics = folder / "embeddings.npz", folder / "metrics.json"
    shards = study.shards / "labeled" / "train"
    embed.main(
        ["--model", str(run), "--shards", str(shards), "--threads=1", "--device=cpu", "--embeddings", str(embeddings)]
    )
    evaluate.main(
        ["--embeddings", str(embeddings), "--run=r", "--seed=0", "--target=labeled", "--split=train"]
        + ["--metrics", str(metrics), "--ranks", str(folder / "ranks.parquet")]
        + ["--contributions", str(folder / "contributions.parquet")]
    )
    return read_json(metrics)["protocols"]["paper"]


@pytest.fixture(scope="module")
def watched(tiny_study, tmp_path_factory):
    """The training of the fixture `composed`, validated after both epochs."""
    run = tmp_path_factory.mktemp("watched")
    train.main(arguments(tiny_study, run, "composed", *validated(tiny_study)))
    return run


def test_the_last_validation_has_the_figures_of_the_finished_run(tiny_study, watched, tmp_path):
    found = evaluated(tiny_study, watched, tmp_path)
    assert {name: column(watched, f"validation_labeled_{name}")[5] for name in FIGURES} == found
    assert column(watched, MEAN)[5] == (found["t2a_mAP10"] + found["a2t_mAP10"]) / 2


def test_validation_changes_no_weight_and_no_loss(composed, watched):
    """Although the training draws random numbers."""
    assert_same_weights(composed, watched)
    assert log_of(watched).select(log_of(composed).column_names).equals(log_of(composed))


def test_validation_changes_no_statistics_of_batch_norm(tiny_study, tmp_path):
    flags = ["--batch-norm=batch", "--encoder-regularisation"]
    train.main(arguments(tiny_study, tmp_path / "plain", "finetune", *flags))
    train.main(arguments(tiny_study, tmp_path / "validated", "finetune", *flags, *validated(tiny_study)))
    assert_same_weights(tmp_path / "plain", tmp_path / "validated")


def test_figures_are_in_the_rows_of_the_last_steps_of_epochs(watched):
    assert list(column(watched, MEAN)) == [2, 5]


def test_the_last_epoch_is_validated_although_its_number_is_no_multiple(tiny_study, tmp_path):
    pairs = tiny_study.pairs("finetune", epochs=3)
    train.main(arguments(tiny_study, tmp_path, "finetune", *validated(tiny_study, every=2), pairs=pairs))
    assert list(column(tmp_path, MEAN)) == [5, 8]


def test_tensorboard_the_curves_and_the_account_show_the_figures(watched):
    events = EventAccumulator(str(watched / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("validation/mAP10")}
    assert shown == pytest.approx(column(watched, MEAN))
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("validation/")]) == 9
    assert "validation_labeled_t2a_mAP10" in (watched / "learning_curves.svg").read_text()
    account = read_json(watched / "training.json")
    best = max(column(watched, MEAN).values())
    assert account["validation"]["best_validation_mAP10"] == best
    assert 0 < account["validation"]["seconds"] < account["wall_s"]
    assert list(account["made_from"]["validation"]["splits"]) == ["labeled/train"]


def test_the_progress_line_shows_the_last_validation(tiny_study, tmp_path, capfd):
    train.main(arguments(tiny_study, tmp_path, "finetune", *validated(tiny_study)))
    assert f"mAP10={column(tmp_path, MEAN)[5]:.1f}" in capfd.readouterr().err


def test_the_best_of_several_validations_is_written(tiny_study, tmp_path):
    pairs = tiny_study.pairs("finetune", epochs=4)
    flags = validated(tiny_study, "--keep=best", "--learning-rate=0.01")
    train.main(arguments(tiny_study, tmp_path, "finetune", *flags, pairs=pairs))
    figures = column(tmp_path, MEAN)
    best = max(figures, key=figures.get)
    assert best < 11, "the last epoch is the best one; choose another learning rate"
    found = evaluated(tiny_study, tmp_path, tmp_path)
    assert (found["t2a_mAP10"] + found["a2t_mAP10"]) / 2 == figures[best]
    assert read_json(tmp_path / "training.json")["validation"]["best_step"] == best + 1


def test_of_equal_validations_the_earlier_is_the_best():
    selection = Selection()
    assert [selection.add(step, figure) for step, figure in ((3, 1.0), (6, 2.0), (9, 2.0))] == [True, True, False]
    assert (selection.step, selection.without_improvement) == (6, 1)


def test_a_training_without_improvement_ends_early_in_the_schedule_of_all_epochs(tiny_study, tmp_path):
    pairs = tiny_study.pairs("finetune", epochs=5)
    words = arguments(tiny_study, tmp_path / "early", "finetune", "--learning-rate=1e-12", pairs=pairs)
    train.main([*words, *validated(tiny_study, "--patience=2")])
    words = arguments(tiny_study, tmp_path / "whole", "finetune", "--learning-rate=1e-12", pairs=pairs)
    train.main([*words, *validated(tiny_study)])
    early, whole = log_of(tmp_path / "early"), log_of(tmp_path / "whole")
    assert early.equals(whole.slice(0, 9)), "three validations, the last two no better than the first"
    assert read_json(tmp_path / "early" / "training.json")["validation"]["is_stopped_early"]
    assert not read_json(tmp_path / "whole" / "training.json")["validation"]["is_stopped_early"]


@pytest.fixture(scope="module")
def with_all(tiny_study, tmp_path_factory):
    """A training with every addition at once, without dropout."""
    run = tmp_path_factory.mktemp("all")
    train.main(arguments(tiny_study, run, "composed", *EXACT, *validated(tiny_study, *ALL_ON)))
    return run


@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_training_goes_on_to_the_same_weights_log_and_figures(tiny_study, with_all, tmp_path, step):
    """The best weights and the average are in the checkpoint."""
    words = arguments(tiny_study, tmp_path, "composed", *EXACT, *validated(tiny_study, *ALL_ON))
    finish(launch([KILL_IN_STEP, "SIGKILL", str(step), *words, "--steps-per-checkpoint=1"]), -signal.SIGKILL)
    train.main(words)
    assert_same_training(with_all, tmp_path)


def test_a_training_that_is_asked_to_stop_validates_when_it_goes_on(tiny_study, with_all, tmp_path, monkeypatch):
    words = arguments(tiny_study, tmp_path, "composed", *EXACT, *validated(tiny_study, *ALL_ON))
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "take_step", stopped_in_step(2))
        train.main(words)
    rows = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["rows"]
    assert len(rows) == 3 and MEAN not in rows[-1]
    train.main(words)
    assert_same_training(with_all, tmp_path)


@pytest.mark.parametrize(("count", "micro_batch"), [(2, 3), (4, 0)])
def test_several_processes_have_the_losses_and_figures_of_one(tiny_study, with_all, tmp_path, count, micro_batch):
    """On two also in micro-batches of three of the four slots."""
    flags = [*EXACT, *validated(tiny_study, *ALL_ON), f"--micro-batch={micro_batch}"]
    words = arguments(tiny_study, tmp_path, "composed", *flags)
    finish(launch(["-m", "pipeline.training.launch", f"--processes={count}", "-m", "pipeline.stages.train", *words]))
    torch.testing.assert_close(losses_of(tmp_path), losses_of(with_all), rtol=1e-5, atol=0)
    for name in ("gradient_norm", MEAN):
        assert column(tmp_path, name) == pytest.approx(column(with_all, name), rel=1e-4), name
    assert_same_weights(with_all, tmp_path, tolerance=1e-4)


SAVE_FIGURES = """
import json, os, sys, torch
from pathlib import Path
from torch.multiprocessing import start_processes
from pipeline.models import load_model
from pipeline.training import validation
from pipeline.training.distributed import join_processes
from pipeline.training.outputs import ValidationPlan

def save(rank, count, port, pretrained, shards, out):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    validation.BATCH_SIZE = 3
    torch.set_num_threads(1)
    with join_processes(torch.device("cpu")) as processes:
        plan = ValidationPlan(folders=(Path(shards),), windows="mean", protocol="dcase")
        model = load_model(pretrained)
        figures = validation.Validation(plan, model, processes).figures(model)
        Path(f"{out}/{count}-{rank}.json").write_text(json.dumps(figures))

pretrained, shards, out, *ports = sys.argv[1:]
load_model(pretrained)
for count, port in zip((1, 2, 4), ports):
    start_processes(save, (count, int(port), pretrained, shards, out), nprocs=count, start_method="fork")
"""


def test_processes_share_the_batches_and_have_the_same_figures_to_the_bit(tiny_study, tmp_path):
    ports = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    folders = [str(tiny_study.pretrained), str(tiny_study.shards / "labeled" / "train"), str(tmp_path)]
    finish(launch(["-c", SAVE_FIGURES, *folders, *ports]))
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert len(found) == 7
    assert all(figures == found["1-0.json"] for figures in found.values())


def test_embeddings_that_are_zero_are_a_divergence(tiny_study):
    model = load_model(tiny_study.pretrained)
    torch.nn.init.zeros_(model.audio_encoder.projection.layer_norm.weight)
    plan = ValidationPlan(folders=(tiny_study.shards / "labeled" / "train",), windows="mean", protocol="paper")
    with pytest.raises(DivergedError, match=r"the embedding of row 0 of .*labeled/train is zero \(24 of 24\)"):
        Validation(plan, model, ALONE).figures(model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--validate-every=1"], r"validate_every is 1, and no validation split is given; give the stage train both"),
        (["--validation={labeled}"], r"validate_every is 0, and a validation split is given"),
        (["--validate-every=1", "--validation={unlabeled}"], r"unlabeled/train: clip \w+ has no caption"),
        (["--validate-every=1", "--validation={missing}"], r"manifest.json: not found"),
        (["--keep=best"], "keep is best, but validate_every is 0; set validate_every above 0"),
        (["--patience=2"], "patience is 2, but validate_every is 0"),
    ],
)
def test_wrong_validation_is_refused_before_the_first_step(tiny_study, tmp_path, flags, message):
    folders = {name: tiny_study.shards / name / "train" for name in ("labeled", "unlabeled", "missing")}
    with pytest.raises(PipelineError, match=message):
        train.main(arguments(tiny_study, tmp_path, "finetune", *(flag.format(**folders) for flag in flags)))
    assert not (tmp_path / "training.parquet").exists()


def test_a_later_setting_is_a_flag_and_recorded_only_where_it_is_used(tiny_study, tmp_path):
    """So a training of an earlier version is the same training."""
    later = {name for name, given in TrainingSettings.model_fields.items() if ADDED in given.metadata}
    default, other = TrainingSettings(), TrainingSettings(layer_decay=0.9)
    assert {"validate_every", "keep", "max_gradient_norm", "freeze", "layer_decay", "average_decay"} <= later
    assert set(TrainingSettings.model_fields) - default.recorded().keys() == later
    assert other.recorded() == {**default.recorded(), "layer_decay": 0.9}
    assert set(settings_flags(other)) - set(settings_flags(default)) == {"--layer-decay=0.9"}
    origin = Origin.of("train", tiny_study.pairs("finetune"), "random", default, 0)
    assert "validation" not in origin.entries() and "validation" not in origin.made_from()


def test_another_validation_split_is_another_training(tiny_study):
    plans = [
        ValidationPlan(folders=(tiny_study.shards / name / "train",), windows="mean", protocol="paper")
        for name in ("labeled", "unlabeled")
    ]
    settings = TrainingSettings(validate_every=1)
    one, two = (Origin.of("train", tiny_study.pairs("finetune"), "random", settings, 0, plan) for plan in plans)
    assert one != two and one.differences(two) == ["validation"]
