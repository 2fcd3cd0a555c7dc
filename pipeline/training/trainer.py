"""The training loop: the steps that a pairs file prescribes, resumable to the bit, logged step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import math
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
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
from pipeline.training.compilation import compile_audio_encoder, describe_failed_compilation
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, gather_rows, synchronize_batch_norms
from pipeline.training.micro_batches import backward_in_micro_batches, micro_batch_that_fits
from pipeline.training.monitor import Watch
from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

STEPS_PER_REPORT = 20
"""Steps on GPUs between two looks at the losses, and between two questions whether to stop: each waits for the GPUs."""

SAVED_AND_STOPPED = 128 + signal.SIGTERM
"""Exit status after SIGTERM: the checkpoint is written, the same command goes on from it."""


FINISHED = "finished"
"""Outcome of a training that did not diverge."""


class Diverged(PipelineError):
    """A loss or a weight of a training that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a training runs; nothing here changes its result, but for the rounding of sums and the drawing of dropout.

    Which values dropout and SpecAugment hit depends on the number of processes and on `micro_batch`, not on `compiled`.
    """

    workers: int = 0
    """Loader processes a training process."""
    micro_batch: int = 0
    """Slots that a process holds in memory at once with what their backward pass needs; 0 for its whole share."""
    compiled: bool = False
    """Whether torch.compile makes the kernels of the audio encoder."""
    steps_per_checkpoint: int = 200
    """Steps between two checkpoints."""
    verify_shards: bool = False
    """Whether the shards' checksums are computed before the first step."""


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
    others = ("data/audio.py", "data/pairs.py", "data/shards/reader.py", "stages/train.py", "stages/pretrain.py")
    sources = [*sorted(package.glob("models/*.py")), *sorted(package.glob("training/*.py"))]
    sources += [package / name for name in others]
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return {
        "pairs": sha256_of(pairs),
        "settings": json.dumps({**settings.model_dump(), "seed": seed}, sort_keys=True),
        "starting weights": start,
        "code": code,
        "torch": str(torch.__version__),  # a plain str, which weights_only loading allows
        **{name: importlib.metadata.version(name) for name in ("transformers", "msclap")},
    }


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What differs between two fingerprints, by name; of the settings also which, with both values."""
    names = [name for name, value in expected.items() if found.get(name) != value]
    if "settings" in names:
        before, now = json.loads(found["settings"]), json.loads(expected["settings"])
        changed = [
            f"{name} {before.get(name)!r}, now {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        names[names.index("settings")] = f"settings: {', '.join(changed)}"
    return names


class Checkpoints:
    """The resume point of a training: one file, replaced whole, that knows what it belongs to."""

    def __init__(self, folder: Path, belongs_to: dict[str, str]) -> None:
        self.path = folder / "last.pt"
        self.belongs_to = belongs_to

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, None when there is none; raises on a checkpoint of another training."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PipelineError(
                f"{self.path}: damaged checkpoint ({reason}); delete {self.path.parent} to start again"
            ) from error
        if strange := differences(state["belongs_to"], self.belongs_to):
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


def leave_sigterm_to_the_training(worker: int) -> None:
    """Let a loader process live through SIGTERM, which SLURM sends to every process of a job.

    A training that loses a loader process fails before it can save. With the training its loader processes end.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def in_one_line(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a loader; what a loader process stops at is told as the training process would tell it.

    torch puts the traceback of the other process into the message of an exception of the same class.
    """
    try:
        yield from loader
    except PipelineError as error:
        raise PipelineError(str(error).rsplit("PipelineError: ", 1)[-1].strip()) from None


def parameter_groups(model: ClapModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Adam's groups: the encoders, with the temperature if it is learned, and the a2t module with a rate of its own."""
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
    may_diverge: bool = False,
) -> str:
    """Train `model` in place on the batches of `pairs`; resume from `checkpoints` when there is one.

    From here on the model takes short clips as the pairs do (`model.short_clips`), and channels as the shards.

    Comes back with `FINISHED`. A training that diverges raises, or, where it `may_diverge`, ends there and comes back
    with what happened; its weights are then of no use.

    Every step draws its random numbers (dropout, SpecAugment) from (seed, step, rank) alone, so that a training that
    was killed ends with the weights of an unbroken one. `log` receives a Parquet row a step; beside it come the files
    of `pipeline.training.monitor`. The caller removes the checkpoints once it has saved the weights.
    """
    if machine.micro_batch and settings.batch_norm != "frozen":
        raise PipelineError(
            f"micro_batch is {machine.micro_batch}, but batch_norm is {settings.batch_norm}: statistics of the batch "
            "need it whole; set the one to 0 or the other to frozen"
        )
    batches = PairedBatches(pairs, shards, processes.rank, processes.count, verify=machine.verify_shards)
    check_mixing(batches, settings, pairs)
    model.short_clips, model.channels = batches.drawing.short_clips, batches.channels
    if settings.batch_norm == "synchronized":
        synchronize_batch_norms(model.audio_encoder)
    model.to(processes.device).set_training_mode(
        encoder_regularisation=settings.encoder_regularisation,
        batch_norm="frozen" if settings.batch_norm == "frozen" else "batch",
    )
    if machine.compiled:
        compile_audio_encoder(model)
    steps = len(batches)
    objective = CompositionLoss(model, settings)  # before the optimizer: it says whether the temperature is learned
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
    check_common_start(first_step, resume_point.path, processes)

    watch = Watch(
        log.parent,
        checkpoints,
        steps=steps,
        first_step=first_step,
        batch_size=batches.facts["batch_size"],
        processes=processes,
    )

    def save(step: int) -> None:
        watch.note()
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

    backward = backward_pass(objective, settings, processes, machine, watch.doing_twice)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, steps),
        num_workers=machine.workers,
        pin_memory=processes.device.type == "cuda",
        persistent_workers=machine.workers > 0,
        worker_init_fn=leave_sigterm_to_the_training,
    )
    stop = StopRequest()
    pending: list[dict[str, Any]] = []
    outcome = FINISHED
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
    for step, batch in enumerate(in_one_line(loader), start=first_step):
        try:
            with watch.counting():
                losses = take_step(backward, model, batch, optimizer, step, seed, settings, processes)
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise PipelineError(describe_failed_compilation(error, processes.device)) from error
        else:
            shortage = ""
        if shortage:  # out of the `except`, whose error keeps the step's tensors alive
            optimizer.zero_grad(set_to_none=True)
            raise PipelineError(describe_shortage(shortage, objective, batch, optimizer, machine))
        row = {
            "step": step,
            "epoch": step // batches.facts["steps_per_epoch"],
            **losses,
            **dict(zip(("learning_rate", "a2t_learning_rate"), scheduler.get_last_lr(), strict=False)),
            "logit_scale": model.logit_scale.detach().exp(),
        }
        pending.append(row)
        scheduler.step()
        done = step + 1
        is_save = done % machine.steps_per_checkpoint == 0 and done < steps
        is_report = processes.device.type == "cpu" or done % STEPS_PER_REPORT == 0
        # A process that is alone need not ask: on a slow GPU so many steps are longer than SLURM waits.
        is_asked = processes.count == 1 and stop.is_made
        if not (is_report or is_asked or is_save or done == steps):
            continue
        is_stop = done < steps and (is_report or is_asked) and stop.reaches(processes)
        try:
            rows += settle(pending, batches, resume_point.path)
            if is_save or is_stop or done == steps:
                check_weights(model, step, batches, resume_point.path)
        except Diverged as error:
            if not may_diverge:
                raise
            outcome = str(error)
            break
        progress.set_postfix(watch.report(rows[-len(pending) :]), refresh=False)
        pending.clear()
        progress.update(done - progress.n)
        if is_stop:
            save(done)
            logger.warning("asked to stop: saved step %d of %d; the same command goes on from there", done, steps)
            raise SystemExit(SAVED_AND_STOPPED)
        if is_save:
            save(done)
    progress.close()
    if may_diverge and outcome == FINISHED and first_step < steps:
        # Weights that are finite, but so large that nothing can be embedded with them.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            loss = objective(batch)["loss"].item()
        if not math.isfinite(loss):
            outcome = str(diverged(steps - 1, f"the loss after it is {loss}", batches, resume_point.path))
    if processes.is_first:
        facts = {**settings.model_dump(), "seed": seed}
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"settings": json.dumps(facts, sort_keys=True)})
        write_parquet(table, log)
        watch.finish(table, facts, resume_point.belongs_to, batches.facts, dataclasses.asdict(machine))
    return outcome


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


def check_common_start(first_step: int, checkpoint: Path, processes: Processes) -> None:
    """Raise when the processes would go on from different steps, as nodes without a common folder do."""
    first_steps = gather_rows(torch.tensor([first_step], device=processes.device)).tolist()
    if len(set(first_steps)) > 1:
        raise PipelineError(
            f"{checkpoint}: the processes find it at different steps ({', '.join(map(str, first_steps))}, 0 where it "
            "is missing); --out must be one folder that all nodes see"
        )


Backward = Callable[[Batch], dict[str, torch.Tensor]]
"""From a process's slots to the global batch's losses, with their gradient left in the parameters."""


def backward_pass(
    objective: CompositionLoss,
    settings: TrainingSettings,
    processes: Processes,
    machine: Machine,
    first_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Backward:
    """The way to losses and gradients: in one piece, averaged over the processes by DDP, or by micro-batches.

    first_pass: makes a context around what micro-batches encode a first time, to encode it again.
    """
    if machine.micro_batch:
        slots = machine.micro_batch
        return partial(backward_in_micro_batches, objective, slots=slots, processes=processes, first_pass=first_pass)
    whole: nn.Module = objective
    if processes.count > 1:
        whole = DistributedDataParallel(objective, broadcast_buffers=settings.batch_norm == "batch")

    def backward(batch: Batch) -> dict[str, torch.Tensor]:
        losses = whole(batch)
        losses["loss"].backward()
        return losses

    return backward


def describe_shortage(
    shortage: str, objective: CompositionLoss, batch: Batch, optimizer: torch.optim.Optimizer, machine: Machine
) -> str:
    """What to do after a GPU ran out of memory; finds by trying which micro-batch would fit."""
    slots = machine.micro_batch or len(batch.keys)
    told = f"the GPU's memory does not hold {slots} slots of a step"
    batch_norm = objective.settings.batch_norm
    if batch_norm != "frozen":  # nor can it be tried: synchronized, every process would have to
        advice = f"batch_norm is {batch_norm} and needs them at once: take more GPUs, a smaller batch_size, or frozen"
        return f"{told}; {advice} ({shortage.splitlines()[0]})"
    reserved = 0 if optimizer.state else 2 * sum(value.nbytes for value in objective.parameters())  # Adam's, made later
    fitting = micro_batch_that_fits(objective, batch, slots, reserved)
    advice = (
        f"{fitting} fit: give --micro-batch {fitting}, in a profile the resource micro_batch of the rule train, which "
        "leaves the global batch as it is"
        if fitting
        else "not even one fits beside the model: a GPU with more memory is needed"
    )
    return f"{told}; {advice} ({shortage.splitlines()[0]})"


def take_step(
    backward: Backward,
    model: ClapModel,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    step: int,
    seed: int,
    settings: TrainingSettings,
    processes: Processes,
) -> dict[str, torch.Tensor]:
    """One step of the optimizer on the gradient of `backward`; the losses come back still on the device."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + processes.rank)
    optimizer.zero_grad(set_to_none=True)
    losses = backward(batch)
    optimizer.step()
    if settings.learn_temperature:
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(settings.max_logit_scale))
    return {name: value.detach() for name, value in losses.items()}


def settle(pending: list[dict[str, Any]], batches: PairedBatches, checkpoint: Path) -> Iterator[dict[str, float]]:
    """The rows with their tensors as numbers; raises after the first loss that is not finite."""
    for row in pending:
        numbers = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
        yield numbers
        if not math.isfinite(numbers["loss"]):
            raise diverged(int(numbers["step"]), f"the loss is {numbers['loss']}", batches, checkpoint)


def check_weights(model: ClapModel, step: int, batches: PairedBatches, checkpoint: Path) -> None:
    """Raise when a weight is not finite after a step: the loss shows what a gradient did only one step later."""
    if not torch.stack([value.isfinite().all() for value in model.parameters()]).all():
        name = next(name for name, value in model.named_parameters() if not value.isfinite().all())
        raise diverged(step, f"{name} is not finite after it", batches, checkpoint)


def diverged(step: int, what: str, batches: PairedBatches, checkpoint: Path) -> Diverged:
    """The error that says in which step and on which clips a training diverged, and what is left of it."""
    kept = f"the checkpoint {checkpoint} is kept" if checkpoint.exists() else "there is no checkpoint yet"
    return Diverged(
        f"step {step}: {what}; {kept}; a lower learning_rate is the usual remedy; "
        f"clips of its batch: {', '.join(batches.keys_of_all(step))}"
    )
