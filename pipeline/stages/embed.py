"""Embed a captioned split with a model: one pass over its clips and one over its captions."""

# W = windows of a batch, S = samples of a window, D = joint width, M = texts, N = clips

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.devices import add_device_argument, choose_device
from pipeline.errors import PipelineError
from pipeline.evaluation.windows import WINDOWS, window_starts
from pipeline.files import write_atomically
from pipeline.models import load_model
from pipeline.models.clap import ClapModel
from pipeline.shards import ShardReader, open_shards
from pipeline.stages import run

logger = logging.getLogger(__name__)


@torch.inference_mode()
def embed_audio(model: ClapModel, shards: ShardReader, windows: str, batch_size: int) -> NDArray[np.float32]:
    """Embeddings (N, D) of a split's clips, in the reader's order.

    A clip's embedding is the mean of its windows' embeddings at unit length, so that every window has one vote
    however long its vector: the cosine that ranks the clips ignores that length too.
    """
    places = [
        (row, start)
        for row, key in enumerate(shards.keys)
        for start in window_starts(shards.frames(key), model.window_frames, windows)
    ]
    device = model.logit_scale.device
    total_ND = torch.zeros(len(shards.keys), model.embedding_dim, device=device)
    batches = range(0, len(places), batch_size)
    for first in tqdm(batches, desc="audio", unit="batch", disable=None):
        batch = places[first : first + batch_size]
        samples_WS = np.stack(
            [shards.read_window(shards.keys[row], start, model.window_frames) for row, start in batch]
        )
        with _autocast(device):
            embedding_WD = model.encode_audio(torch.from_numpy(samples_WS).to(device).float() / 32768)
        rows_W = torch.tensor([row for row, _ in batch], device=device)
        total_ND.index_add_(0, rows_W, F.normalize(embedding_WD.float()))
    windows_N = torch.bincount(torch.tensor([row for row, _ in places]), minlength=len(shards.keys))
    return (total_ND.cpu() / windows_N[:, None]).numpy()


@torch.inference_mode()
def embed_texts(model: ClapModel, captions: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Embeddings (M, D) of captions, in their order, as the encoder gives them.

    Batches are of captions of like length, which are padded least. A caption that occurs more than once is encoded
    once, so that its copies tie exactly and count as tied.
    """
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
    device = model.logit_scale.device
    encoded = []
    for first in tqdm(range(0, len(distinct), batch_size), desc="texts", unit="batch", disable=None):
        with _autocast(device):
            encoded.append(model.encode_text(distinct[first : first + batch_size]).float().cpu())
    place = {caption: row for row, caption in enumerate(distinct)}
    return torch.cat(encoded).numpy()[[place[caption] for caption in captions]]


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; as loaded on a CPU, whose figures are then the same on every run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def captions_of(shards: ShardReader, folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """All captions of a split, by clip and then by caption, and the row of each one's clip."""
    if not shards.keys:
        raise PipelineError(f"{folder}: the split holds no clip to embed; see the reasons in manifest.parquet")
    for key in shards.keys:
        if not shards.captions(key):
            raise PipelineError(
                f"{folder}: clip {key} has no caption, so nothing can retrieve it; "
                "index the split with --labeled, which leaves such clips out"
            )
    texts = [(caption, row) for row, key in enumerate(shards.keys) for caption in shards.captions(key)]
    return [caption for caption, _ in texts], np.array([row for _, row in texts], np.int64)


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
        "--batch-size", type=int, default=64, help="windows, and captions, at once (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as there are cores)")
    add_device_argument(parser)
    parser.add_argument("--embeddings", type=Path, required=True, help="npz file to write")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    shards = open_shards(args.shards)
    captions, audio_of_text = captions_of(shards, args.shards)
    model = load_model(args.model, device=str(choose_device(args.device)))
    if shards.sample_rate_hz != model.sample_rate_hz:
        raise PipelineError(
            f"{args.shards}: shards are at {shards.sample_rate_hz} Hz, {args.model} hears {model.sample_rate_hz} Hz; "
            "make the shards again at the model's rate"
        )
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
