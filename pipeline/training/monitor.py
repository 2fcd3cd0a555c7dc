"""TensorBoard's event files, learning curves, and the record of time, hardware and arithmetic of a training.

Only the first process writes them. They do not affect the training.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from pipeline.errors import PipelineError, write_error_message
from pipeline.files import read_json, write_atomically, write_json
from pipeline.models.devices import device_name
from pipeline.training.distributed import Processes, gather_rows
from pipeline.training.outputs import CHECKPOINTS
from pipeline.training.throughput import flop_counter, utilization

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

SECONDS_PER_NOTE = 30
"""Seconds between two records of the elapsed time; a kill loses at most this time from the total."""

NOT_PLOTTED = {"step", "epoch"}
VALIDATION = "validation_"
"""Start of the columns of the log with figures of the validation splits, which are empty at other steps."""
SELECTED_BY = f"{VALIDATION}mAP10"
"""Column with the figure that selects weights: the mean mAP@10 of both directions and all splits."""
PART = ("first_step", "last_step", "wall_s")
"""Entries of a part in parts.json and training.json; a part with validations also has `validation_s`."""
PACKAGES = ("transformers", "msclap", "audio-composed-text")


class Monitor:
    """The record of one training, over all its parts when it is interrupted and resumed."""

    def __init__(self, out: Path, *, steps: int, first_step: int, batch_size: int, processes: Processes) -> None:
        """Begin a part: step 0 removes the event files of an earlier training, other steps read the earlier parts.

        `out` is the output folder; its folder of checkpoints has the record for the next part.
        """
        self.out = out
        self.notes = out / CHECKPOINTS / "parts.json"
        self.steps = steps
        self.first_step = first_step
        self.done = first_step
        self.batch_size = batch_size
        self.processes = processes
        self.flops: int | None = None
        self.hardware_flops: int | None = None
        self._repeated_flops: int | None = None  # not None while step 0 is counted
        self._own_validation_s = 0.0
        self._validated: dict[str, str] = {}
        self._writer: SummaryWriter | None = None
        self._began = self._noted = self._reported = time.perf_counter()
        self._earlier: list[dict[str, float]] = []
        if first_step:
            self._read_notes()
        elif processes.is_first:
            shutil.rmtree(self.out / "tensorboard", ignore_errors=True)

    def _read_notes(self) -> None:
        """Read the record of earlier parts; if it is damaged, their time and the count of step 0 are missing."""
        try:
            noted = read_json(self.notes)
            parts = [
                {name: float(part[name]) if name == "wall_s" else int(part[name]) for name in PART}
                | ({"validation_s": float(part["validation_s"])} if "validation_s" in part else {})
                for part in noted["parts"]
            ]
            flops, hardware_flops = noted["flops_a_step"], noted["hardware_flops_a_step"]
            if not {type(flops), type(hardware_flops)} <= {int, type(None)}:
                raise ValueError("operations of a step are not whole numbers")
        except (PipelineError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "%s: damaged (%s); training.json will lack the time before step %d, the weights are not affected; "
                "delete %s to start again",
                self.notes, error, self.first_step, self.notes.parent,
            )  # fmt: skip
            return
        self._earlier, self.flops, self.hardware_flops = parts, flops, hardware_flops

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations of step 0 on all processes; counting takes time, so other steps are not counted.

        Step 0 runs without torch.compile, which never compiles code that it first meets under a counter. A resumed part
        does not count: its first step would run without torch.compile, unlike that of an uninterrupted training.
        """
        if self.first_step or self.flops is not None:
            yield
            return
        self._repeated_flops = 0
        with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
            yield
        done = counter.get_total_flops()
        own = torch.tensor([[done - self._repeated_flops, done]], device=self.processes.device)
        self.flops, self.hardware_flops = gather_rows(own).sum(dim=0).tolist()
        self._repeated_flops = None

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Wrap arithmetic that the step repeats: step 0 counts it for the hardware, not for the model."""
        if self._repeated_flops is None:
            yield
            return
        with flop_counter() as counter:
            yield
        self._repeated_flops += counter.get_total_flops()

    def report(self, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Record the newest rows of the log; return the entries of the progress line."""
        now, self.done = time.perf_counter(), int(rows[-1]["step"]) + 1
        shown = {"loss": f"{rows[-1]['loss']:.3f}"}
        average = (self.done - self.first_step) * self.batch_size / (now - self._began)
        shown["clips_per_s"] = f"{average:.0f}" if average >= 10 else f"{average:.2f}"
        shown |= self._validated
        memory_gb = self._memory_gb() if self.processes.device.type == "cuda" else None
        if memory_gb is not None:
            shown["gpu_gb"] = f"{memory_gb:.1f}"
        if not self.processes.is_first:
            return shown
        speed = len(rows) * self.batch_size / (now - self._reported)
        with self._event_writer() as writer:
            for row in rows:
                for name, value in row.items():
                    if name not in NOT_PLOTTED and not name.startswith(VALIDATION):
                        writer.add_scalar(f"{group_of(name)}/{name}", value, int(row["step"]))
            writer.add_scalar("machine/clips_per_s", speed, self.done - 1)
            if memory_gb is not None:
                writer.add_scalar("machine/gpu_memory_gb", memory_gb, self.done - 1)
        self._reported = now
        if now - self._noted > SECONDS_PER_NOTE:
            self.note()
        return shown

    def report_validation(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        """Record the figures of a validation after a step, and the time of this part's validations so far."""
        self._validated = {"mAP10": f"{figures[SELECTED_BY]:.1f}"}
        self._own_validation_s = seconds
        if self.processes.is_first:
            with self._event_writer() as writer:
                for name, value in figures.items():
                    writer.add_scalar(f"validation/{name.removeprefix(VALIDATION)}", value, step)

    @property
    def validation_s(self) -> float:
        """Seconds of the validations of all parts."""
        return sum(part.get("validation_s", 0.0) for part in self._parts())

    def note(self) -> None:
        """Save the elapsed time for a next part, and flush the event files."""
        if self.processes.is_first:
            flops = {"flops_a_step": self.flops, "hardware_flops_a_step": self.hardware_flops}
            write_json({"parts": self._parts(), **flops}, self.notes)
            self._noted = time.perf_counter()
            with self._event_writer() as writer:
                writer.flush()

    def write_curves(self, log: pa.Table, title: str) -> None:
        """Write learning_curves.svg from a log and close the event files."""
        with self._event_writer() as writer:
            writer.close()
        # Imported here: importing matplotlib takes a second, which would delay the first step.
        from pipeline.results.plots import as_file, training_curves

        with write_atomically(self.out / "learning_curves.svg") as temporary:
            temporary.write_text(as_file(training_curves(log, title)), encoding="utf-8")

    @contextlib.contextmanager
    def _event_writer(self) -> Iterator[SummaryWriter]:
        """Yield the writer of the event files, whose errors do not name a file."""
        try:
            yield self._open_writer()
        except OSError as error:
            raise PipelineError(write_error_message(self.out / "tensorboard", error)) from error

    def _open_writer(self) -> SummaryWriter:
        # Not before the first step: the loader must fork its workers before the writer starts a thread.
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # An earlier part may have logged steps after its last checkpoint; TensorBoard hides these.
            purge_step = self.first_step or None
            self._writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=purge_step, flush_secs=10)
        return self._writer

    def _memory_gb(self) -> float:
        """Return the peak memory of this process: of its GPU, otherwise of the machine."""
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.processes.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def _parts(self) -> list[dict[str, float]]:
        own = {"first_step": self.first_step, "last_step": self.done - 1, "wall_s": time.perf_counter() - self._began}
        if self._own_validation_s:
            own["validation_s"] = self._own_validation_s
        return [*self._earlier, own]

    def account(self) -> dict[str, Any]:
        """Return the entries of training.json on versions, hardware, time of all parts and arithmetic."""
        device, parts = self.processes.device, self._parts()
        gpus = [device_name(device)] * self.processes.count if device.type == "cuda" else []
        wall_s = sum(part["wall_s"] for part in parts)
        steps_s = wall_s - self.validation_s
        taken = sum(part["last_step"] - part["first_step"] + 1 for part in parts)
        reached, hardware_reached = (
            None if flops is None else flops * taken / steps_s for flops in (self.flops, self.hardware_flops)
        )
        return {
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),  # includes its CUDA version
                **{name: _version(name) for name in PACKAGES},
            },
            "git": git_state(Path(__file__).parents[2]),
            "hardware": {
                "processor": device_name(torch.device("cpu")),
                "cores": len(os.sched_getaffinity(0)),
                "threads_a_process": torch.get_num_threads(),
                "processes": self.processes.count,
                "gpus": gpus,
            },
            "parts": parts,
            "wall_s": wall_s,
            "gpu_s": wall_s * len(gpus),
            "steps": self.steps,
            "steps_taken": taken,
            "clips_per_s": taken * self.batch_size / steps_s,
            "peak_memory_gb": self._memory_gb(),
            "flops_a_step": self.flops,
            "hardware_flops_a_step": self.hardware_flops,
            "flops_counted": "by torch.utils.flop_counter in step 0, for all processes; the first encoding of "
            "micro-batches, which is repeated, counts for the hardware only",
            "flops_per_s": reached,
            "model_flops_utilization": None if reached is None else utilization(reached, gpus),
            "hardware_flops_utilization": None if hardware_reached is None else utilization(hardware_reached, gpus),
        }


def group_of(column: str) -> str:
    """Return the group of a column of the log in TensorBoard."""
    is_schedule = column.endswith("learning_rate") or column in ("logit_scale", "gradient_norm")
    return "schedule" if is_schedule else "loss"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # this package, when it runs from a clone
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a working tree and whether a tracked file differs from it; None without git."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # The environment with this package may be inside a clone of another project.
        ask("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None
