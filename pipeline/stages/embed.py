"""Embed the clips and captions of a split with a model."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.npz import write_npz
from pipeline.evaluation.outcomes import read_divergence
from pipeline.evaluation.windows import BATCH_SIZE, WINDOWS
from pipeline.files import read_json, sha256_of
from pipeline.models import MODEL_FILES, load_model
from pipeline.models.devices import add_device_argument, choose_device
from pipeline.provenance import remember, restore
from pipeline.stages import VERSIONS, at_least, run

logger = logging.getLogger(__name__)


def retrievable_captions(shards: ShardReader) -> tuple[list[str], NDArray[np.int64]]:
    """Return all captions of a split and the row of each caption's clip; PipelineError for a clip without a caption."""
    from pipeline.evaluation.embedding import captions_of

    captions, audio_of_text = captions_of(shards)
    captions_N = np.bincount(audio_of_text, minlength=len(shards))
    for row in np.flatnonzero(captions_N == 0)[:1]:
        raise PipelineError(
            f"{shards.folder}: clip {shards.keys[row]} has no caption, so no query can retrieve it; "
            "index the split with --labeled, which drops such clips"
        )
    return captions, audio_of_text


def write_embeddings(
    model_folder: Path, shards_folder: Path, path: Path, *, windows: str, batch_size: int, device: str | None
) -> None:
    """Write the embeddings of a split's clips and captions; the tars must have the checksums of the manifest."""
    from pipeline.evaluation.embedding import embed_audio, embed_texts

    shards = open_shards(shards_folder, verify=True)
    captions, audio_of_text = retrievable_captions(shards)
    model = load_model(model_folder, device=str(choose_device(device)))
    started = time.perf_counter()
    audio = embed_audio(model, shards, windows, batch_size)
    text = embed_texts(model, captions, batch_size)
    write_npz(
        path,
        audio=audio,
        audio_key=np.array(shards.keys),
        text=text,
        audio_of_text=audio_of_text,
        caption=np.array(captions),
        windows=np.array(windows),
    )
    logger.info(
        "%s: %d clips and %d captions in %.1f s on %s",
        shards_folder, len(audio), len(text), time.perf_counter() - started, model.logit_scale.device,
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a saved model")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a captioned split's shards")
    parser.add_argument(
        "--windows",
        choices=WINDOWS,
        default="mean",
        help="windows of a clip longer than the model's window (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=BATCH_SIZE,
        help="windows or captions per batch (default: %(default)s)",
    )
    parser.add_argument("--threads", type=at_least(1), help="CPU threads (default: as many as there are cores)")
    add_device_argument(parser)
    parser.add_argument(
        "--outcome", type=Path, help="outcome.txt of the training; after divergence nothing is embedded"
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="npz file to write")
    return parser


def made_from(args: argparse.Namespace) -> dict[str, Any]:
    """Return what determines the embeddings, for `pipeline.provenance`."""
    return {
        "stage": "embed",
        "version": VERSIONS["embed"],
        "model": {name: sha256_of(args.model / name) for name in MODEL_FILES if (args.model / name).exists()},
        "split": _checksums(args.shards),
        **{name: getattr(args, name) for name in ("windows", "batch_size", "threads", "device")},
    }


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    if args.outcome is not None and read_divergence(args.outcome) is not None:
        write_npz(args.embeddings)
        logger.warning("%s: the training diverged; nothing is embedded", args.outcome)
        return
    origin = made_from(args)
    if restore([args.embeddings], origin):
        return
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    options = {"windows": args.windows, "batch_size": args.batch_size, "device": args.device}
    write_embeddings(args.model, args.shards, args.embeddings, **options)
    remember([args.embeddings], origin)


def _checksums(shards: Path) -> dict[str, str]:
    """Return the checksums of a split's manifest and tars, as manifest.json records them."""
    summary = read_json(shards / "manifest.json")
    tars = {shard["tar"]: shard["sha256"] for shard in summary.get("shards", [])}
    return {"manifest.parquet": summary.get("manifest_sha256", ""), **tars}


if __name__ == "__main__":
    run(main)
