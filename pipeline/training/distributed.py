"""The processes of a training: torchrun's, or just this one."""

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
    yield Processes(rank=rank, count=count, device=device)
    dist.destroy_process_group()  # not after an error: it may wait for a process that is gone


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


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all ranks, forward and backward: what every rank's loss owes to this rank's value."""

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
    """The rows of every process, in the order of the ranks, with gradient to each.

    Every process must then compute the same loss of the whole: the gradient that reaches a row is the sum over all
    processes, which DDP's averaging turns back into the gradient of one process with the whole batch.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's value, with gradient to each, under the condition of `gather_rows`."""
    return _SumOverProcesses.apply(value) if dist.is_initialized() else value


def average_gradients(module: nn.Module, processes: Processes) -> None:
    """Replace every gradient by its mean over the processes, as DDP does while it computes them."""
    if processes.count == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes.count


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the rows of all processes, which hold equally many.

    Ioffe and Szegedy 2015. torch's SyncBatchNorm computes the same on GPUs alone.
    """

    @torch.compiler.disable  # the processes talk to each other
    def forward(self, input: Tensor) -> Tensor:
        """The input (B, C, H, W) normalised; in training also learns the running statistics."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        dtype, input = input.dtype, input.float()  # of bfloat16, sums would be rounded to three digits
        count = input.numel() // input.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
        mean_C11 = sum_over_processes(input.sum(dim=(0, 2, 3), keepdim=True)[0]) / count
        # Around the mean, because the mean of squares less the square of the mean would cancel.
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
    """The same BatchNorm, parameters and statistics shared with `norm`, over all processes."""
    own = SynchronizedBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    own.weight, own.bias = norm.weight, norm.bias
    own.running_mean, own.running_var = norm.running_mean, norm.running_var
    own.num_batches_tracked = norm.num_batches_tracked
    return own.train(norm.training)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside `module` by one over all processes; parameters keep their names."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, synchronized(child))
