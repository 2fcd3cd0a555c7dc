"""Pretrain the small backbone `mini` on general captioned audio; the runs of a study start from it.

The stage trains a tokenizer on the captions, draws random weights and minimises Eq. (5).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.pairs import read_facts
from pipeline.data.shards.reader import open_shards
from pipeline.models.devices import choose_device
from pipeline.stages import at_least
from pipeline.training.command import run_training
from pipeline.training.options import RunOptions, training_parser
from pipeline.training.outputs import Job, Origin, keep_outputs
from pipeline.training.settings import TrainingSettings, settings_from_arguments


def read_captions(pairs: Path, shards: Path) -> list[str]:
    """Return every caption of the labeled splits of a pairs file."""
    folders = [Path(folder) for folder in read_facts(pairs)["labeled"]]
    readers = [open_shards(shards / folder.parent.name / folder.name) for folder in folders]
    return [caption for reader in readers for key in reader.keys for caption in reader.captions(key)]


def main(argv: list[str]) -> None:
    parser = training_parser(__doc__)
    # 257: the 256 bytes and the end token
    parser.add_argument("--vocabulary-size", type=at_least(257), required=True, help="tokens of the tokenizer")
    args = parser.parse_args(argv)
    settings = settings_from_arguments(args, TrainingSettings)
    starting_weights = f"random, of {args.vocabulary_size} tokens"
    origin = Origin.of("pretrain", args.pairs, starting_weights, settings, args.seed)
    job = Job(pairs=args.pairs, shards=args.shards, settings=settings, seed=args.seed, origin=origin, out=args.out)
    if not keep_outputs(job):
        train_job(job, args.vocabulary_size, args.device, args.threads)


def train_job(job: Job, vocabulary_size: int, device: str | None, threads: int) -> None:
    """Train a new model on this process."""
    import torch  # here, because kept outputs do not need it

    from pipeline.models import mini
    from pipeline.training.distributed import Processes
    from pipeline.training.trainer import train

    torch.set_num_threads(threads)
    torch.manual_seed(job.seed)
    model = mini.build(mini.train_tokenizer(read_captions(job.pairs, job.shards), vocabulary_size))
    train(model, job, Processes(rank=0, count=1, device=choose_device(device)), RunOptions())


if __name__ == "__main__":
    run_training(main)
