"""Write one pair as audio files, as training gets it.

Write labeled.wav, partner.wav and composed.wav of one slot, and index.html to play them with their captions. Epochs,
steps and slots count from 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_shards_argument
from pipeline.errors import PipelineError, printable
from pipeline.stages import between


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PAIRS", help="Parquet file of pair_clips")
    add_shards_argument(parser)
    parser.add_argument("--epoch", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--step", type=int, default=0, help="of the epoch (default: %(default)s)")
    parser.add_argument("--slot", type=int, default=0, help="of the step's batch (default: %(default)s)")
    parser.add_argument(
        "--mixing-gain",
        type=between(0, 1),
        metavar="G",
        help="of (1 - G) labeled + G partner (default: that of the run of these pairs, if it is trained; else 0.5)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")


def run(args: argparse.Namespace) -> None:
    from pipeline.commands.inspection.listening import mixing_gain_of_run, read_slot, write_slot
    from pipeline.commands.inspection.targets import find_target

    target = find_target(args.path)
    if target.kind != "pairs":
        raise PipelineError(f"{args.path}: {target.kind}, not a pairs file; give a file that pair_clips made")
    place = {"epoch": args.epoch, "step": args.step, "slot": args.slot}
    gain = mixing_gain_of_run(args.path) if args.mixing_gain is None else args.mixing_gain
    sounds, sample_rate_hz = read_slot(args.path, args.shards, **place, mixing_gain=gain)
    title = f"Epoch {args.epoch}, step {args.step}, slot {args.slot}"
    write_slot(sounds, sample_rate_hz, args.out, title, str(args.path))
    for sound in sounds:
        print(printable(f"{args.out / sound.name}.wav  {sound.origin}: {sound.text}"))
    print(printable(f"{args.out / 'index.html'}"))
