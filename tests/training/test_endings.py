"""However a training ends, all its processes end with it and the reason is its last line."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from test_training import IS_ROOT, arguments, finish, launch

from pipeline.errors import PipelineError
from pipeline.training.batches import PairedBatches
from pipeline.training.distributed import Processes
from pipeline.training.failures import failed_loader
from pipeline.training.launch import STOPPED
from pipeline.training.loading import load_batches
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import Trainer
from tests.processes import wait_for_ends

SECONDS_TO_END = 60
"""After it a test fails: the training would stay for ever."""
LAUNCH = ["-m", "pipeline.training.launch", "--processes"]


def words_of(study, run, *flags, processes=1, epochs=400):
    """The launcher's command line of a training that has not ended when a test reaches it."""
    pairs = study.pairs("finetune", epochs=epochs)
    stage = ["-m", "pipeline.stages.train", *arguments(study, run, "finetune", *flags, pairs=pairs)]
    return [*LAUNCH, str(processes), *stage]


def begin(study, run, *flags, processes=1):
    """A training that has written a checkpoint, and all processes below its launcher."""
    words = words_of(study, run, "--steps-per-checkpoint=3", *flags, processes=processes)
    process = launch(words, start_new_session=True)
    deadline = time.monotonic() + 2 * SECONDS_TO_END
    while not (run / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.stdout.read()
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no checkpoint: {process.stdout.read()}")
        time.sleep(0.02)
    return process, psutil.Process(process.pid).children(recursive=True)


def end(process, processes, status):
    """The lines of a training that has ended with a status and left no process."""
    lines = process.communicate(timeout=SECONDS_TO_END)[0].splitlines()
    assert not wait_for_ends(processes, SECONDS_TO_END) and process.returncode == status, lines
    return lines


def leaves(processes):
    """The loader processes: those without children."""
    return [process for process in processes if not process.children()]


@pytest.mark.parametrize(("processes", "workers"), [(1, 4), (2, 2)])
def test_a_tar_that_is_cut_while_it_is_read_ends_the_training(tiny_study, tmp_path, processes, workers):
    shards = shutil.copytree(tiny_study.shards, tmp_path / "shards")
    flags = [f"--workers={workers}", f"--shards={shards}"]
    process, below = begin(tiny_study, tmp_path / "run", *flags, processes=processes)
    assert len(leaves(below)) == processes * workers
    for tar in (shards / "labeled" / "train").glob("*.tar"):
        os.truncate(tar, 1000)
    lines = end(process, below, 1)
    assert re.search(r"^train: .*labeled/train/\w+\.tar: ", lines[-1]), lines[-3:]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 2)])
def test_a_loader_process_that_the_kernel_kills_ends_the_training(tiny_study, tmp_path, processes, workers):
    process, below = begin(tiny_study, tmp_path, f"--workers={workers}", processes=processes)
    leaves(below)[-1].kill()
    lines = end(process, below, 1)
    assert re.search(r"^train: a loader process was ended .*lower.*loader_workers", lines[-1]), lines[-3:]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_loader_process_whose_end_comes_after_that_of_its_connections(error):
    loader = multiprocessing.Process(target=time.sleep, args=(60,))
    loader.start()
    killer = threading.Timer(0.5, loader.kill)
    killer.start()
    assert re.match(r"a loader process was ended \(by SIGKILL\)", str(failed_loader(error, {loader})))


def test_a_loader_process_that_torch_hears_of_while_its_end_is_explained(tiny_study, tmp_path):
    """torch's handler of SIGCHLD raises an error of its own, wherever the training is."""
    batches = PairedBatches(tiny_study.pairs("finetune"), tiny_study.shards)
    others = set(multiprocessing.active_children())
    with (
        pytest.raises(PipelineError, match=r"^a loader process was ended \(by SIGKILL\)"),
        load_batches(batches, range(len(batches)), tmp_path, workers=1) as loaded,
    ):
        next(loaded)
        (loader,) = set(multiprocessing.active_children()) - others
        threading.Timer(0.5, loader.kill).start()
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize(
    ("processes", "error", "lines"),
    [(1, RuntimeError("lost"), 2), (2, RuntimeError("lost"), 1), (2, PipelineError("a clip is damaged"), 2)],
)
def test_the_bar_says_nothing_after_the_reason_of_another_process(capfd, processes, error, lines):
    """That process said it, and the end of the bar comes with the error that follows from it in this one."""
    trainer = SimpleNamespace(
        processes=Processes(rank=0, count=processes, device=torch.device("cpu")),
        job=SimpleNamespace(settings=TrainingSettings(objective="finetune")),
        steps=5,
        step=0,
    )
    with pytest.raises(type(error)), Trainer._progress_bar(trainer):
        raise error
    assert len(capfd.readouterr().err.splitlines()) == lines


def test_an_error_beside_living_loader_processes_is_not_theirs():
    loader = multiprocessing.Process(target=time.sleep, args=(60,))
    loader.start()
    assert failed_loader(ValueError("something else"), {loader}) is None
    loader.kill()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves_and_ends_every_process(tiny_study, tmp_path, processes):
    process, below = begin(tiny_study, tmp_path, "--workers=2", processes=processes)
    os.killpg(process.pid, signal.SIGINT)
    lines = end(process, below, 130)
    assert re.search(r"asked to stop: saved step \d+ of 1200; the same command continues from there", lines[-1]), lines
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] > 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("ways", [[signal.SIGINT], [signal.SIGKILL, signal.SIGTERM]])
def test_no_temporary_file_is_left(tiny_study, tmp_path, monkeypatch, ways, processes):
    """After a kill the next training removes what the killed one left."""
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))
    use_as_temporary(temporary, monkeypatch)
    for way in ways:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)  # `begin` waits for its checkpoint
        process, below = begin(tiny_study, tmp_path / "run", "--workers=2", processes=processes)
        if way == signal.SIGINT:
            assert list(temporary.glob("loaders-*/pymp-*")), "the sockets of the loader processes"
        os.killpg(process.pid, way)
        process.communicate(timeout=SECONDS_TO_END)
        assert not wait_for_ends(below, SECONDS_TO_END)
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


def test_loader_processes_work_where_the_path_of_temporary_files_is_too_long_for_sockets(
    tiny_study, tmp_path, monkeypatch
):
    temporary = tmp_path / ("long" * 20)
    temporary.mkdir()
    use_as_temporary(temporary, monkeypatch)
    process, below = begin(tiny_study, tmp_path / "run", "--workers=2")
    os.killpg(process.pid, signal.SIGINT)
    end(process, below, 130)


def use_as_temporary(folder, monkeypatch):
    """Make this the folder for temporary files, of forks and of new processes."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_whose_launcher_is_killed_saves_and_ends(tiny_study, tmp_path, processes):
    process, below = begin(tiny_study, tmp_path, "--workers=1", processes=processes)
    trainings = leaves(below)[0].parent()
    trainings.parent().kill()  # with one process the launcher, with two torchrun
    if processes == 1:
        assert "asked to stop: saved step" in process.communicate(timeout=SECONDS_TO_END)[0]
    alive = wait_for_ends(below, SECONDS_TO_END)
    process.communicate(timeout=SECONDS_TO_END)
    assert not alive and process.returncode != 0


WITH_LITTLE_SHARED_MEMORY = """
import ctypes, runpy, subprocess, sys
if ctypes.CDLL(None).unshare(0x20000) != 0:  # CLONE_NEWNS: mounts of its own
    sys.exit("unshare failed")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", "/dev/shm"], check=True)
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
@pytest.mark.parametrize("processes", [1, 2])
def test_too_little_shared_memory_is_named(tiny_study, tmp_path, processes):
    words = words_of(tiny_study, tmp_path, "--workers=2", processes=processes)
    lines = finish(launch(["-c", WITH_LITTLE_SHARED_MEMORY, *words]), 1).splitlines()
    assert re.search(r"^train: the loader processes have too little shared memory: enlarge /dev/shm", lines[-1]), lines


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_two_processes_train_on_a_machine_whose_own_name_does_not_resolve(on_two_processes):
    assert (on_two_processes / "model.safetensors").exists()


ONE_OF_TWO_FAILS = """
import os
from pipeline.errors import PipelineError
from pipeline.training import command

def main(argv):
    if os.environ["RANK"] == "1":
        raise PipelineError("clip rain_1 is damaged")

command.SECONDS_TO_BE_ENDED["others"] = 1  # it waits so long for a word of the first process; by default 5 s
command.run_training(main)
"""


def test_an_error_that_one_process_alone_meets_is_the_last_line(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(ONE_OF_TWO_FAILS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert "stage: clip rain_1 is damaged" in finish(launch([*launcher, str(script)]), status=1)


SAVES_FOR_TWO_SECONDS = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(2)
    Path(sys.argv[1] + "/saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1] + "/started").touch()
time.sleep(60)
"""
TORCHRUN_WITH_A_SECOND_OF_PATIENCE = """
import sys
from torch.distributed.elastic.multiprocessing.api import PContext
from pipeline.training.launch import run_torchrun, torchrun

PContext.close.__defaults__ = (None, 1)
arguments = torchrun(1, ["--standalone"], sys.argv[1:])
sys.exit(run_torchrun(arguments[arguments.index("--torchrun") + 1 :]))
"""


def test_a_training_may_save_longer_than_torchrun_waits(tmp_path):
    """torchrun's 30 s, here one."""
    (tmp_path / "training.py").write_text(SAVES_FOR_TWO_SECONDS)
    process = launch(["-c", TORCHRUN_WITH_A_SECOND_OF_PATIENCE, str(tmp_path / "training.py"), str(tmp_path)])
    while process.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process, STOPPED)
    assert (tmp_path / "saved").exists()
