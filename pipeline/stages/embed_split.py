"""Embed the audio of a split with a model, in a file that is read in blocks."""

from __future__ import annotations

import argparse
import functools
import logging
import time
from pathlib import Path

from pipeline.data.shards.reader import open_shards
from pipeline.evaluation.vector_files import BLOCK, VectorFacts, vectors_writer
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.files import sha256_of
from pipeline.models import load_model
from pipeline.models.devices import choose_device
from pipeline.provenance import remember, restore
from pipeline.stages import run
from pipeline.stages.embed import add_embedding_arguments, embedding_origin

logger = logging.getLogger(__name__)


def write_split_vectors(
    model_folder: Path, shards_folder: Path, path: Path, *, windows: str, batch_size: int, device: str | None
) -> None:
    """Write the unit embeddings of a split's clips; memory holds one block of them.

    Raises:
        PipelineError: The split has no clip, its rate is not the model's, a tar is damaged, or an embedding has no
            direction.
    """
    from pipeline.evaluation.embedding import embed_audio

    shards = open_shards(shards_folder, verify=True)
    model = load_model(model_folder, device=str(choose_device(device)))
    facts = VectorFacts(
        dataset=shards.dataset,
        split=shards.split,
        manifest_sha256=shards.manifest_sha256,
        weights_sha256=sha256_of(model_folder / "model.safetensors"),
        windows=windows,
        width=model.embedding_dim,
        clips=len(shards),
    )
    started = time.perf_counter()
    with vectors_writer(path, facts) as write:
        for first in range(0, max(1, len(shards)), BLOCK):  # once for an empty split, which embed_audio refuses
            keys = shards.keys[first : first + BLOCK]
            vectors_BD = embed_audio(model, shards, windows, batch_size, keys)
            check_vectors(vectors_BD, functools.partial(_name, keys, shards_folder))
            write(keys, unit_rows(vectors_BD))
    seconds = time.perf_counter() - started
    logger.info("%s: %d clips in %.1f s on %s", shards_folder, len(shards), seconds, model.logit_scale.device)


def _name(keys: list[str], folder: Path, row: int) -> str:
    return f"clip {keys[row]} of {folder}"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_embedding_arguments(parser)
    parser.add_argument("--embeddings", type=Path, required=True, help="Parquet file to write")
    return parser


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    origin = embedding_origin("embed_split", args)
    if restore([args.embeddings], origin):
        return
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    options = {"windows": args.windows, "batch_size": args.batch_size, "device": args.device}
    write_split_vectors(args.model, args.shards, args.embeddings, **options)
    remember([args.embeddings], origin)


if __name__ == "__main__":
    run(main)
