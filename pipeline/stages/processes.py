"""Which processes may work: one Snakemake per folder, and no stage without the process that started it.

Both hold after any kill: the kernel releases the lock of a process that is gone, and its stages notice.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import try_lock

PARENT = "PIPELINE_PARENT"
"""Environment variable with the number of the process that a command must not outlive: Snakemake or a launcher."""

SECONDS_PER_LOOK = 0.5


def lock_for_this_process(path: Path, folder: str) -> None:
    """Keep other processes from this lock until this process ends; PipelineError if another one has it.

    Snakemake's own lock of a folder outlives a Snakemake that was killed, and `--unlock` removes it even from one that
    is running.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if not try_lock(file, path):
        owner = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        os.close(file)
        raise PipelineError(f"{folder}: {owner} is working in this folder; wait for its end")
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def end_with_parent() -> None:
    """End this process by SIGTERM once its parent is gone, if `PARENT` is set; a training saves first.

    A stage that outlives a killed Snakemake would write the files that the next Snakemake makes again.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_PER_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
