"""The training loop: the steps that a pairs file prescribes, resumable to the bit, logged step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_atomically, write_parquet
from pipeline.models.clap import ClapModel
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes
from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

STEPS_PER_REPORT = 20
"""Steps between two looks at the losses: on a GPU each look waits for the device."""

SAVED_AND_STOPPED = 128 + signal.SIGTERM
"""Exit status after SIGTERM: the checkpoint is written, the same command goes on from it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a training runs; nothing here changes its result."""

    workers: int = 0
    """Loader processes a training process."""
    steps_per_checkpoint: int = 200
    """Steps between two checkpoints."""


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then a cosine to 0 after the last."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def fingerprint(pairs: Path, settings: TrainingSettings, seed: int, start: str) -> dict[str, str]:
    """What a checkpoint belongs to, item by item, so that a refusal can name what differs.

    `start` is the checksum of the weights that the training starts from.
    """
    package = Path(__file__).parents[1]
    sources = [*sorted(package.glob("models/*.py")), *sorted(package.glob("training/*.py")), package / "objectives.py"]
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return {
        "pairs": sha256_of(pairs),
        "settings": json.dumps({**dataclasses.asdict(settings), "seed": seed}, sort_keys=True),
        "starting weights": start,
        "code": code,
        "torch": str(torch.__version__),  # a plain str, which weights_only loading allows
    }


class Checkpoints:
    """The resume point of a training: one file, replaced whole, that knows what it belongs to."""

    def __init__(self, folder: Path, belongs_to: dict[str, str]) -> None:
        self.path = folder / "last.pt"
        self.belongs_to = belongs_to

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, None when there is none; raises on a checkpoint of another training."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        strange = [name for name, value in self.belongs_to.items() if state["belongs_to"].get(name) != value]
        if strange:
            raise PipelineError(
                f"{self.path}: is the checkpoint of another training (different: {', '.join(strange)}); "
                f"delete {self.path.parent} to start again, or restore what it was made with to go on"
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by this state."""
        with write_atomically(self.path) as temporary:
            torch.save({**state, "belongs_to": self.belongs_to}, temporary)


def remove_checkpoints(folder: Path) -> None:
    """Delete the resume point of a training whose weights are saved, and what a kill left beside it."""
    shutil.rmtree(folder, ignore_errors=True)


class StopRequest:
    """Whether someone asked this training to stop (SIGTERM, as SLURM sends before it preempts)."""

    def __init__(self) -> None:
        self.is_made = False
        signal.signal(signal.SIGTERM, self._make)

    def _make(self, *_: object) -> None:
        self.is_made = True

    def reaches(self, processes: Processes) -> bool:
        """True on every process once one of them was asked."""
        if processes.count == 1:
            return self.is_made
        flag = torch.tensor(float(self.is_made), device=processes.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())


def parameter_groups(model: ClapModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Adam's groups: the encoders, and the a2t module with a learning rate of its own."""
    a2t = set() if model.a2t is None else set(model.a2t.parameters())
    encoders = [value for value in model.parameters() if value.requires_grad and value not in a2t]
    groups = [{"params": encoders, "lr": settings.learning_rate}]
    if a2t:
        assert model.a2t is not None
        groups.append({"params": list(model.a2t.parameters()), "lr": settings.a2t_learning_rate})
    return groups


def train(
    model: ClapModel,
    *,
    pairs: Path,
    shards: Path,
    settings: TrainingSettings,
    seed: int,
    start: str,
    checkpoints: Path,
    log: Path,
    processes: Processes,
    machine: Machine,
) -> None:
    """Train `model` in place on the batches of `pairs`; resume from `checkpoints` when there is one.

    Every step draws its random numbers (dropout, SpecAugment) from (seed, step, rank) alone, so that a training that
    was killed ends with the weights of an unbroken one. `log` receives a Parquet row a step. The caller removes the
    checkpoints once it has saved the weights.
    """
    batches = PairedBatches(pairs, shards, processes.rank, processes.count)
    check_mixing(batches, settings, pairs)
    model.to(processes.device).set_training_mode(
        encoder_regularisation=settings.encoder_regularisation, batch_norm=settings.batch_norm
    )
    steps = len(batches)
    optimizer = torch.optim.Adam(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, settings.warmup_steps)
    )
    resume_point = Checkpoints(checkpoints, fingerprint(pairs, settings, seed, start))
    rows: list[dict[str, float]] = []
    first_step = 0
    if state := resume_point.load():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        rows, first_step = state["rows"], state["step"]
        logger.info("resuming from %s at step %d of %d", resume_point.path, first_step, steps)

    def save(step: int) -> None:
        if processes.is_first:
            resume_point.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "rows": rows,
                    "step": step,
                }
            )
        if processes.count > 1:
            dist.barrier()

    objective: nn.Module = CompositionLoss(model, settings)
    if processes.count > 1:
        objective = DistributedDataParallel(objective, broadcast_buffers=settings.batch_norm == "batch")
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, steps),
        num_workers=machine.workers,
        pin_memory=processes.device.type == "cuda",
        persistent_workers=machine.workers > 0,
    )
    stop = StopRequest()
    pending: list[tuple[dict[str, Any], list[str]]] = []
    began = time.perf_counter()
    progress = tqdm(
        mininterval=0.1
        if sys.stderr.isatty()
        else 5,  # seconds: a bar on a terminal, a line now and then in a log file
        total=steps,
        initial=first_step,
        unit="step",
        desc=settings.objective,
        disable=not processes.is_first,
    )
    for step, batch in enumerate(loader, start=first_step):
        losses = take_step(objective, model, batch, optimizer, step, seed, settings, processes)
        row = {
            "step": step,
            "epoch": step // batches.facts["steps_per_epoch"],
            **losses,
            "learning_rate": scheduler.get_last_lr()[0],
            "logit_scale": model.logit_scale.detach().exp(),
        }
        pending.append((row, batch.keys))
        scheduler.step()
        done = step + 1
        is_save = done % machine.steps_per_checkpoint == 0 and done < steps
        if not (processes.device.type == "cpu" or done % STEPS_PER_REPORT == 0 or is_save or done == steps):
            continue
        rows += settle(pending, resume_point.path)
        pending.clear()
        progress.set_postfix(
            loss=f"{rows[-1]['loss']:.3f}",
            clips_per_s=f"{(done - first_step) * batches.facts['batch_size'] / (time.perf_counter() - began):.0f}",
            refresh=False,
        )
        progress.update(done - progress.n)
        # Asking the other processes waits for them, so that on several this is done only now and then.
        may_stop = processes.count == 1 or done % STEPS_PER_REPORT == 0
        if done < steps and may_stop and stop.reaches(processes):
            save(done)
            logger.warning("asked to stop: saved step %d of %d; the same command goes on from there", done, steps)
            raise SystemExit(SAVED_AND_STOPPED)
        if is_save:
            save(done)
    progress.close()
    if processes.is_first:
        facts = json.dumps({**dataclasses.asdict(settings), "seed": seed}, sort_keys=True)
        write_parquet(pa.Table.from_pylist(rows).replace_schema_metadata({"settings": facts}), log)


def check_mixing(batches: PairedBatches, settings: TrainingSettings, pairs: Path) -> None:
    """Raise when the pairs were made for another objective."""
    batch = batches[0]
    has = (
        "labeled partners"
        if batch.partner_captions
        else "unlabeled partners"
        if batch.partner_BS is not None
        else "none"
    )
    needed = {"finetune": "none", "composed": "unlabeled partners", "concatenate": "labeled partners"}[
        settings.objective
    ]
    if has != needed:
        raise PipelineError(f"{pairs}: pairs hold {has}, the objective `{settings.objective}` needs {needed}")


def take_step(
    objective: nn.Module,
    model: ClapModel,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    step: int,
    seed: int,
    settings: TrainingSettings,
    processes: Processes,
) -> dict[str, torch.Tensor]:
    """One step of the optimizer on `objective`, which holds `model`; the losses come back still on the device."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + processes.rank)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=processes.device.type == "cuda"):
        losses = objective(batch)
    losses["loss"].backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(settings.max_logit_scale))
    return {name: value.detach() for name, value in losses.items()}


def settle(pending: list[tuple[dict[str, Any], list[str]]], checkpoint: Path) -> Iterator[dict[str, float]]:
    """The rows with their tensors as numbers; raises at the first loss that is not finite, with its batch's clips."""
    for row, keys in pending:
        numbers = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
        if not math.isfinite(numbers["loss"]):
            kept = f"the checkpoint {checkpoint} is kept" if checkpoint.exists() else "there is no checkpoint yet"
            raise PipelineError(
                f"step {numbers['step']}: the loss is {numbers['loss']}; {kept}; a lower learning_rate is the usual "
                f"remedy; clips of its batch: {', '.join(keys)}"
            )
        yield numbers
