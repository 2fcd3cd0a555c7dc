"""Requests to stop a training by a signal, and when to save by the clock."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.training.distributed import Processes


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision of all processes after a step."""

    stop: int = 0
    """The signal that requested to save and stop; 0 for none."""
    save: bool = False


class StopRequest:
    """A request to stop this process: SIGTERM, which SLURM sends before it preempts a job, or Ctrl-C.

    A training whose launcher was killed gets SIGTERM, see `pipeline.stages.processes`.
    """

    def __init__(self, seconds_per_checkpoint: float) -> None:
        self._signal = 0
        self._seconds_per_checkpoint = seconds_per_checkpoint
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGTERM and SIGINT as requests inside the block.

        torchrun sends SIGTERM to all processes when one fails. An error after that is most likely a consequence of the
        failed process. So a process of several that fails after SIGTERM ends with this signal.
        """
        handlers = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        is_failed = True
        try:
            yield
            is_failed = False
        except SystemExit:
            is_failed = False
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if is_failed and self._signal == signal.SIGTERM and dist.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, number: int, frame: object) -> None:
        self._signal = max(self._signal, number)

    def note_save(self) -> None:
        """Start the time to the next checkpoint."""
        self._saved = time.monotonic()

    @property
    def is_made(self) -> bool:
        """True if this process was asked to stop."""
        return self._signal != 0

    def decide(self, processes: Processes) -> Decision:
        """Return the same decision on every process: stop if one has a request, save if it is time on the first."""
        is_due = time.monotonic() - self._saved >= self._seconds_per_checkpoint
        asked = torch.tensor(
            [self._signal if self.is_made else 0, is_due and processes.is_first], dtype=torch.int32, device="cpu"
        )
        if processes.count > 1:
            asked = asked.to(processes.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        stop, save = asked.tolist()
        return Decision(stop=stop, save=bool(save))
