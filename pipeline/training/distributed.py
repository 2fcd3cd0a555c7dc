"""The processes of a training: torchrun's, or just this one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of how many processes this is, and the device it computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join the process group that torchrun's environment describes; without torchrun this process is alone."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(rank=0, count=1, device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank=rank, count=count, device=device)
    finally:
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """All ranks' rows forward; backward each rank's own rows of the gradient summed over all ranks."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.unflatten(0, (dist.get_world_size(), -1))[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of the ranks, with gradient to each.

    Every process must then compute the same loss of the whole: the gradient that reaches a row is the sum over all
    processes, which DDP's averaging turns back into the gradient of one process with the whole batch.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows
