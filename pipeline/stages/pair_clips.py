"""Fix the pairs of a run: which labeled clip, caption, partner and windows stand in every slot of every step."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.leaks import LEAKED_SCHEMA, AudioForm, read_audio_form, read_held_out
from pipeline.data.pairs import pair_epoch, read_clips, slots_per_epoch, subset, with_keys, write_pairs
from pipeline.data.shards.format import check_manifest, read_summary
from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.models.backbones import BACKBONES
from pipeline.parquet import write_parquet
from pipeline.stages import at_least, run
from pipeline.training.settings import PairingSettings, add_settings_arguments, settings_from_arguments

logger = logging.getLogger(__name__)


def check_batch(slots: int, of: str, batch_size: int, manifests: list[Path], fraction: float) -> None:
    """Raise when not one global batch can be filled without repeating a clip, or with all captions a caption.

    slots: what an epoch has to fill batches with; of: what they are.
    """
    if batch_size > slots:
        names = ", ".join(str(path) for path in manifests)
        part = "" if fraction == 1 else f" after labeled_fraction {fraction:g}"
        raise PipelineError(
            f"batch_size is {batch_size}, but the labeled set holds {slots} {of} ({names}){part}; "
            f"set a batch_size of at most {slots} or add labeled clips"
        )


def passes(epochs: int, slots: int, of_slots: int, batch_size: int) -> int:
    """Passes over a part of the labeled clips that take as many steps as `epochs` over all, to the nearest pass.

    slots, of_slots: what the part and the whole fill in an epoch. A part is trained on as long as the whole, so that a
    curve over parts is one of data, not of steps.
    """
    return round(epochs * (of_slots // batch_size) / (slots // batch_size))


def check_fraction(parser: argparse.ArgumentParser, flag: str, fraction: float) -> None:
    """End with a message unless a share of clips is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        parser.error(f"{flag} must be above 0 and at most 1, not {fraction}")


def check_shards(manifests: list[Path], held_out: list[Path], sample_rate_hz: int) -> None:
    """Raise when a split was sharded for another backbone, or two of them kept other channels of their files.

    Warns when the leak guard is blind between formats.
    """
    made = {}
    for path in manifests:
        summary = read_summary(path.with_suffix(".json"))
        check_manifest(path, summary)
        made[path] = AudioForm.of(summary)
    made |= {path: read_audio_form(path) for path in held_out}
    for path, form in made.items():
        if form.sample_rate_hz != sample_rate_hz:
            raise PipelineError(
                f"{path}: shards are at {form.sample_rate_hz} Hz, the backbone takes {sample_rate_hz} Hz; "
                "make them again"
            )
    kept = {form.channels: path for path, form in made.items()}
    if len(kept) > 1:
        found = " and ".join(f"the {channels} of the channels ({path})" for channels, path in sorted(kept.items()))
        raise PipelineError(f"the shards kept {found}; make them again with one shards.channels for all")
    formats = sorted({form.format for form in made.values()})
    if len(formats) > 1:
        logger.warning(
            "shards of %s: the same audio has another checksum in each, so held-out clips without a source id are not "
            "recognised across them; use one shards.format for all",
            " and ".join(formats),
        )


def build_parser() -> argparse.ArgumentParser:
    """The options of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    paths: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend"}
    parser.add_argument("--labeled", required=True, help="manifest.parquet of labeled splits", **paths)
    partners = parser.add_mutually_exclusive_group()
    partners.add_argument("--unlabeled", default=[], help="manifest.parquet of unlabeled splits", **paths)
    partners.add_argument("--mix-labeled", action="store_true", help="partners are labeled clips too (`concatenate`)")
    parser.add_argument(
        "--held-out", default=[], help="identities.parquet of splits that nothing is trained on", **paths
    )
    parser.add_argument("--leaks", choices=["drop", "fail"], default="fail", help="clips of held-out sources or audio")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), required=True)
    parser.add_argument("--epochs", type=at_least(1), required=True)
    parser.add_argument("--batch-size", type=at_least(2), required=True, help="global batch, over all processes")
    parser.add_argument("--seed", type=at_least(0), required=True)
    parser.add_argument(
        "--labeled-fraction",
        type=float,
        default=1.0,
        help="share of the labeled clips, drawn by the seed, in as many "
        "steps as all of them would take (default: %(default)s)",
    )
    parser.add_argument(
        "--unlabeled-fraction", type=float, default=1.0, help="share of the unlabeled clips (default: %(default)s)"
    )
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--leaked", type=Path, required=True, help="Parquet file to write of the clips left out")
    add_settings_arguments(parser, PairingSettings)
    return parser


def main(argv: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_fraction(parser, "--labeled-fraction", args.labeled_fraction)
    check_fraction(parser, "--unlabeled-fraction", args.unlabeled_fraction)

    settings = settings_from_arguments(args, PairingSettings)
    backbone = BACKBONES[args.backbone]
    check_shards([*args.labeled, *args.unlabeled], args.held_out, backbone.sample_rate_hz)
    held_out = read_held_out(args.held_out)
    all_labeled, left_out = read_clips(args.labeled, held_out, leaks=args.leaks, role="labeled")
    labeled = subset(all_labeled, args.labeled, args.labeled_fraction, args.seed)
    unlabeled = None
    if args.unlabeled:
        all_unlabeled, also_left_out = read_clips(args.unlabeled, held_out, leaks=args.leaks, role="unlabeled")
        unlabeled = subset(all_unlabeled, args.unlabeled, args.unlabeled_fraction, args.seed)
        left_out += also_left_out
    slots, all_slots = (slots_per_epoch(clips, settings.captions_per_clip) for clips in (labeled, all_labeled))
    of = "clips" if settings.captions_per_clip == "one" else "captions"
    check_batch(slots, of, args.batch_size, args.labeled, args.labeled_fraction)
    epochs = passes(args.epochs, slots, all_slots, args.batch_size)
    facts = {
        "seed": args.seed,
        "epochs": epochs,
        "steps_per_epoch": slots // args.batch_size,
        "batch_size": args.batch_size,
        "window_frames": backbone.window_frames,
        "sample_rate_hz": backbone.sample_rate_hz,
        "labeled": {str(path.parent): sha256_of(path) for path in args.labeled},
        "unlabeled": {str(path.parent): sha256_of(path) for path in args.unlabeled},
        "left_out_as_leaked": {str(path.parent): len(leaked) for path, leaked in left_out},
        "labeled_clips": len(labeled),
        "labeled_captions": int(labeled.captions.sum()),
        "labeled_s": float(labeled.frames.sum() / backbone.sample_rate_hz),
        "labeled_fraction": args.labeled_fraction,
        "unlabeled_clips": len(unlabeled) if unlabeled else 0,
        "unlabeled_s": float(unlabeled.frames.sum() / backbone.sample_rate_hz) if unlabeled else 0.0,
        "unlabeled_fraction": args.unlabeled_fraction,
        **settings.differing(),
    }
    drawn = (
        pair_epoch(
            seed=args.seed,
            epoch=epoch,
            batch_size=args.batch_size,
            window_frames=backbone.window_frames,
            labeled=labeled,
            unlabeled=unlabeled,
            mix_labeled=args.mix_labeled,
            settings=settings,
        )
        for epoch in range(epochs)
    )
    leaked = pa.concat_tables([LEAKED_SCHEMA.empty_table(), *(table for _, table in left_out)])
    write_parquet(leaked, args.leaked)
    write_pairs(with_keys(drawn, args.labeled, args.labeled if args.mix_labeled else args.unlabeled), args.pairs, facts)
    logger.info(
        "%d epochs of %d steps of %d pairs from %d labeled and %d unlabeled clips",
        epochs, facts["steps_per_epoch"], args.batch_size, len(labeled), len(unlabeled) if unlabeled else 0,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
