"""Errors that end a training before its last step: non-finite losses and weights, memory, compilers, loaders."""

from __future__ import annotations

import errno
import math
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.training.batches import Batch
from pipeline.training.composition import CompositionLoss
from pipeline.training.micro_batches import micro_batch_that_fits

SECONDS_UNTIL_ENDED = 10
"""The kernel closes the connections of a killed process before its parent can see that it has ended."""


class DivergedError(PipelineError):
    """A loss or a weight of a training is not finite."""


def finite_rows(rows: Sequence[Mapping[str, float | torch.Tensor]]) -> Iterator[dict[str, float]]:
    """Yield rows of the log with their tensors as numbers; DivergedError after the first loss that is not finite."""
    for row in rows:
        numbers = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
        yield numbers
        if not math.isfinite(numbers["loss"]):
            raise DivergedError(f"step {numbers['step']}: the loss is {numbers['loss']}")


def check_weights(model: nn.Module, step: int) -> None:
    """Raise DivergedError if a weight is not finite after a step: the loss shows that only one step later."""
    if not torch.stack([value.isfinite().all() for value in model.parameters()]).all():
        name = next(name for name, value in model.named_parameters() if not value.isfinite().all())
        raise DivergedError(f"step {step}: {name} is not finite after it")


def out_of_memory(
    reason: str, objective: CompositionLoss, batch: Batch, slots: int, optimizer: torch.optim.Optimizer
) -> PipelineError:
    """The error of a GPU whose memory does not hold `slots` slots; tries which micro-batch would fit."""
    problem = f"the GPU's memory does not hold {slots} slots of a step"
    batch_norm = objective.settings.batch_norm
    if batch_norm != "frozen":  # nor can it be tried: synchronized, every process would have to
        advice = f"batch_norm is {batch_norm} and needs them at once: take more GPUs, a smaller batch_size, or frozen"
        return PipelineError(f"{problem}; {advice} ({reason.splitlines()[0]})")
    trained = [value for value in objective.parameters() if value.requires_grad]
    reserved = 0 if optimizer.state else 2 * sum(value.nbytes for value in trained)  # Adam's, made later
    fitting = micro_batch_that_fits(objective, batch, slots, reserved)
    advice = (
        f"{fitting} fit: give --micro-batch {fitting}, in a profile the resource micro_batch of the rule train, which "
        "leaves the global batch as it is"
        if fitting
        else "not even one fits next to the model: a GPU with more memory is needed"
    )
    return PipelineError(f"{problem}; {advice} ({reason.splitlines()[0]})")


def is_failed_compilation(error: BaseException) -> bool:
    """True for the error of torch.compile whose compiler is missing or fails; torch exports no name for it."""
    return any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__)


def failed_compilation(error: BaseException, device: torch.device) -> PipelineError:
    """The error that names the compiler which torch.compile needs."""
    compiler = "a C++ compiler (g++)" if device.type == "cpu" else "a C compiler (gcc) and Python's headers"
    reason = next(line for line in str(error).splitlines() if line)
    return PipelineError(
        f"torch.compile failed and needs {compiler}: install it, delete torch's cache of kernels if a kill damaged it "
        f"(TORCHINDUCTOR_CACHE_DIR), or set the resource `compile` to 0: {reason}"
    )


def failed_loader(error: Exception, loaders: Collection[BaseProcess]) -> PipelineError | None:
    """The error of a loader process that was ended or that has no shared memory; None for any other error.

    torch raises RuntimeError for both, with nothing but its message to distinguish them. A loader that is killed while
    torch is in its own code can also end in another error, so the processes are asked as well.
    """
    text = str(error)
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
    if is_full or ("shared memory" in text and ("DataLoader worker" in text or "unable to allocate" in text)):
        return PipelineError(
            "the loader processes have too little shared memory: enlarge /dev/shm (docker run --shm-size), or set "
            "the resource loader_workers to 0; the same command continues from the last checkpoint"
        )
    seconds = SECONDS_UNTIL_ENDED if loaders and isinstance(error, (ConnectionError, EOFError)) else 0
    ended = wait([process.sentinel for process in loaders], seconds)
    for process in loaders:
        if process.sentinel in ended:
            process.join()
    killed = [
        signal.Signals(-process.exitcode).name for process in loaders if process.exitcode and process.exitcode < 0
    ]
    if killed or "DataLoader worker (pid" in text:
        reason = f"by {killed[0]}" if killed else text.splitlines()[0].strip()
        return PipelineError(
            f"a loader process was ended ({reason}); mostly the machine's memory ran out: lower the resource "
            "loader_workers or ask for more memory; the same command continues from the last checkpoint"
        )
    return None
