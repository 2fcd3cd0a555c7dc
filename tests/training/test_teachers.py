"""Self-distillation: soft targets of other models, which are part of what a training is made from."""

from __future__ import annotations

import signal

import pyarrow.parquet as pq
import pytest
import torch
from models.small import SMALL
from test_training import KILL_IN_STEP, arguments, assert_same_training, finish, launch, stopped_in_step

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.models import load_model, mini, save_model
from pipeline.stages import train
from pipeline.training.trainer import Trainer


def test_the_loss_mixes_the_targets_of_captions_and_teachers(tiny_study, composed, tmp_path):
    flags = [f"--teacher={composed}", f"--teacher={tiny_study.pretrained}", "--teacher-weight=0.25"]
    train.main(arguments(tiny_study, tmp_path, "finetune", *flags))
    rows = pq.read_table(tmp_path / "training.parquet").to_pylist()
    for row in rows:
        assert row["loss"] == pytest.approx(0.75 * row["info_nce"] + 0.25 * row["teacher"], rel=1e-5)
    assert len(read_json(tmp_path / "training.json")["settings"]["teachers"]) == 2
    assert load_model(tmp_path).a2t is None


def test_a_training_without_a_teacher_records_none(composed):
    settings = read_json(composed / "training.json")["settings"]
    added = {"teachers", "teacher_weight", "teacher_temperature", "text_mixing_weight", "labeled_partners"}
    assert not added & settings.keys()


def test_every_method_beyond_the_paper_survives_a_kill(tiny_study, composed, tmp_path):
    words = [f"--teacher={composed}", "--text-mixing-weight=0.5", "--mask-false-negatives", "--steps-per-checkpoint=2"]
    words += ["--a2t-kind=decoder", "--pseudo-tokens=3", "--a2t-noise=0.5"]
    unbroken, killed = (
        arguments(tiny_study, tmp_path / name, "composed", *words, pairs=tiny_study.pairs("two_partners"))
        for name in ("unbroken", "killed")
    )
    train.main(unbroken)
    finish(launch([KILL_IN_STEP, "SIGKILL", "3", *killed]), -signal.SIGKILL)
    train.main(killed)
    assert_same_training(tmp_path / "unbroken", tmp_path / "killed")


def test_another_teacher_does_not_continue_the_training(tiny_study, composed, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "take_step", stopped_in_step(2))
        train.main(arguments(tiny_study, tmp_path, "finetune", f"--teacher={composed}"))
    with pytest.raises(PipelineError, match=r"checkpoint of another training .*settings: teachers"):
        train.main(arguments(tiny_study, tmp_path, "finetune", f"--teacher={tiny_study.pretrained}"))


def test_a_teacher_of_another_backbone_is_refused_before_the_first_step(tiny_study, tmp_path):
    teacher = tmp_path / "teacher"
    save_model(SMALL["laion-clap"](tmp_path), teacher)
    message = f"{teacher}: the teacher is a laion-clap model, which takes 10.* at 48000 Hz; .* backbone mini"
    with pytest.raises(PipelineError, match=message):
        train.main(arguments(tiny_study, tmp_path / "run", "finetune", f"--teacher={teacher}"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_teaches(tiny_study, tmp_path):
    torch.manual_seed(1)
    save_model(mini.build(mini.byte_tokenizer()), tmp_path / "teacher")
    train.main(arguments(tiny_study, tmp_path / "run", "concatenate", f"--teacher={tmp_path / 'teacher'}"))
    assert "teacher" in pq.read_table(tmp_path / "run" / "training.parquet").column_names


def test_a_missing_teacher_is_named(tiny_study, tmp_path):
    with pytest.raises(PipelineError, match=r"nowhere/model\.safetensors: cannot be read .*make it"):
        train.main(arguments(tiny_study, tmp_path, "finetune", "--teacher=nowhere"))


def test_a_teacher_without_a_term_to_act_on_is_refused(tiny_study, composed, tmp_path):
    with pytest.raises(PipelineError, match=r"a teacher acts on terms without pseudo-tokens.* only a2t, composed; set"):
        train.main(arguments(tiny_study, tmp_path, "composed", f"--teacher={composed}", "--info-nce-weight=0"))
