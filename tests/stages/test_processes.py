"""One Snakemake per folder, and no stage without the process that started it: also after kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.errors import PipelineError
from pipeline.stages.processes import PARENT, SECONDS_PER_LOOK, lock_for_this_process
from tests.processes import wait_for_ends

ROOT = Path(__file__).parents[2]
HOLDS_THE_LOCK = """
import sys, time
from pathlib import Path
from pipeline.stages.processes import lock_for_this_process

lock_for_this_process(Path(sys.argv[1]), "here")
print("locked", flush=True)
time.sleep(600)
"""
STAGE = """
import time
from pipeline.stages import run

def main(argv):
    print("started", flush=True)
    time.sleep(600)

run(main)
"""


def start(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Python code in a process of its own."""
    words = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True)


def test_a_lock_is_refused_until_its_process_is_killed(tmp_path):
    with start(HOLDS_THE_LOCK, str(tmp_path / "lock")) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(PipelineError, match=rf"^here: process {holder.pid} on .* is working in this folder; wait"):
            lock_for_this_process(tmp_path / "lock", "here")
        holder.kill()
    with start(HOLDS_THE_LOCK, str(tmp_path / "lock")) as next_holder:
        assert next_holder.stdout is not None and next_holder.stdout.readline() == "locked\n"
        next_holder.kill()


STARTS_A_STAGE = f"""
import os, subprocess, sys

stage = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {{"{PARENT}": str(os.getpid())}})
print(stage.pid, flush=True)
stage.wait()
"""


def test_a_stage_ends_when_the_process_that_started_it_is_killed():
    with start(STARTS_A_STAGE, STAGE) as parent:
        assert parent.stdout is not None
        stage = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "started\n" and stage.is_running()
        parent.kill()
        assert not wait_for_ends([stage])


def test_a_stage_ends_whose_parent_was_gone_before_it_looked():
    with start(STAGE, **{PARENT: "1"}) as stage:
        assert stage.wait(timeout=60) == -signal.SIGTERM


def test_a_stage_started_by_hand_outlives_its_shell():
    with start(STARTS_A_STAGE.replace(PARENT, "NOTHING"), STAGE) as parent:
        assert parent.stdout is not None
        stage = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        assert wait_for_ends([stage], seconds=2.5 * SECONDS_PER_LOOK)
        stage.kill()
