"""Fix the pairs of a run: which labeled clip, caption, partner and windows stand in every slot of every step."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.leaks import read_held_out
from pipeline.models.backbones import BACKBONES
from pipeline.pairs import Clips, pair_epoch, read_clips, write_pairs
from pipeline.stages import run

logger = logging.getLogger(__name__)


def check_batch(labeled: Clips, batch_size: int, manifests: list[Path]) -> None:
    """Raise when not one global batch can be filled without repeating a clip."""
    if batch_size > len(labeled):
        names = ", ".join(str(path) for path in manifests)
        raise PipelineError(
            f"batch_size is {batch_size}, but the labeled set holds {len(labeled)} clips ({names}); "
            f"set a batch_size of at most {len(labeled)} or add labeled clips"
        )


def check_shards(manifests: list[Path], sample_rate_hz: int) -> None:
    """Raise when a split was sharded for another backbone; warn when the leak guard is blind between formats."""
    formats = set()
    for path in manifests:
        summary = path.with_suffix(".json")
        if not (path.exists() and summary.exists()):
            raise PipelineError(f"{path}: it or {summary.name} beside it is missing; make both with index_shards")
        facts = json.loads(summary.read_text(encoding="utf-8"))
        found = facts["sample_rate_hz"]
        formats.add(facts["format"])
        if found != sample_rate_hz:
            raise PipelineError(
                f"{path}: shards are at {found} Hz, the backbone hears {sample_rate_hz} Hz; make them again"
            )
    if len(formats) > 1:
        logger.warning(
            "shards of %s: the same audio has another checksum in each, so that held-out clips without a source id are "
            "not recognised across them; use one shards.format for all",
            " and ".join(sorted(formats)),
        )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labeled", type=Path, nargs="+", required=True, help="manifest.parquet of labeled splits")
    partners = parser.add_mutually_exclusive_group()
    partners.add_argument("--unlabeled", type=Path, nargs="*", default=[], help="manifest.parquet of unlabeled splits")
    partners.add_argument("--mix-labeled", action="store_true", help="partners are labeled clips too (`concatenate`)")
    parser.add_argument(
        "--held-out", type=Path, nargs="*", default=[], help="manifest.parquet of splits that nothing is trained on"
    )
    parser.add_argument("--leaks", choices=["drop", "fail"], default="fail", help="clips of held-out sources or audio")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True, help="global batch, over all processes")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file to write")
    args = parser.parse_args(argv)

    backbone = BACKBONES[args.backbone]
    check_shards([*args.labeled, *args.unlabeled, *args.held_out], backbone.sample_rate_hz)
    held_out = read_held_out(args.held_out)
    labeled, left_out = read_clips(args.labeled, held_out, args.leaks)
    unlabeled = None
    if args.unlabeled:
        unlabeled, also_left_out = read_clips(args.unlabeled, held_out, args.leaks)
        left_out |= also_left_out
    check_batch(labeled, args.batch_size, args.labeled)
    facts = {
        "seed": args.seed,
        "epochs": args.epochs,
        "steps_per_epoch": len(labeled) // args.batch_size,
        "batch_size": args.batch_size,
        "window_frames": backbone.window_frames,
        "sample_rate_hz": backbone.sample_rate_hz,
        "labeled": {str(path.parent): sha256_of(path) for path in args.labeled},
        "unlabeled": {str(path.parent): sha256_of(path) for path in args.unlabeled},
        "held_out": {str(path.parent): sha256_of(path) for path in args.held_out},
        "left_out_as_leaked": left_out,
    }
    epochs = (
        pair_epoch(
            seed=args.seed,
            epoch=epoch,
            batch_size=args.batch_size,
            window_frames=backbone.window_frames,
            labeled=labeled,
            unlabeled=unlabeled,
            mix_labeled=args.mix_labeled,
        )
        for epoch in range(args.epochs)
    )
    write_pairs(epochs, args.pairs, facts)
    logger.info(
        "%d epochs of %d steps of %d pairs from %d labeled and %d unlabeled clips",
        args.epochs, facts["steps_per_epoch"], args.batch_size, len(labeled), len(unlabeled) if unlabeled else 0,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
