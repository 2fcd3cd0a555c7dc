"""The batches of a training, read by loader processes that end with the training."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from pipeline.errors import PipelineError
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.failures import failed_loader


@contextlib.contextmanager
def load_batches(
    batches: PairedBatches, steps: range, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Iterator[Batch]]:
    """Yield the batches of some steps in order; `workers` processes prefetch them and end with the block.

    A PipelineError of a loader process is raised here with its one-line message, as if this process had read the batch.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
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
        if (known := failed_loader(error, own)) is not None:
            raise known from error
        raise
    finally:
        end_processes(own or set(multiprocessing.active_children()) - others)


def ignore_signals(worker: int) -> None:
    """Make a loader process ignore Ctrl-C and SIGTERM, which SLURM sends to every process of a job.

    A training that loses a loader process cannot save. `end_processes` ends loader processes with SIGKILL.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_processes(processes: set[multiprocessing.process.BaseProcess]) -> None:
    """Kill child processes and wait for their end; multiprocessing sends SIGTERM, which they ignore."""
    if not processes:
        return
    handler = signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # torch's handler raises an error when a loader process is killed
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    signal.signal(signal.SIGCHLD, handler)
