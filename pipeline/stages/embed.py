"""Embed the clips and captions of a split with a model."""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.moment_retrieval import arrays_of, read_queries, within
from pipeline.evaluation.npz import write_npz
from pipeline.evaluation.outcomes import read_divergence
from pipeline.evaluation.windows import BATCH_SIZE, WINDOWS
from pipeline.files import read_json, sha256_of
from pipeline.models import MODEL_FILES, load_model
from pipeline.models.devices import add_device_argument, choose_device
from pipeline.provenance import remember, restore
from pipeline.stages import VERSIONS, at_least, between, run

if TYPE_CHECKING:
    from pipeline.models.clap import ClapModel

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


def moment_arrays(model: ClapModel, catalog: Path, hop_s: float, batch_size: int, channels: str) -> dict[str, NDArray]:
    """Return the arrays of the recordings' windows and captions, for moment retrieval.

    Raises:
        PipelineError: The catalog has no captioned stretch of a file, or no recording can be read.
    """
    from pipeline.evaluation.embedding import embed_recordings, embed_texts

    listed, recordings = read_queries(catalog)
    windows, durations_R, unusable = embed_recordings(model, recordings, hop_s, batch_size, channels)
    for number, error in unusable.items():
        logger.warning(
            "%s: %s (%s); captions from %g s on are left out",
            recordings[number], error.reason, error, durations_R[number],
        )  # fmt: skip
    queries = within(listed, durations_R)
    if not queries.caption_Q:
        raise PipelineError(f"{catalog}: no captioned stretch lies in a recording that can be read; see the log")
    text_QD = embed_texts(model, queries.caption_Q, batch_size)
    logger.info(
        "%s: %d captions of %d recordings, %d windows, %d captions left out",
        catalog, len(text_QD), len(set(queries.recording_Q)), len(windows.vector_WD), queries.lost,
    )  # fmt: skip
    return arrays_of(queries, text_QD, windows, model.window_frames / model.sample_rate_hz, hop_s)


def write_embeddings(
    model_folder: Path,
    shards_folder: Path,
    path: Path,
    *,
    windows: str,
    batch_size: int,
    device: str | None,
    moments: Path | None,
    hop_s: float,
) -> None:
    """Write the embeddings of a split's clips and captions; the tars must have the checksums of the manifest.

    moments: the split's catalog, to add the windows of its recordings, one every `hop_s`.
    """
    from pipeline.evaluation.embedding import embed_audio, embed_texts

    shards = open_shards(shards_folder, verify=True)
    captions, audio_of_text = retrievable_captions(shards)
    model = load_model(model_folder, device=str(choose_device(device)))
    started = time.perf_counter()
    audio = embed_audio(model, shards, windows, batch_size)
    text = embed_texts(model, captions, batch_size)
    more = moment_arrays(model, moments, hop_s, batch_size, shards.channels) if moments else {}
    write_npz(
        path,
        audio=audio,
        audio_key=np.array(shards.keys),
        text=text,
        audio_of_text=audio_of_text,
        caption=np.array(captions),
        windows=np.array(windows),
        **more,
    )
    logger.info(
        "%s: %d clips and %d captions in %.1f s on %s",
        shards_folder, len(audio), len(text), time.perf_counter() - started, model.logit_scale.device,
    )  # fmt: skip


def split_checksums(shards: Path) -> dict[str, str]:
    """Return the checksums of a split's manifest and tars, as manifest.json records them."""
    summary = read_json(shards / "manifest.json")
    tars = {shard["tar"]: shard["sha256"] for shard in summary.get("shards", [])}
    return {"manifest.parquet": summary.get("manifest_sha256", ""), **tars}


def add_embedding_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every stage that embeds a split with a model."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a saved model")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a split's shards")
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


def embedding_origin(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what determines the embeddings of a split by the options above, for `pipeline.provenance`."""
    return {
        "stage": stage,
        "version": VERSIONS[stage],
        "model": {name: sha256_of(args.model / name) for name in MODEL_FILES if (args.model / name).exists()},
        "split": split_checksums(args.shards),
        **{name: getattr(args, name) for name in ("windows", "batch_size", "threads", "device")},
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_embedding_arguments(parser)
    parser.add_argument(
        "--moments",
        type=Path,
        metavar="CATALOG",
        help="catalog of a split of captioned stretches of recordings: embed the recordings' windows, too",
    )
    parser.add_argument(
        "--hop-s",
        type=between(0.1, math.inf),
        default=1.0,
        help="with --moments: seconds from the start of a window to that of the next (default: %(default)s)",
    )
    parser.add_argument(
        "--outcome", type=Path, help="outcome.txt of the training; after divergence nothing is embedded"
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="npz file to write")
    return parser


def made_from(args: argparse.Namespace) -> dict[str, Any]:
    """Return what determines the embeddings, for `pipeline.provenance`."""
    moments = {}
    if args.moments:
        files = {str(path): _size_and_time(path) for path in read_queries(args.moments)[1]}
        moments = {"moments": sha256_of(args.moments), "hop_s": args.hop_s, "recordings": files}
    return {**embedding_origin("embed", args), **moments}


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
    options |= {"moments": args.moments, "hop_s": args.hop_s}
    write_embeddings(args.model, args.shards, args.embeddings, **options)
    remember([args.embeddings], origin)


def _size_and_time(path: Path) -> list[int]:
    """Return the size of a recording and the time of its last change; none if it is gone, which embedding says."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


if __name__ == "__main__":
    run(main)
