"""A step whose batch does not fit into memory: slots are encoded in micro-batches, the loss is that of the whole batch.

The method is GradCache (Gao, Zhang, Han, Callan 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup). It is exact because slots do not depend on each other, except through BatchNorm with the batch's statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pipeline.training.batches import Batch
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, average_gradients


def micro_batches(batch: Batch, slots: int) -> Iterator[Batch]:
    """Yield the slots of a batch in order, in parts of `slots`; the last part may be smaller."""
    columns = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    for first in range(0, len(batch.keys), slots):
        part = {name: column[first : first + slots] for name, column in columns.items() if column is not None}
        yield dataclasses.replace(batch, **part)


def backward_in_micro_batches(
    objective: CompositionLoss,
    batch: Batch,
    slots: int,
    processes: Processes,
    first_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Tensor]:
    """Return the losses of the global batch; their gradient is in the parameters as after a plain backward pass.

    Memory holds the activations of at most `slots` slots of this process. All slots are encoded twice: first for the
    loss and its gradient with respect to the embeddings, then, with the same random numbers, to pass that gradient on
    to the parameters. The embeddings of a slot depend on each other (the pseudo-token on the audio) but not on other
    slots, so one backward pass per micro-batch is enough.

    first_pass: makes a context around the first encoding, which is repeated.
    """
    parts, states, rows = list(micro_batches(batch, slots)), [], []
    taught_parts = [objective.teach(part) for part in parts]
    taught = [torch.cat(of_teacher) for of_teacher in zip(*taught_parts, strict=True)]
    with torch.no_grad(), first_pass():
        for part in parts:
            states.append(_random_state(processes.device))
            rows.append(objective.embed(part))
    own_BK2D = torch.cat(rows).requires_grad_()
    losses = objective.compare(own_BK2D, batch, taught)
    losses["loss"].backward()
    assert own_BK2D.grad is not None
    for part, state, gradient in zip(parts, states, own_BK2D.grad.split(slots), strict=True):
        _restore_random_state(state, processes.device)
        objective.embed(part).backward(gradient)
    average_gradients(objective, processes)
    return losses


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def micro_batch_that_fits(objective: CompositionLoss, batch: Batch, slots: int, reserved_bytes: int) -> int | None:
    """Return the largest half, quarter, ... of `slots` whose passes fit on the device; None if not even one slot fits.

    The function tries them, with `reserved_bytes` kept free for the rest of a step. The parameters keep their
    gradients, and no other process takes part.
    """
    with torch.compiler.set_stance("force_eager"):  # compile no kernels for sizes that are only tried
        while slots > 1:
            slots = -(-slots // 2)
            torch.cuda.empty_cache()
            if _fits(objective, next(micro_batches(batch, slots)), reserved_bytes):
                return slots
    return None


def _fits(objective: CompositionLoss, batch: Batch, reserved_bytes: int) -> bool:
    parameters = [value for value in objective.parameters() if value.requires_grad]
    try:
        reserved = torch.empty(reserved_bytes, dtype=torch.uint8, device=objective.model.logit_scale.device)
        torch.autograd.grad(objective.embed(batch).sum(), parameters, allow_unused=True)
        del reserved  # held until here
    except torch.OutOfMemoryError:
        return False
    return True
