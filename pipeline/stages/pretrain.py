"""Make the small backbone `mini` on general captioned audio, so that the study has a model to start from.

It trains a tokenizer on the captions, draws random weights and minimises Eq. (5), as a CLAP is made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pipeline.data.pairs import read_facts
from pipeline.data.shards.reader import open_shards
from pipeline.models import mini, save_model
from pipeline.models.devices import add_device_argument, choose_device
from pipeline.stages import run
from pipeline.training.distributed import Processes
from pipeline.training.settings import TrainingSettings, add_settings_arguments, settings_from_arguments
from pipeline.training.trainer import Machine, remove_checkpoints, train


def read_captions(pairs: Path, shards: Path) -> list[str]:
    """Every caption of the labeled splits of a pairs file."""
    folders = [Path(folder) for folder in read_facts(pairs)["labeled"]]
    readers = [open_shards(shards / folder.parent.name / folder.name) for folder in folders]
    return [caption for reader in readers for key in reader.keys for caption in reader.captions(key)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet file of pair_clips")
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder that holds DATASET/SPLIT/ of the pairs' clips"
    )
    parser.add_argument("--vocabulary-size", type=int, required=True, help="tokens of the tokenizer")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model and training.parquet to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    add_device_argument(parser)
    add_settings_arguments(parser, TrainingSettings)
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = mini.build(mini.train_tokenizer(read_captions(args.pairs, args.shards), args.vocabulary_size))
    train(
        model,
        pairs=args.pairs,
        shards=args.shards,
        settings=settings_from_arguments(args, TrainingSettings),
        seed=args.seed,
        start="random",
        checkpoints=args.out / "checkpoints",
        log=args.out / "training.parquet",
        processes=Processes(rank=0, count=1, device=choose_device(args.device)),
        machine=Machine(),
    )
    save_model(model, args.out)
    remove_checkpoints(args.out / "checkpoints")


if __name__ == "__main__":
    run(main)
