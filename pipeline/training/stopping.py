"""Requests to stop a training, by a signal or by the end of its launcher, and when to save by the clock."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.training.command import LAUNCHED
from pipeline.training.distributed import Processes


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What all processes of a training do after a step."""

    stop: int = 0
    """The signal that asked them to save and stop; 0 for none."""
    save: bool = False


class StopRequest:
    """The signal that asked this process to stop: SIGTERM, as SLURM sends before it preempts, or Ctrl-C.

    A training whose launcher was killed stops as after SIGTERM: it would hold its GPU, and nobody would wait for it.
    """

    def __init__(self, seconds_per_checkpoint: float) -> None:
        self._signal = 0
        self._parent = os.getppid() if LAUNCHED in os.environ else None
        self._seconds_per_checkpoint = seconds_per_checkpoint
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests inside the block.

        A process of several that fails after SIGTERM ends by it: torchrun sends it when another one has failed, and the
        error is then most likely that this one is gone.
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
        """Begin the time to the next checkpoint."""
        self._saved = time.monotonic()

    @property
    def is_made(self) -> bool:
        """True if this process was asked to stop."""
        if self._parent is not None and os.getppid() != self._parent:
            self._signal = signal.SIGTERM
        return self._signal != 0

    def decide(self, processes: Processes) -> Decision:
        """The same on every process: stop once one of them was asked, save once the first one's time has come."""
        is_due = time.monotonic() - self._saved >= self._seconds_per_checkpoint
        asked = torch.tensor(
            [self._signal if self.is_made else 0, is_due and processes.is_first], dtype=torch.int32, device="cpu"
        )
        if processes.count > 1:
            asked = asked.to(processes.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        stop, save = asked.tolist()
        return Decision(stop=stop, save=bool(save))
