"""Options that both training stages share: the inputs and outputs, and how a training runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from pipeline.devices import add_device_argument
from pipeline.training.settings import TrainingSettings, add_settings_arguments


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a training runs; nothing here changes its result, but for rounding and the drawing of dropout.

    Which values dropout and SpecAugment hit depends on the number of processes and on `micro_batch`, not on `compiled`.
    """

    workers: int = 0
    """Loader processes per training process."""
    micro_batch: int = 0
    """Slots that a process holds in memory at once with what their backward pass needs; 0 for its whole share."""
    compiled: bool = False
    """Whether torch.compile makes the kernels of the audio encoder."""
    steps_per_checkpoint: int = 200
    """Most steps between two checkpoints."""
    seconds_per_checkpoint: float = 600
    """Most seconds between two checkpoints, looked at where the losses are."""
    verify_shards: bool = False
    """Whether the shards' checksums are computed before the first step."""
    any_version: bool = False
    """Whether a checkpoint of another version of the training is accepted."""


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the inputs, outputs and settings that every training has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file of pair_clips")
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder that holds DATASET/SPLIT/ of the pairs' clips"
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model and training.parquet to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process (default: %(default)s)")
    add_device_argument(parser)
    add_settings_arguments(parser, TrainingSettings)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of `RunOptions`, with its default."""
    default = RunOptions()
    group = parser.add_argument_group("how the training runs")
    group.add_argument("--workers", type=int, default=default.workers, help="loader processes per training process")
    group.add_argument(
        "--micro-batch",
        type=int,
        default=default.micro_batch,
        help="slots that a process holds in memory at once; the loss stays that of the global batch (default: all)",
    )
    group.add_argument(
        "--compile",
        type=int,
        choices=[0, 1],
        default=int(default.compiled),
        help="1: torch.compile makes the kernels of the audio encoder before the first step (default: %(default)s)",
    )
    group.add_argument(
        "--verify-shards",
        type=int,
        choices=[0, 1],
        default=1,
        help="1: compute the shards' checksums before the first step; 0: look at their sizes (default: %(default)s)",
    )
    group.add_argument(
        "--steps-per-checkpoint",
        type=int,
        default=default.steps_per_checkpoint,
        help="most steps between two checkpoints (default: %(default)s)",
    )
    group.add_argument(
        "--seconds-per-checkpoint",
        type=float,
        default=default.seconds_per_checkpoint,
        help="most seconds between two checkpoints (default: %(default)s)",
    )
    group.add_argument(
        "--resume-any-version",
        action="store_true",
        help="go on from a checkpoint of another version of the training; its weights are then those of no version",
    )


def run_options(args: argparse.Namespace) -> RunOptions:
    """The run options in what a parser with `add_run_options` has parsed."""
    return RunOptions(
        workers=args.workers,
        micro_batch=args.micro_batch,
        compiled=bool(args.compile),
        steps_per_checkpoint=args.steps_per_checkpoint,
        seconds_per_checkpoint=args.seconds_per_checkpoint,
        verify_shards=bool(args.verify_shards),
        any_version=args.resume_any_version,
    )
