"""Trainings on several processes that several tests look at: each costs the start of torch on every process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_training import EXACT, IS_ROOT, arguments, finish, launch

from pipeline.stages import train
from pipeline.training.launch import STOPPED

RENAMED = """
import ctypes, runpy, socket, sys
if ctypes.CDLL(None).unshare(0x4000000) != 0:  # CLONE_NEWUTS: a host name for this process and those below it
    sys.exit("unshare failed")
socket.sethostname("node.invalid")
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
LAUNCH_TWO = ["-m", "pipeline.training.launch", "--processes=2", "-m", "pipeline.stages.train"]


@pytest.fixture(scope="session")
def composed(tiny_study, tmp_path_factory) -> Path:
    """A composed training of six steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("composed")
    train.main(arguments(tiny_study, run, "composed"))
    return run


@pytest.fixture(scope="session")
def on_one_process(tiny_study, tmp_path_factory) -> Path:
    """A composed training without dropout."""
    run = tmp_path_factory.mktemp("one")
    train.main(arguments(tiny_study, run, "composed", *EXACT))
    return run


@pytest.fixture(scope="session")
def on_two_processes(tiny_study, tmp_path_factory) -> Path:
    """The same on two processes; where root may rename it, on a machine whose own name does not resolve."""
    run = tmp_path_factory.mktemp("two")
    words = [*LAUNCH_TWO, *arguments(tiny_study, run, "composed", *EXACT)]
    finish(launch(["-c", RENAMED, *words] if IS_ROOT else words))
    return run


@dataclass(frozen=True)
class Stopped:
    """A training that was asked to stop."""

    output: str
    checkpoint: Path


@pytest.fixture(scope="session")
def stopped_on_two(tiny_study, composed, tmp_path_factory) -> Stopped:
    """A finetuning of a composed run on two processes with loaders, each of which gets SIGTERM, as SLURM sends it."""
    run = tmp_path_factory.mktemp("stopped")
    flags = [f"--pretrained={composed}", "--steps-per-checkpoint=5", "--workers=1"]
    pairs = tiny_study.pairs("finetune", epochs=400)
    process = launch(
        [*LAUNCH_TWO, *arguments(tiny_study, run, "finetune", *flags, pairs=pairs)], start_new_session=True
    )
    checkpoint = run / "checkpoints" / "last.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    return Stopped(finish(process, STOPPED), checkpoint)
