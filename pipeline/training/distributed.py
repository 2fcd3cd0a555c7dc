"""The processes of a training: those of torchrun, or this one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The rank of this process, the number of processes, and the device of this one."""

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
    yield Processes(rank=rank, count=count, device=device)
    dist.destroy_process_group()  # not after an error: it could wait for a process that has ended


class _GatherRows(torch.autograd.Function):
    """Forward: the rows of all ranks. Backward: the gradient summed over all ranks, of this rank's rows."""

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


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all ranks, forward and backward: every rank's loss depends on this rank's value."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of every process in the order of the ranks, with gradient to each.

    Every process must then compute the same loss from all rows. A row receives the sum of the gradients of all
    processes; DDP's averaging turns it into the gradient of one process with the whole batch.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of all processes' values, with gradient to each; the condition of `gather_rows` holds."""
    return _SumOverProcesses.apply(value) if dist.is_initialized() else value


def average_gradients(module: nn.Module, processes: Processes) -> None:
    """Replace every gradient with its mean over the processes, as DDP does."""
    if processes.count == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes.count


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """BatchNorm (Ioffe and Szegedy 2015) over the rows of all processes, with equally many rows each.

    torch's SyncBatchNorm computes the same, but only on GPUs.
    """

    @torch.compiler.disable  # the processes communicate
    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input (B, C, H, W); in training, also update the running statistics."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        dtype, input = input.dtype, input.float()  # bfloat16 would round sums to three digits
        count = input.numel() // input.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
        mean_C11 = sum_over_processes(input.sum(dim=(0, 2, 3), keepdim=True)[0]) / count
        # Around the mean: the mean of squares minus the square of the mean would lose digits.
        centred = input - mean_C11
        variance_C11 = sum_over_processes(centred.square().sum(dim=(0, 2, 3), keepdim=True)[0]) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_C11.flatten(), self.momentum)
            self.running_var.lerp_(variance_C11.flatten() * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale_C11 = self.weight[:, None, None] * torch.rsqrt(variance_C11 + self.eps)
        return (centred * scale_C11 + self.bias[:, None, None]).to(dtype)


def synchronized(norm: nn.BatchNorm2d) -> SynchronizedBatchNorm:
    """Return a BatchNorm over all processes that shares parameters and statistics with `norm`."""
    own = SynchronizedBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    own.weight, own.bias = norm.weight, norm.bias
    own.running_mean, own.running_var = norm.running_mean, norm.running_var
    own.num_batches_tracked = norm.num_batches_tracked
    return own.train(norm.training)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d in `module` with one over all processes; parameters keep their names."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, synchronized(child))
