"""The batches of a training, read by loader processes that end with the training."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader

from pipeline.errors import PipelineError
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.failures import failed_loader

_SOCKET = "pymp-01234567/listener-01234567"  # as multiprocessing names it
_MAX_SOCKET_BYTES = 107


@contextlib.contextmanager
def load_batches(
    batches: PairedBatches, steps: range, scratch: Path, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Iterator[Batch]]:
    """Yield the batches of some steps in order; `workers` processes prefetch them and end with the block.

    scratch: folder for their sockets.

    A PipelineError of a loader process is raised here with its one-line message, as if this process had read the batch.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(begin_loader, scratch=scratch),
    )
    others, own = set(multiprocessing.active_children()), set()
    try:
        iterator = iter(loader)
        own = set(multiprocessing.active_children()) - others
        yield iterator
    except PipelineError as error:
        # torch raises an exception of the same class whose message contains the traceback of the loader process.
        if "in DataLoader worker process" not in str(error):
            raise
        raise PipelineError(str(error).rsplit("PipelineError: ", 1)[-1].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        with without_torchs_handler() if own else contextlib.nullcontext():
            known = failed_loader(error, own)
        if known is None:
            raise
        raise known from error
    finally:
        end_processes(own or set(multiprocessing.active_children()) - others)


@contextlib.contextmanager
def scratch_folder(out: Path, rank: int) -> Iterator[Path]:
    """Yield a folder for the sockets of a training's loader processes, which are killed and leave them.

    The folder is removed with the block. If the training is killed, the next one of this rank into `out` removes it.
    Where the path of the folder for temporary files is too long for sockets, it is in /tmp: torch would wait for ever.
    """
    name = f"loaders-{hashlib.sha256(bytes(out.resolve())).hexdigest()[:12]}-{rank}"
    folder = Path(tempfile.gettempdir()) / name
    if len(os.fsencode(folder / _SOCKET)) > _MAX_SOCKET_BYTES:
        folder = Path("/tmp") / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # it is another user's
        folder = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def begin_loader(worker: int, *, scratch: Path) -> None:
    """Prepare a loader process: temporary files in `scratch`, no reaction to Ctrl-C and SIGTERM.

    SLURM sends these signals to every process of a job, and a training that loses a loader process cannot save.
    `end_processes` ends loader processes with SIGKILL.
    """
    tempfile.tempdir = str(scratch)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_processes(processes: set[multiprocessing.process.BaseProcess]) -> None:
    """Kill child processes and wait for their end; multiprocessing sends SIGTERM, which they ignore."""
    if not processes:
        return
    with without_torchs_handler():
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextlib.contextmanager
def without_torchs_handler() -> Iterator[None]:
    """Keep torch from hearing of ends of processes: it raises an error then, wherever the training is."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
