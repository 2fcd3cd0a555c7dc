"""Fix the pairs of a run: the labeled clip, caption, partner and windows in every slot of every step."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.leaks import LEAKED_SCHEMA, UNITS, AudioForm, read_audio_form, read_held_out
from pipeline.data.pairs import (
    Clips,
    pair_epoch,
    read_clips,
    slots_per_epoch,
    subset,
    with_keys,
    with_paraphrases,
    with_texts,
    write_pairs,
)
from pipeline.data.paraphrases import Paraphrases, read_paraphrases
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import check_manifest, read_summary
from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.models.backbones import BACKBONES
from pipeline.stages import at_least, run
from pipeline.training.settings import PairingSettings, add_settings_arguments, settings_from_arguments

logger = logging.getLogger(__name__)


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


def share(text: str) -> float:
    """Return a share of clips from the command line, above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {value}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    paths: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend"}
    parser.add_argument("--labeled", required=True, help="manifest.parquet of labeled splits", **paths)
    parser.add_argument("--unlabeled", default=[], help="manifest.parquet of unlabeled splits", **paths)
    parser.add_argument(
        "--mix-labeled",
        action="store_true",
        help="partners are labeled clips too (`concatenate`); with --unlabeled, second partners for text mixing",
    )
    parser.add_argument(
        "--paraphrases",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("MANIFEST", "CSV"),
        help="further captions of a labeled split, which are drawn like its own; may be repeated",
    )
    parser.add_argument("--held-out", default=[], help="identities.parquet of validation and test splits", **paths)
    parser.add_argument(
        "--leaks", choices=["drop", "fail"], default="fail", help="for clips with held-out sources or audio"
    )
    parser.add_argument(
        "--leak-unit",
        choices=UNITS,
        default="recording",
        help="how much is held out with a stretch of a recording (default: %(default)s)",
    )
    parser.add_argument("--backbone", choices=sorted(BACKBONES), required=True)
    parser.add_argument("--epochs", type=at_least(1), required=True)
    parser.add_argument("--batch-size", type=at_least(2), required=True, help="global batch, of all processes together")
    parser.add_argument("--seed", type=at_least(0), required=True)
    parser.add_argument(
        "--labeled-fraction",
        type=share,
        default=1.0,
        help="share of the labeled clips, drawn with the seed; the steps are as many as with all clips "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--unlabeled-fraction", type=share, default=1.0, help="share of the unlabeled clips (default: %(default)s)"
    )
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--leaked", type=Path, required=True, help="Parquet file to write the left-out clips to")
    add_settings_arguments(parser, PairingSettings)
    return parser


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The clips of a run in one role, labeled or unlabeled."""

    usable: Clips
    """All usable clips of the splits, without the leaked ones."""
    clips: Clips
    """The share of them that the run uses."""
    left_out: list[tuple[Path, pa.Table]]
    """The leaked clips of each manifest that has any."""


def select_clips(
    manifests: list[Path],
    held_out: pa.Table,
    role: str,
    args: argparse.Namespace,
    paraphrases: Paraphrases | None = None,
) -> Selection:
    """Return the clips of some splits for one role. Raises `PipelineError` for labeled clips without a caption."""
    usable, left_out = read_clips(manifests, held_out, leaks=args.leaks, role=role, leak_unit=args.leak_unit)
    if paraphrases is not None:
        usable = with_paraphrases(usable, paraphrases)
    if role == "labeled" and (without := int((usable.captions == 0).sum())):
        names = ", ".join(str(path) for path in manifests)
        raise PipelineError(
            f"{without} of {len(usable)} labeled clips have no caption ({names}); give splits of datasets with "
            "`captions: true`"
        )
    clips = subset(usable, manifests, getattr(args, f"{role}_fraction"), args.seed)
    return Selection(usable=usable, clips=clips, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a training."""

    epochs: int
    """Passes over the labeled clips that the run uses."""
    steps_per_epoch: int


def plan_epochs(labeled: Selection, settings: PairingSettings, args: argparse.Namespace) -> Plan:
    """Return as many epochs over the labeled clips as take the steps of `--epochs` over all usable ones, rounded.

    A share of the clips is trained on for as many steps as all of them. So a curve over shares shows the effect of
    data, not of steps. Raises `PipelineError` when the slots of an epoch do not fill one global batch.
    """
    slots, all_slots = (slots_per_epoch(clips, settings.captions_per_clip) for clips in (labeled.clips, labeled.usable))
    if args.batch_size > slots:
        names = ", ".join(str(path) for path in args.labeled)
        unit = "clips" if settings.captions_per_clip == "one" else "captions"
        part = "" if args.labeled_fraction == 1 else f" after labeled_fraction {args.labeled_fraction:g}"
        raise PipelineError(
            f"batch_size is {args.batch_size}, but the labeled set holds {slots} {unit} ({names}){part}; "
            f"set a batch_size of at most {slots} or add labeled clips"
        )
    steps = slots // args.batch_size
    return Plan(epochs=round(args.epochs * (all_slots // args.batch_size) / steps), steps_per_epoch=steps)


def draw_pairs(
    labeled: Selection,
    unlabeled: Selection,
    paraphrases: Paraphrases,
    plan: Plan,
    settings: PairingSettings,
    args: argparse.Namespace,
) -> Iterator[pa.Table]:
    """Yield the rows of the pairs file, epoch by epoch."""
    drawn: Iterator[pa.Table] = (
        pair_epoch(
            seed=args.seed,
            epoch=epoch,
            batch_size=args.batch_size,
            window_frames=BACKBONES[args.backbone].window_frames,
            labeled=labeled.clips,
            unlabeled=unlabeled.clips if args.unlabeled else None,
            mix_labeled=args.mix_labeled,
            settings=settings,
        )
        for epoch in range(plan.epochs)
    )
    if args.paraphrases:
        drawn = with_texts(drawn, paraphrases)
    return with_keys(drawn, args.labeled, args.unlabeled)


def facts_of(
    labeled: Selection,
    unlabeled: Selection,
    paraphrases: Paraphrases,
    plan: Plan,
    settings: PairingSettings,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Return the facts of the run in the footer of the pairs file."""
    backbone = BACKBONES[args.backbone]
    added = int(paraphrases.more(labeled.clips.rows).sum())
    return {
        "seed": args.seed,
        "epochs": plan.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "batch_size": args.batch_size,
        "window_frames": backbone.window_frames,
        "sample_rate_hz": backbone.sample_rate_hz,
        "labeled": {str(path.parent): sha256_of(path) for path in args.labeled},
        "unlabeled": {str(path.parent): sha256_of(path) for path in args.unlabeled},
        "left_out_as_leaked": {str(path.parent): len(leaked) for path, leaked in labeled.left_out + unlabeled.left_out},
        "labeled_clips": len(labeled.clips),
        "labeled_captions": int(labeled.clips.captions.sum()) - added,
        "labeled_s": float(labeled.clips.frames.sum() / backbone.sample_rate_hz),
        "labeled_fraction": args.labeled_fraction,
        "unlabeled_clips": len(unlabeled.clips),
        "unlabeled_s": float(unlabeled.clips.frames.sum() / backbone.sample_rate_hz),
        "unlabeled_fraction": args.unlabeled_fraction,
        **({"paraphrases": added} if args.paraphrases else {}),
        **settings.differing(),
    }


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    settings = settings_from_arguments(args, PairingSettings)
    sample_rate_hz = BACKBONES[args.backbone].sample_rate_hz
    check_shards([*args.labeled, *args.unlabeled], args.held_out, sample_rate_hz)
    held_out = read_held_out(args.held_out)
    paraphrases = read_paraphrases(args.labeled, dict(args.paraphrases))
    labeled = select_clips(args.labeled, held_out, "labeled", args, paraphrases)
    unlabeled = select_clips(args.unlabeled, held_out, "unlabeled", args)

    plan = plan_epochs(labeled, settings, args)
    leaked = [table for _, table in labeled.left_out + unlabeled.left_out]
    write_parquet(pa.concat_tables([LEAKED_SCHEMA.empty_table(), *leaked]), args.leaked)
    write_pairs(
        draw_pairs(labeled, unlabeled, paraphrases, plan, settings, args),
        args.pairs,
        facts_of(labeled, unlabeled, paraphrases, plan, settings, args),
    )
    logger.info(
        "%d epochs of %d steps of %d pairs from %d labeled and %d unlabeled clips",
        plan.epochs, plan.steps_per_epoch, args.batch_size, len(labeled.clips), len(unlabeled.clips),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
