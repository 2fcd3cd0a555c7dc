"""The training loop: the steps that a pairs file prescribes, logged step by step and resumable bit for bit."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.files import write_checked_text, write_json
from pipeline.models import save_model
from pipeline.models.clap import ClapModel
from pipeline.provenance import remember
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, gather_rows, synchronize_batch_norms
from pipeline.training.failures import (
    DivergedError,
    check_weights,
    failed_compilation,
    finite_rows,
    is_failed_compilation,
    out_of_memory,
)
from pipeline.training.layers import enter_training_mode, freeze_layers, parameter_groups
from pipeline.training.loading import load_batches, scratch_folder
from pipeline.training.micro_batches import backward_in_micro_batches
from pipeline.training.monitor import SELECTED_BY, Monitor
from pipeline.training.options import RunOptions
from pipeline.training.outputs import ACCOUNT, FINISHED, Job, checksums, lock_folder, remove_checkpoints
from pipeline.training.progress import LinePerReport
from pipeline.training.settings import TrainingSettings
from pipeline.training.stopping import StopRequest
from pipeline.training.teachers import load_teachers
from pipeline.training.validation import Selection, Validation

logger = logging.getLogger(__name__)

STEPS_PER_REPORT = 20
"""Steps on GPUs between two reads of the losses and two checks for requests to stop; both wait for the GPUs."""


def train(model: ClapModel, job: Job, processes: Processes, options: RunOptions) -> None:
    """Train `model` in place and write the outputs of `job`; resume from its checkpoint if there is one.

    The model gets the setting for short clips from the pairs and that for channels from the shards. A job with a file
    for its outcome also writes all outputs when it diverges; its weights are then useless.

    The random numbers of a step (dropout, SpecAugment) depend only on (seed, step, rank). So a training that was killed
    and resumed ends with the weights of an uninterrupted one.

    Raises:
        PipelineError: Inputs are damaged or unsuitable, the checkpoint belongs to another training, or another training
            uses the folder.
        DivergedError: A loss or a weight is not finite, and the job has no file for its outcome.
        SystemExit: The checkpoint is saved after SIGTERM (status 143) or Ctrl-C (130).
    """
    if options.micro_batch and job.settings.batch_norm != "frozen":
        raise PipelineError(
            f"micro_batch is {options.micro_batch}, but batch_norm is {job.settings.batch_norm}, which needs the "
            "whole batch; set micro_batch to 0 or batch_norm to frozen"
        )
    if (job.validation is None) != (job.settings.validate_every == 0):
        given = "no validation split is" if job.validation is None else "a validation split is"
        raise PipelineError(
            f"validate_every is {job.settings.validate_every}, and {given} given; give the stage train both "
            "--validate-every above 0 and --validation, or neither"
        )
    with lock_folder(job.out) if processes.is_first else nullcontext():
        Trainer(model, job, processes, options).run()
        if processes.is_first:
            remember(job.files, job.made_from)  # first: a kill between the two loses no step
            remove_checkpoints(job.out)


class Trainer:
    """The model, optimizer, schedule and log of a training, and the steps that change them."""

    def __init__(self, model: ClapModel, job: Job, processes: Processes, options: RunOptions) -> None:
        """Check the inputs, prepare the model and load the checkpoint."""
        self.model, self.job, self.processes, self.options = model, job, processes, options
        self.batches = PairedBatches(
            job.pairs, job.shards, processes.rank, processes.count, verify=options.verify_shards
        )
        check_mixing(self.batches, job.settings, job.pairs)
        self._prepare_model()
        self.steps = len(self.batches)
        # Before the optimizer: this sets whether the temperature is learned.
        self.objective = CompositionLoss(model, job.settings, load_teachers(job.teachers, model, job.settings))
        self.optimizer = torch.optim.Adam(
            parameter_groups(model, job.settings), weight_decay=job.settings.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, self.steps, job.settings.warmup_steps)
        )
        self.trained = [value for value in model.parameters() if value.requires_grad]
        self.average = WeightAverage(model, job.settings.average_decay) if job.settings.average_decay else None
        self.validation = (
            None
            if job.validation is None
            else Validation(job.validation, model, processes, verify=options.verify_shards)
        )
        self.selection = Selection()
        self.rows: list[dict[str, float]] = []
        """Rows of the log, with numbers."""
        self.pending: list[dict[str, Any]] = []
        """Rows of the newest steps, with tensors that the device may still be computing."""
        self.step = 0
        """Steps taken so far."""
        self.checkpoints = Checkpoints(job.out, job.origin, any_version=options.any_version)
        self._resume()
        self.monitor = Monitor(
            job.out,
            steps=self.steps,
            first_step=self.step,
            batch_size=self.batches.facts["batch_size"],
            processes=processes,
        )
        self.backward = backward_pass(
            self.objective, job.settings, processes, options.micro_batch, self.monitor.repeating
        )

    def run(self) -> None:
        """Take the remaining steps and write the outputs."""
        stop = StopRequest(self.options.seconds_per_checkpoint)
        with stop.listening():
            outcome = self._take_steps(stop)
            if self.processes.is_first:
                self._write_outputs(outcome)

    def _prepare_model(self) -> None:
        settings, model = self.job.settings, self.model
        model.short_clips, model.channels = self.batches.drawing.short_clips, self.batches.channels
        if settings.batch_norm == "synchronized":
            synchronize_batch_norms(model.audio_encoder)
        freeze_layers(model, settings)
        model.to(self.processes.device).set_training_mode(
            encoder_regularisation=settings.encoder_regularisation,
            batch_norm="frozen" if settings.batch_norm == "frozen" else "batch",
        )
        enter_training_mode(model, settings)
        if self.options.compiled:
            compile_audio_encoder(model)

    def _resume(self) -> None:
        path = self.checkpoints.path
        if state := self.checkpoints.load():
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.rows, self.step = state["rows"], state["step"]
            self.selection.load_state_dict(state.get("selection", {}))
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            logger.info("resuming from %s at step %d of %d", path, self.step, self.steps)
        check_common_start(self.step, path, self.processes)

    def _take_steps(self, stop: StopRequest) -> str:
        """Take the remaining steps; return `FINISHED`, or the way of divergence if the job records it."""
        batch = None
        on_gpu = self.processes.device.type == "cuda"
        try:
            with (
                scratch_folder(self.job.out, self.processes.rank) as scratch,
                load_batches(
                    self.batches, range(self.step, self.steps), scratch, workers=self.options.workers, pin_memory=on_gpu
                ) as batches,
                self._progress_bar() as progress,
            ):
                self._validate_if_due()  # a training that was asked to stop saved without it
                for batch in batches if not self._is_over() else ():
                    self.pending.append(self.take_step(batch))
                    self._after_step(stop, progress)
                    if self._is_over():
                        break
            if self.job.outcome is not None and batch is not None:
                self._check_last_weights(batch)
        except DivergedError as error:
            reason = self._describe(error)
            if self.job.outcome is None:
                raise DivergedError(reason) from None
            return reason
        return FINISHED

    def take_step(self, batch: Batch) -> dict[str, Any]:
        """Take one step of the optimizer; return its row of the log, whose losses may not be computed yet."""
        shortage = ""
        try:
            with self.monitor.counting():
                losses = self._update_weights(batch)
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        except Exception as error:
            if not is_failed_compilation(error):
                raise
            raise failed_compilation(error, self.processes.device) from error
        if shortage:  # outside of the `except`: its error keeps the tensors of the step alive
            self.optimizer.zero_grad(set_to_none=True)
            slots = self.options.micro_batch or len(batch.keys)
            raise out_of_memory(shortage, self.objective, batch, slots, self.optimizer)
        row = {
            "step": self.step,
            "epoch": self.step // self.batches.facts["steps_per_epoch"],
            **losses,
            **self._learning_rates(),
            "logit_scale": self.model.logit_scale.detach().exp(),
        }
        self.scheduler.step()
        self.step += 1
        return row

    def _update_weights(self, batch: Batch) -> dict[str, torch.Tensor]:
        settings = self.job.settings
        torch.manual_seed((self.job.seed * 1_000_003 + self.step) * 1_009 + self.processes.rank)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(batch)
        if settings.max_gradient_norm:
            losses["gradient_norm"] = nn.utils.clip_grad_norm_(self.trained, settings.max_gradient_norm)
        self.optimizer.step()
        if settings.learn_temperature:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(settings.max_logit_scale))
        if self.average is not None:
            self.average.update(self.step)
        return {name: value.detach() for name, value in losses.items()}

    def _after_step(self, stop: StopRequest, progress: tqdm[Any]) -> None:
        """Read the losses, save and stop, each when due; every process decides the same."""
        is_last = self.step == self.steps
        is_due = self._is_validation_due()
        is_save = self.step % self.options.steps_per_checkpoint == 0 and not is_last
        is_report = self.processes.device.type == "cpu" or self.step % STEPS_PER_REPORT == 0
        # A single process checks after every step: on a slow GPU, STEPS_PER_REPORT steps may exceed SLURM's grace time.
        is_asked = self.processes.count == 1 and stop.is_made
        if not (is_report or is_asked or is_save or is_last or is_due):
            return
        stop_signal = 0
        if not is_last and (is_report or is_asked):
            decision = stop.decide(self.processes)
            stop_signal, is_save = decision.stop, is_save or decision.save or decision.stop != 0
        self.rows += finite_rows(self.pending)
        if is_save or is_last or is_due:
            check_weights(self.model, self.step - 1)
        if not stop_signal:  # which does not wait for a validation: the next part begins with it
            self._validate_if_due()
        progress.set_postfix(self.monitor.report(self.rows[-len(self.pending) :]), refresh=False)
        self.pending.clear()
        progress.update(self.step - progress.n)
        if is_save:
            self._save()
            stop.note_save()
        if stop_signal:
            progress.close()  # otherwise its last line follows the reason
            logger.warning(
                "asked to stop: saved step %d of %d; the same command continues from there", self.step, self.steps
            )
            raise SystemExit(128 + stop_signal)

    def _is_validation_due(self) -> bool:
        """Return whether the weights after the last step are to be validated, and were not yet."""
        if self.validation is None or self.step == self.selection.last_step:
            return False
        every = self.job.settings.validate_every * self.batches.facts["steps_per_epoch"]
        return self.step % every == 0 or self.step == self.steps

    def _validate_if_due(self) -> None:
        """Write the figures of the validation splits into the last row of the log, and keep the best weights."""
        if self.validation is None or not self._is_validation_due():
            return
        with nullcontext() if self.average is None else self.average.in_place():
            self.model.eval()
            figures = self.validation.figures(self.model)
            enter_training_mode(self.model, self.job.settings)
            is_best = self.selection.add(self.step, figures[SELECTED_BY])
            if is_best and self.job.settings.keep == "best" and self.processes.is_first:
                self.selection.keep(self.model)
        self.rows[-1] |= figures
        self.monitor.report_validation(self.step - 1, figures, self.validation.seconds)
        logger.info(
            "epoch %d: validation mAP@10 %.2f, best %.2f after step %d",
            self.rows[-1]["epoch"], figures[SELECTED_BY], self.selection.figure, self.selection.step,
        )  # fmt: skip

    def _validation_account(self) -> dict[str, Any]:
        """Return the entry of training.json on the validations."""
        return {
            "seconds": self.monitor.validation_s,
            "best_step": self.selection.step,
            f"best_{SELECTED_BY}": self.selection.figure,
            "is_stopped_early": self.step < self.steps,
        }

    def _is_over(self) -> bool:
        """Return whether the training ends before its last step: too many validations without a new best one."""
        patience = self.job.settings.patience
        return patience > 0 and self.selection.without_improvement >= patience

    def _learning_rates(self) -> dict[str, float]:
        """Return the rates of the step: of the encoders' last layer groups and of the a2t module, where trained."""
        rates = [float(rate) for rate in self.scheduler.get_last_lr()]
        a2t = {} if self.model.a2t is None else {"a2t_learning_rate": rates.pop()}
        return {**({"learning_rate": rates[0]} if rates else {}), **a2t}

    def _save(self) -> None:
        self.monitor.note()
        if self.processes.is_first:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "rows": self.rows,
                "step": self.step,
            }
            if self.validation is not None:
                state["selection"] = self.selection.state_dict()
            if self.average is not None:
                state["average"] = self.average.state_dict()
            self.checkpoints.save(state)
        if self.processes.count > 1:
            dist.barrier()

    def _check_last_weights(self, batch: Batch) -> None:
        """Raise DivergedError for weights that are finite, but too large to embed anything."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            loss = self.objective(batch)["loss"].item()
        if not math.isfinite(loss):
            raise DivergedError(f"step {self.steps - 1}: the loss after it is {loss}")

    def _describe(self, error: DivergedError) -> str:
        """Return how the training diverged, on which clips, and whether a checkpoint exists."""
        step, path = len(self.rows) - 1, self.checkpoints.path
        kept = f"the checkpoint {path} is kept" if path.exists() else "there is no checkpoint yet"
        clips = ", ".join(self.batches.keys_of_all(step))
        return f"{error}; {kept}; a lower learning_rate is the usual remedy; clips of its batch: {clips}"

    @contextmanager
    def _progress_bar(self) -> Iterator[tqdm[Any]]:
        with tqdm(
            file=None if sys.stderr.isatty() else LinePerReport(),
            mininterval=0.1 if sys.stderr.isatty() else 5,  # seconds: a log file gets a line now and then
            total=self.steps,
            initial=self.step,
            unit="step",
            desc=self.job.settings.objective,
            disable=not self.processes.is_first,
        ) as progress:
            try:
                yield progress
            except Exception as error:
                # It may follow from the end of another process, whose reason stays the last line.
                if self.processes.count > 1 and not isinstance(error, PipelineError):
                    progress.disable = True
                raise

    def _write_outputs(self, outcome: str) -> None:
        """Write all outputs, training.json last: it marks the outputs as complete."""
        job = self.job
        if self.average is not None:
            self.average.put_in_place()
        if self.selection.weights is not None:
            self.model.load_state_dict(self.selection.weights)
        save_model(self.model, job.out)
        settings = job.origin.settings
        columns = dict.fromkeys(name for row in self.rows for name in row)  # figures of validations are in few rows
        table = pa.table({name: [row.get(name) for row in self.rows] for name in columns})
        table = table.replace_schema_metadata({"settings": json.dumps(settings, sort_keys=True)})
        write_parquet(table, job.out / "training.parquet")
        self.monitor.write_curves(
            table, f"{settings['objective']}, seed {job.seed}: {self.steps} steps of {self.monitor.batch_size} clips"
        )
        if job.outcome is not None:
            write_checked_text(outcome + "\n", job.outcome)
        account = self.monitor.account() | {
            "settings": settings,
            "data": self.batches.facts,
            "made_from": job.origin.made_from(),
            "machine": dataclasses.asdict(self.options),
            **({} if self.validation is None else {"validation": self._validation_account()}),
            "outcome": outcome,
            "files_sha256": checksums(job.outputs),
        }
        write_json(account, job.out / ACCOUNT)


def compile_audio_encoder(model: ClapModel) -> None:
    """Let torch.compile compile the audio encoder after the spectrogram; parameters keep their names.

    The encoder does three quarters of a step's arithmetic. The text encoder is not compiled: its lengths differ between
    steps, and kernels for all lengths depend on the first ones, so a resumed training would not be equal bit for bit.
    Each number of windows gets its own kernels. Random numbers are those of a run without torch.compile, so that both
    passes of a micro-batch draw the same.
    """
    model.audio_encoder.compile(dynamic=False, options={"fallback_random": True})


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate at a step, from 0: linear warm-up, then a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def check_mixing(batches: PairedBatches, settings: TrainingSettings, pairs: Path) -> None:
    """Raise PipelineError if the pairs were made for another objective."""
    batch = batches[0]
    if batch.partner_BS is None:
        found = "none"
    else:
        found = "unlabeled partners" if batches.facts["unlabeled"] else "labeled partners"
    needed = {"finetune": "none", "composed": "unlabeled partners", "concatenate": "labeled partners"}
    if found != needed[settings.objective]:
        raise PipelineError(
            f"{pairs}: pairs hold {found}, the objective `{settings.objective}` needs {needed[settings.objective]}"
        )
    if "text_mixing" in settings.term_weights and batch.second_BS is None:
        raise PipelineError(
            f"{pairs}: pairs hold no second partners, which text_mixing_weight needs; make them again with "
            "pair_clips --mix-labeled"
        )


def check_common_start(first_step: int, checkpoint: Path, processes: Processes) -> None:
    """Raise PipelineError if processes would resume at different steps, as on nodes without a shared folder."""
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
    micro_batch: int = 0,
    first_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Backward:
    """Return the function for losses and gradients: in one pass, averaged over processes by DDP, or in micro-batches.

    micro_batch: slots of a micro-batch; 0 for one pass.
    first_pass: makes a context around the first encoding of micro-batches, which is repeated.
    """
    if micro_batch:
        return partial(
            backward_in_micro_batches, objective, slots=micro_batch, processes=processes, first_pass=first_pass
        )
    whole: nn.Module = objective
    if processes.count > 1:
        whole = DistributedDataParallel(objective, broadcast_buffers=settings.batch_norm == "batch")

    def backward(batch: Batch) -> dict[str, torch.Tensor]:
        losses = whole(batch)
        losses["loss"].backward()
        return losses

    return backward
