"""Average trained weights with the pretrained ones, in the proportion that is best on the validation splits.

The method is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): (1 - alpha) times the pretrained plus alpha times the
trained weights, for several alpha from 0 to 1. The chosen one has the highest mAP@10, the mean of both directions and
all splits; of equal ones the smallest. The a2t module, which the pretrained model lacks, is the trained one. The log of
the training is copied, so that the result is the folder of a run like any other.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.evaluation.windows import WINDOWS
from pipeline.files import sha256_of, write_atomically
from pipeline.models import MODEL_FILES
from pipeline.models.devices import add_device_argument, choose_device
from pipeline.provenance import remember, restore
from pipeline.stages import VERSIONS, at_least, run
from pipeline.training.options import add_validation_arguments, validation_plan
from pipeline.training.outputs import ValidationPlan

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

RECORDS = ("training.parquet", "training.json", "learning_curves.svg")
"""Files of the training that are copied."""

ALPHAS = tuple(tenth / 10 for tenth in range(11))
"""Shares of the trained weights that are compared; 0 is the pretrained model and 1 the trained one."""


def averaged(pretrained: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) pretrained + alpha trained; at 0 and 1 equal to either, to the bit.

    Entries that are whole numbers, or that the pretrained model lacks, are the trained ones.
    """
    return {
        name: pretrained[name].lerp(value, alpha) if name in pretrained and value.is_floating_point() else value
        for name, value in trained.items()
    }


def check_same_model(pretrained: Any, trained: Any, folders: tuple[Path, Path]) -> None:
    """Raise PipelineError unless both models have the same parts, except for the a2t module, and vocabulary."""
    shapes = [
        {name: value.shape for name, value in model.state_dict().items() if not name.startswith("a2t.")}
        for model in (pretrained, trained)
    ]
    if shapes[0] != shapes[1] or pretrained.tokenizer.to_str() != trained.tokenizer.to_str():
        raise PipelineError(
            f"{folders[1]}: its model has another shape or vocabulary than that of {folders[0]}; give the model that "
            "the training started from"
        )


def write_average(args: argparse.Namespace, plan: ValidationPlan) -> None:
    """Validate every average, write the model of the best one, and the figures of all."""
    import torch

    from pipeline.models import load_model, save_model
    from pipeline.training.distributed import Processes
    from pipeline.training.monitor import SELECTED_BY
    from pipeline.training.validation import Validation

    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    pretrained, model = (load_model(folder, device=str(device)) for folder in (args.pretrained, args.trained))
    check_same_model(pretrained, model, (args.pretrained, args.trained))
    first = pretrained.state_dict()
    last = {name: value.clone() for name, value in model.state_dict().items()}
    validation = Validation(plan, model, Processes(rank=0, count=1, device=device), verify=True)
    rows: list[dict[str, float]] = []
    for alpha in ALPHAS:
        model.load_state_dict(averaged(first, last, alpha))
        rows.append({"alpha": alpha, **validation.figures(model)})
        logger.info("alpha %g: validation mAP@10 %.2f", alpha, rows[-1][SELECTED_BY])
    best = max(rows, key=lambda row: row[SELECTED_BY])  # the first of equal ones
    model.load_state_dict(averaged(first, last, best["alpha"]))
    save_model(model, args.out)
    for name in RECORDS:
        with write_atomically(args.out / name) as temporary:
            shutil.copyfile(args.trained / name, temporary)
    with write_atomically(args.out / "validation.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "chosen"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()} | {"chosen": row is best})
    logger.info("%s: alpha %g of %s", args.out, best["alpha"], args.trained)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of the model that the training started")
    parser.add_argument("--trained", type=Path, required=True, help="folder of the trained model")
    add_validation_arguments(parser, is_required=True)
    parser.add_argument(
        "--windows",
        choices=WINDOWS,
        default="mean",
        help="windows of a validation clip longer than the model's window (default: %(default)s)",
    )
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads (default: %(default)s)")
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model and validation.csv to")
    args = parser.parse_args(argv)
    plan = validation_plan(args, args.windows)
    assert plan is not None  # required
    origin = {
        "stage": "average_weights",
        "version": VERSIONS["average_weights"],
        "models": [
            {name: sha256_of(folder / name) for name in (*MODEL_FILES, *RECORDS) if (folder / name).exists()}
            for folder in (args.pretrained, args.trained)
        ],
        "validation": plan.made_from(),
        **{name: getattr(args, name) for name in ("threads", "device")},
    }
    outputs = [args.out / name for name in (*MODEL_FILES, *RECORDS, "validation.csv")]
    if restore(outputs, origin):
        return
    write_average(args, plan)
    remember(outputs, origin)


if __name__ == "__main__":
    run(main)
