"""Outputs that are already made are kept, and a folder has one training at a time."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import arguments, finish, launch

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.stages import train
from pipeline.training import outputs
from pipeline.training.outputs import ACCOUNT, Job, Origin, keep_outputs, lock_folder
from pipeline.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def trained(tiny_study, tmp_path_factory):
    """A finished training of six steps, and its command line."""
    run = tmp_path_factory.mktemp("trained")
    words = arguments(tiny_study, run, "finetune", f"--outcome={run / 'outcome.txt'}")
    train.main(words)
    return run, words


def job_of(study, run, seed=0, pairs=None, pretrained=None, **settings):
    pairs = pairs or study.pairs("finetune")
    settings = TrainingSettings(
        **{"objective": "finetune", "learning_rate": 1e-3, "a2t_learning_rate": 1e-3, **settings}
    )
    origin = Origin.of("train", pairs, (pretrained or study.pretrained) / "model.safetensors", settings, seed)
    return Job(
        pairs=pairs, shards=study.shards, settings=settings, seed=seed, origin=origin, out=run,
        outcome=run / "outcome.txt",
    )  # fmt: skip


WITHOUT_TORCH = """
import sys
from pipeline.stages import train
train.main(sys.argv[1:])
assert "torch" not in sys.modules
"""


def test_the_same_training_again_touches_its_outputs_and_imports_no_torch(trained):
    run, words = trained
    files = [path for path in run.iterdir() if path.is_file() and not path.name.startswith(".")]
    assert len(files) == 7
    before = {path: path.read_bytes() for path in files}
    for path in files:
        os.utime(path, (1, 1))
    finish(launch(["-c", WITHOUT_TORCH, *words, "--threads=2", "--workers=1"], fresh=True))
    assert all(path.stat().st_mtime > 1 and path.read_bytes() == content for path, content in before.items())


def test_a_training_killed_at_its_very_end_keeps_its_outputs_and_leaves_no_checkpoint(tiny_study, trained):
    run, _ = trained
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").touch()
    assert keep_outputs(job_of(tiny_study, run))
    assert not (run / "checkpoints").exists()


def test_another_seed_setting_pair_or_weight_is_trained(tiny_study, trained, tmp_path):
    run, _ = trained
    assert keep_outputs(job_of(tiny_study, run))
    assert not keep_outputs(job_of(tiny_study, run, seed=1))
    assert not keep_outputs(job_of(tiny_study, run, learning_rate=2e-3))
    assert not keep_outputs(job_of(tiny_study, run, pairs=tiny_study.pairs("finetune", seed=1)))
    assert not keep_outputs(job_of(tiny_study, run, pretrained=run))
    job = job_of(tiny_study, run)
    newer = dataclasses.replace(job.origin, version=job.origin.version + 1)
    assert not keep_outputs(dataclasses.replace(job, origin=newer))
    assert not keep_outputs(dataclasses.replace(job, outcome=None))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "tokenizer.json", "outcome.txt", ACCOUNT])
def test_an_output_that_is_missing_or_damaged_is_made_again(tiny_study, trained, name):
    run, _ = trained
    path = run / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        assert not keep_outputs(job_of(tiny_study, run))
        path.unlink()
        assert not keep_outputs(job_of(tiny_study, run))
        path.mkdir()
        assert not keep_outputs(job_of(tiny_study, run))
    finally:
        path.rmdir()
        path.write_bytes(whole)


def test_training_json_records_the_outcome(trained):
    assert read_json(trained[0] / ACCOUNT)["outcome"] == "finished"


HOLDS_THE_LOCK = """
import sys, time
from pathlib import Path
from pipeline.training.outputs import lock_folder

with lock_folder(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        import os
        if os.fork() == 0:
            time.sleep(600)
    print("locked", flush=True)
    time.sleep(600)
"""


def hold_lock(folder, *flags):
    """A process that holds the lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(folder), *flags],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_a_second_training_into_a_folder_is_refused(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LOCK_WAIT_S", 0.3)
    holder = hold_lock(tmp_path)
    try:
        with pytest.raises(
            PipelineError, match=rf"^{tmp_path}: process {holder.pid} on .* is training into this folder; wait for"
        ):
            train.main(arguments(tiny_study, tmp_path, "finetune"))
        assert not (tmp_path / "model.safetensors").exists()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_killed_training_leaves_its_folder_unlocked_although_its_loaders_live(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LOCK_WAIT_S", 0.3)
    holder = hold_lock(tmp_path, "with a child")
    try:
        holder.kill()
        holder.wait()
        with lock_folder(tmp_path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_leaves_no_file(tmp_path):
    with lock_folder(tmp_path / "run"):
        assert (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()
