"""Command-line options of the training stages: inputs and outputs, and run options."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.metrics import PROTOCOLS
from pipeline.models.devices import add_device_argument
from pipeline.stages import at_least, between
from pipeline.training.outputs import ValidationPlan
from pipeline.training.settings import TrainingSettings, add_settings_arguments


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training runs. These options change its result only through rounding and random masks.

    The masks of dropout and SpecAugment depend on the number of processes and on `micro_batch`, not on `compiled`.
    """

    workers: int = 0
    """Loader processes per training process."""
    micro_batch: int = 0
    """Slots whose activations a process holds in memory together; 0 for all its slots."""
    compiled: bool = False
    """Whether torch.compile compiles the audio encoder."""
    steps_per_checkpoint: int = 200
    """Maximum of steps between two checkpoints."""
    seconds_per_checkpoint: float = 600
    """Maximum of seconds between two checkpoints, checked when losses are read."""
    verify_shards: bool = False
    """Whether the checksums of the shards are verified before the first step."""
    any_version: bool = False
    """Whether a checkpoint of another version of the training is accepted."""


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the inputs, outputs and settings of every training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file of pair_clips")
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder with DATASET/SPLIT/ of the clips in the pairs"
    )
    parser.add_argument("--seed", type=at_least(0), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model and training.parquet to")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads per process (default: %(default)s)")
    add_device_argument(parser)
    add_settings_arguments(parser, TrainingSettings)
    return parser


def add_validation_arguments(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    """Add the validation splits and how figures are computed on them."""
    parser.add_argument(
        "--validation",
        type=Path,
        action="append",
        default=[],
        required=is_required,
        help="folder of a captioned validation split's shards; repeat it for several",
    )
    parser.add_argument(
        "--validation-protocol",
        choices=PROTOCOLS,
        default="paper",
        help="protocol of the validation figures (default: %(default)s)",
    )


def validation_plan(args: argparse.Namespace, windows: str) -> ValidationPlan | None:
    """Return the plan from the arguments of a parser with `add_validation_arguments`; None without a split."""
    folders = tuple(args.validation)
    if not folders:
        return None
    return ValidationPlan(folders=folders, windows=windows, protocol=args.validation_protocol)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add one option per field of `RunOptions`."""
    default = RunOptions()
    group = parser.add_argument_group("how the training runs")
    group.add_argument(
        "--workers", type=at_least(0), default=default.workers, help="loader processes per training process"
    )
    group.add_argument(
        "--micro-batch",
        type=at_least(0),
        default=default.micro_batch,
        help="slots that a process holds in memory together; the loss is still that of the global batch (default: all)",
    )
    group.add_argument(
        "--compile",
        type=int,
        choices=[0, 1],
        default=int(default.compiled),
        help="1: torch.compile compiles the audio encoder before the first step (default: %(default)s)",
    )
    group.add_argument(
        "--verify-shards",
        type=int,
        choices=[0, 1],
        default=1,
        help="1: verify the shards' checksums before the first step; 0: only their sizes (default: %(default)s)",
    )
    group.add_argument(
        "--steps-per-checkpoint",
        type=at_least(1),
        default=default.steps_per_checkpoint,
        help="maximum of steps between two checkpoints (default: %(default)s)",
    )
    group.add_argument(
        "--seconds-per-checkpoint",
        type=between(0, math.inf),
        default=default.seconds_per_checkpoint,
        help="maximum of seconds between two checkpoints (default: %(default)s)",
    )
    group.add_argument(
        "--resume-any-version",
        action="store_true",
        help="resume from a checkpoint of another version of the training; no single version then produces the weights",
    )


def run_options(args: argparse.Namespace) -> RunOptions:
    """Return the run options from the arguments of a parser with `add_run_options`."""
    return RunOptions(
        workers=args.workers,
        micro_batch=args.micro_batch,
        compiled=bool(args.compile),
        steps_per_checkpoint=args.steps_per_checkpoint,
        seconds_per_checkpoint=args.seconds_per_checkpoint,
        verify_shards=bool(args.verify_shards),
        any_version=args.resume_any_version,
    )
