"""Embed a captioned split with a model: one pass over its clips and one over its captions."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.devices import add_device_argument, choose_device
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import BATCH_SIZE, captions_of, embed_audio, embed_texts
from pipeline.evaluation.windows import WINDOWS
from pipeline.files import write_atomically
from pipeline.models import load_model
from pipeline.stages import run

logger = logging.getLogger(__name__)


def retrievable_captions(shards: ShardReader) -> tuple[list[str], NDArray[np.int64]]:
    """All captions of a split and the row of each one's clip; PipelineError for a clip that nothing can retrieve."""
    captions, audio_of_text = captions_of(shards)
    captions_N = np.bincount(audio_of_text, minlength=len(shards))
    for row in np.flatnonzero(captions_N == 0)[:1]:
        raise PipelineError(
            f"{shards.folder}: clip {shards.keys[row]} has no caption, so nothing can retrieve it; "
            "index the split with --labeled, which leaves such clips out"
        )
    return captions, audio_of_text


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a saved model")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a captioned split's shards")
    parser.add_argument(
        "--windows",
        choices=WINDOWS,
        default="mean",
        help="of a clip longer than the model's window (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="windows, and captions, at once (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as there are cores)")
    add_device_argument(parser)
    parser.add_argument("--embeddings", type=Path, required=True, help="npz file to write")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    shards = open_shards(args.shards, verify=True)  # training checks its own
    captions, audio_of_text = retrievable_captions(shards)
    model = load_model(args.model, device=str(choose_device(args.device)))
    started = time.perf_counter()
    audio = embed_audio(model, shards, args.windows, args.batch_size)
    text = embed_texts(model, captions, args.batch_size)
    with write_atomically(args.embeddings) as temporary, temporary.open("wb") as file:
        np.savez(  # members carry no time of writing: equal arrays give equal bytes
            file,
            audio=audio,
            audio_key=np.array(shards.keys),
            text=text,
            audio_of_text=audio_of_text,
            caption=np.array(captions),
            windows=np.array(args.windows),
        )
    logger.info(
        "%s: %d clips and %d captions in %.1f s on %s",
        args.shards, len(audio), len(text), time.perf_counter() - started, model.logit_scale.device,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
