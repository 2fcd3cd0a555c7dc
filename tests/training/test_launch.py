"""The launcher of trainings: one machine, the signal that saves, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import pytest
import torch
from test_training import EXACT, arguments, assert_same_weights, finish, launch, losses_of

from pipeline.errors import PipelineError
from pipeline.stages import train
from pipeline.training import launch as launcher
from pipeline.training.launch import STOPPED


def test_sigterm_to_the_launcher_saves_and_the_same_command_ends_with_the_same_weights(tiny_study, tmp_path):
    words = arguments(tiny_study, tmp_path / "run", "finetune", "--steps-per-checkpoint=3")
    process = launch(["-m", "pipeline.training.launch", "-m", "tests.training.wait_in_step", "3", *words])
    while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = finish(process, STOPPED)
    assert re.search("asked to stop: saved step [34] of 6; the same command continues from there", output)
    train.main(words)
    train.main(arguments(tiny_study, tmp_path / "unbroken", "finetune"))
    assert_same_weights(tmp_path / "unbroken", tmp_path / "run")


def test_sigterm_to_every_process_of_a_job_loaders_included_saves_at_the_next_step(stopped_on_two):
    assert re.search(r"asked to stop: saved step ([6-9]|1\d) of 1200", stopped_on_two.output)


def test_a_failing_training_keeps_its_own_status_and_message(tiny_study, tmp_path):
    words = ["-m", "pipeline.training.launch", "-m", "pipeline.stages.train"]
    words += arguments(tiny_study, tmp_path, "composed", pairs=tmp_path / "missing.parquet")
    assert "missing.parquet: cannot be read" in finish(launch(words), 1)


def test_the_last_word_is_that_of_the_process_that_failed(tiny_study, tmp_path):
    words = ["-m", "pipeline.training.launch", "--processes", "2", "-m", "pipeline.stages.train"]
    words += arguments(tiny_study, tmp_path, "composed", pairs=tmp_path / "missing.parquet")
    output = finish(launch(words, fresh=True), 1)
    assert "missing.parquet: cannot be read" in output.splitlines()[-1]
    assert output.count("cannot be read") == 1 and "Traceback" not in output


def test_a_signal_that_ends_a_process_is_named():
    words = ["-m", "timeit", "-n1", "-r1", "import os; os.kill(os.getpid(), 9)"]
    output = finish(launch(["-m", "pipeline.training.launch", "--processes", "2", *words], fresh=True), 1)
    assert re.search(r"^launch: process [01] was ended by SIGKILL; .*continues from", output.splitlines()[-1])
    assert "Traceback" not in output


def test_the_launcher_starts_without_torch():
    code = "import sys, pipeline.training.launch; assert 'torch' not in sys.modules"
    finish(launch(["-c", code], fresh=True))


def test_several_nodes_need_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(PipelineError, match="2 nodes needs a SLURM job of as many; set nodes to 1"):
        launcher.main(["--nodes", "2", "--processes", "4", "-m", "pipeline.stages.train"])


def test_processes_that_cannot_be_shared_out_are_refused(capsys):
    with pytest.raises(SystemExit):
        launcher.main(["--nodes", "2", "--processes", "3", "-m", "pipeline.stages.train"])
    assert "3 processes cannot be shared out among 2 nodes" in capsys.readouterr().err


def test_two_nodes_meet_and_take_the_steps_of_one_process(tiny_study, tmp_path, on_one_process):
    """What srun starts on each of two nodes, here both on this machine."""
    training = ["-m", "pipeline.stages.train", *arguments(tiny_study, tmp_path, "composed", *EXACT)]
    srun = launcher.several_nodes(2, 1, str(os.getpid()), "localhost", training)
    on_a_node = srun[srun.index(sys.executable) + 1 :]
    for node in [launch(on_a_node), launch(on_a_node)]:
        finish(node)
    torch.testing.assert_close(losses_of(tmp_path), losses_of(on_one_process), rtol=1e-5, atol=0)


def test_trainings_of_two_slurm_jobs_meet_at_different_ports_below_the_systems_own():
    endpoints = [launcher.several_nodes(2, 4, job, "node1", [])[-2] for job in ("4711", "4712")]
    ports = [int(endpoint.rsplit(":", 1)[1]) for endpoint in endpoints]
    assert ports[0] != ports[1] and all(1024 < port < 32_768 for port in ports)
