"""Train a run: start from a pretrained model, follow a pairs file, write weights and a log of every step.

The stage runs alone or under torchrun, on any number of processes and nodes. After a kill, the same command continues
from the checkpoint. When outputs of the same pairs, weights, settings and seed exist, it keeps them.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.pairs import read_facts
from pipeline.models.devices import choose_device
from pipeline.training.command import run_training
from pipeline.training.options import (
    RunOptions,
    add_run_options,
    add_validation_arguments,
    run_options,
    training_parser,
    validation_plan,
)
from pipeline.training.outputs import Job, Origin, keep_outputs
from pipeline.training.settings import PairingSettings, TrainingSettings, settings_from_arguments


def main(argv: list[str]) -> None:
    parser = training_parser(__doc__)
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of the model to start from")
    parser.add_argument(
        "--outcome",
        type=Path,
        help="file to write `finished` or the way of divergence to; without it, divergence is an error",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        action="append",
        default=[],
        help="folder of a trained model whose similarities are soft targets; may be repeated",
    )
    add_validation_arguments(parser, is_required=False)
    add_run_options(parser)
    args = parser.parse_args(argv)
    settings = settings_from_arguments(args, TrainingSettings)
    validation = validation_plan(args, settings.validation_windows)
    origin = Origin.of("train", args.pairs, args.pretrained / "model.safetensors", settings, args.seed, validation)
    origin = origin.taught_by(args.teacher)
    job = Job(
        pairs=args.pairs,
        shards=args.shards,
        settings=settings,
        seed=args.seed,
        origin=origin,
        out=args.out,
        outcome=args.outcome,
        teachers=tuple(args.teacher),
        validation=validation,
    )
    if not keep_outputs(job):
        train_job(job, args.pretrained, args.device, args.threads, run_options(args))


def train_job(job: Job, pretrained: Path, device: str | None, threads: int, options: RunOptions) -> None:
    """Train on this process and those that torchrun started with it."""
    import torch  # here, because kept outputs do not need it

    from pipeline.models import load_model
    from pipeline.training.distributed import join_processes
    from pipeline.training.trainer import train

    torch.set_num_threads(threads)
    with join_processes(choose_device(device)) as processes:
        model = load_model(pretrained)
        model.a2t = None  # that of a composed run: DDP would wait for its gradient if it is not trained
        has_unlabeled_partners = PairingSettings.of(read_facts(job.pairs)).labeled_partners < 1
        if job.settings.uses_a2t and has_unlabeled_partners:
            torch.manual_seed(job.seed)  # the same first a2t weights on every process
            model.add_a2t(
                dropout=job.settings.a2t_dropout,
                tokens=job.settings.pseudo_tokens,
                kind=job.settings.a2t_kind,
                layers=job.settings.a2t_layers,
                heads=job.settings.a2t_heads,
            )
        train(model, job, processes, options)


if __name__ == "__main__":
    run_training(main)
