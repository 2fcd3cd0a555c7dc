"""Train a run: start from a pretrained model, follow a pairs file, write weights and a log of every step.

Under torchrun on any number of processes and nodes, or alone. Run again after a kill it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from pipeline.files import sha256_of, write_atomically
from pipeline.models import load_model, save_model
from pipeline.models.devices import add_device_argument, choose_device
from pipeline.stages import run
from pipeline.training.distributed import join_processes
from pipeline.training.settings import TrainingSettings, add_settings_arguments, settings_from_arguments
from pipeline.training.trainer import Machine, remove_checkpoints, train

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of the model to start from")
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file of pair_clips")
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder that holds DATASET/SPLIT/ of the pairs' clips"
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model and training.parquet to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process")
    parser.add_argument("--workers", type=int, default=0, help="loader processes a training process")
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        help="slots that a process holds in memory at once; the loss stays that of the global batch (default: all)",
    )
    parser.add_argument(
        "--compile",
        type=int,
        choices=[0, 1],
        default=0,
        help="1: torch.compile makes the kernels of the audio encoder before the first step (default: %(default)s)",
    )
    parser.add_argument(
        "--verify-shards",
        type=int,
        choices=[0, 1],
        default=1,
        help="1: compute the shards' checksums before the first step; 0: look at their sizes (default: %(default)s)",
    )
    parser.add_argument("--steps-per-checkpoint", type=int, default=200)
    parser.add_argument(
        "--outcome",
        type=Path,
        help="file to write `finished` to, or how the training diverged; without it a training that diverges fails",
    )
    add_device_argument(parser)
    add_settings_arguments(parser, TrainingSettings)
    args = parser.parse_args(argv)
    settings = settings_from_arguments(args, TrainingSettings)

    torch.set_num_threads(args.threads)
    with join_processes(choose_device(args.device)) as processes:
        model = load_model(args.pretrained)
        model.a2t = None  # of a composed run: made anew below, or not trained, and DDP would wait for its gradient
        if settings.uses_a2t:
            torch.manual_seed(args.seed)  # the same first a2t weights on every process
            model.add_a2t(dropout=settings.a2t_dropout, tokens=settings.pseudo_tokens)
        outcome = train(
            model,
            pairs=args.pairs,
            shards=args.shards,
            settings=settings,
            seed=args.seed,
            start=sha256_of(args.pretrained / "model.safetensors"),
            checkpoints=args.out / "checkpoints",
            log=args.out / "training.parquet",
            processes=processes,
            machine=Machine(
                workers=args.workers,
                micro_batch=args.micro_batch,
                compiled=bool(args.compile),
                steps_per_checkpoint=args.steps_per_checkpoint,
                verify_shards=bool(args.verify_shards),
            ),
            may_diverge=args.outcome is not None,
        )
        if processes.is_first:
            save_model(model, args.out)
            if args.outcome is not None:
                with write_atomically(args.outcome) as temporary:
                    temporary.write_text(outcome + "\n", encoding="utf-8")
            remove_checkpoints(args.out / "checkpoints")


if __name__ == "__main__":
    run(main)
