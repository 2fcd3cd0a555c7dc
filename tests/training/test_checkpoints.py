"""Checkpoints: damaged ones and those of other trainings are refused, and writing one changes nothing."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from test_training import arguments, assert_same_weights

from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.stages import train
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.distributed import Processes
from pipeline.training.monitor import Monitor
from pipeline.training.outputs import Origin
from pipeline.training.stopping import StopRequest
from pipeline.training.trainer import Trainer

ORIGIN = Origin(
    pairs_sha256="a", starting_weights_sha256="b", settings={"learning_rate": 0.1, "seed": 0}, stage="train", version=1
)
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def state(step=1):
    return {"model": {"weight": torch.arange(8.0)}, "optimizer": {}, "scheduler": {}, "rows": [], "step": step}


def save(out, origin=ORIGIN, step=1):
    saved = Checkpoints(out, origin)
    saved.save(state(step))
    return saved.path


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    resume_point = Checkpoints(tmp_path, ORIGIN)
    for step in (1, 2):
        resume_point.save(state(step))
    found = Checkpoints(tmp_path, ORIGIN).load()
    assert found["step"] == 2 and torch.equal(found["model"]["weight"], torch.arange(8.0))


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"last\.pt: damaged checkpoint \(its SHA-256 .*to start again"):
            Checkpoints(tmp_path, ORIGIN).load()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    """None: a folder in its place."""
    path = save(tmp_path)
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"last\.pt: damaged checkpoint \(.*delete .*checkpoints to start again"):
        Checkpoints(tmp_path, ORIGIN).load()


def test_a_checkpoint_without_its_checksum_is_refused(tmp_path):
    path = save(tmp_path)
    path.with_suffix(".pt.sha256").unlink()
    with pytest.raises(PipelineError, match=r"last\.pt: damaged checkpoint \(.*sha256"):
        Checkpoints(tmp_path, ORIGIN).load()


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, {**state(), "origin": dataclasses.asdict(ORIGIN)}])
def test_a_checkpoint_of_other_content_is_refused(tmp_path, content):
    path = save(tmp_path)
    torch.save(content, path)
    path.with_suffix(".pt.sha256").write_text(sha256_of(path))
    with pytest.raises(PipelineError, match=r"last\.pt: damaged checkpoint"):
        Checkpoints(tmp_path, ORIGIN).load()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"pairs_sha256": "c"}, r"different: pairs\); delete .*checkpoints to start again, or restore what it was"),
        ({"starting_weights_sha256": "c"}, r"different: starting weights\)"),
        ({"settings": {"learning_rate": 0.2, "seed": 0}}, r"different: settings: learning_rate 0\.1, now 0\.2\)"),
        ({"version": 2}, r"different: version of the training: 1, now 2\); .*or give --resume-any-version to continue"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path, changed, named):
    save(tmp_path)
    with pytest.raises(PipelineError, match=named):
        Checkpoints(tmp_path, dataclasses.replace(ORIGIN, **changed)).load()


def test_a_checkpoint_of_another_version_is_accepted_where_asked(tmp_path):
    save(tmp_path)
    newer = dataclasses.replace(ORIGIN, version=2)
    assert Checkpoints(tmp_path, newer, any_version=True).load()["step"] == 1
    with pytest.raises(PipelineError, match="different: pairs"):
        Checkpoints(tmp_path, dataclasses.replace(newer, pairs_sha256="c"), any_version=True).load()


def test_other_library_versions_give_a_warning(tmp_path, monkeypatch, caplog):
    save(tmp_path)
    monkeypatch.setattr(checkpoints, "library_versions", lambda: {"torch": "9.9"})
    assert Checkpoints(tmp_path, ORIGIN).load()["step"] == 1
    assert f"made with torch {torch.__version__}, going on with 9.9" in caplog.text


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the folder's place")
    with pytest.raises(PipelineError, match=r"last\.pt: cannot be written \(.*same command again"):
        save(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parts": 3}', '{"parts": [{"first_step": 0}]}'])
def test_damaged_notes_of_earlier_parts_give_a_warning(tmp_path, content, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "parts.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        monitor = Monitor(tmp_path, steps=6, first_step=2, batch_size=8, processes=ALONE)
    assert "parts.json: damaged" in caplog.text
    assert len(monitor.account()["parts"]) == 1


def test_a_checkpoint_is_due_by_the_clock():
    request = StopRequest(seconds_per_checkpoint=0)
    assert request.decide(ALONE).save
    assert not StopRequest(seconds_per_checkpoint=3600).decide(ALONE).save


class PowerCutError(Exception):
    """The end of a training between two checkpoints by the number of steps."""


def test_checkpoints_by_the_clock_do_not_change_the_weights(tiny_study, tmp_path, monkeypatch):
    train.main(arguments(tiny_study, tmp_path / "unbroken", "composed"))
    words = arguments(tiny_study, tmp_path / "killed", "composed", "--seconds-per-checkpoint=0")
    take_step = Trainer.take_step

    def cut(trainer, batch):
        if trainer.step == 4:
            raise PowerCutError
        return take_step(trainer, batch)

    with monkeypatch.context() as patched, pytest.raises(PowerCutError):
        patched.setattr(Trainer, "take_step", cut)
        train.main(words)
    saved = torch.load(tmp_path / "killed" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == 4
    train.main(words)
    assert_same_weights(tmp_path / "unbroken", tmp_path / "killed")
