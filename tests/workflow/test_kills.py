"""After a kill of Snakemake the same command goes on; `make test-faults` kills everything at random moments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_growing_splits import make_study
from test_workflow import snakemake

from tests.forks import Forked
from tests.processes import wait_for_ends

TARGET = ["results/raw/clotho", "--config", "soundscapes={scale: 0.3}"]
"""A job of some seconds."""


@pytest.fixture
def running(tmp_path):
    """A Snakemake whose stage runs in a folder, and the stage."""
    make_study(tmp_path)
    programs = Path(sys.executable).parent
    words = [sys.executable, programs / "snakemake", "--cores", "1", *TARGET]
    variables = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    with Forked(words, cwd=tmp_path, env=variables, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob("results/raw/.clotho.*")):
            assert process.poll() is None
            time.sleep(0.02)
        (stage,) = psutil.Process(process.pid).children()
        yield process, stage
        process.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            stage.kill()


def test_the_command_that_was_killed_goes_on(running, tmp_path):
    process, stage = running
    process.kill()
    assert not wait_for_ends([stage])
    assert list(tmp_path.glob("results/raw/.clotho.*")) and not (tmp_path / "results/raw/clotho").exists()
    snakemake(tmp_path, *TARGET)
    assert [path.name for path in (tmp_path / "results/raw").iterdir()] == ["clotho"]
    assert "Nothing to be done" in snakemake(tmp_path, *TARGET)


def test_a_second_snakemake_in_the_folder_is_refused(running, tmp_path):
    process, stage = running
    stage.suspend()
    assert f"process {process.pid} on " in snakemake(tmp_path, *TARGET, status=1)
    assert stage.is_running() and process.poll() is None


def test_a_dry_run_works_while_another_snakemake_runs(running, tmp_path):
    process, stage = running
    stage.suspend()
    assert "mix_soundscapes" in snakemake(tmp_path, *TARGET, "-n")
    assert stage.is_running() and process.poll() is None
