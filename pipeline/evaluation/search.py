"""Search in the clips or captions of a split, by text or by sound.

The embeddings of a split are computed once a model and kept beside it, in RUN/index/MANIFEST-MODEL/, named by the
checksums of the split's manifest and of the model's files: another model or split makes its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError, printable
from pipeline.evaluation.embedding import BATCH_SIZE, captions_of, embed_audio, embed_files, embed_texts
from pipeline.evaluation.vectors import check_vectors, nearest, unit_rows
from pipeline.files import sha256_of, write_atomically
from pipeline.models import load_model
from pipeline.models.devices import choose_device

logger = logging.getLogger(__name__)

WINDOWS = "mean"
"""How the windows of long clips are taken, in the index and of the sound that is searched with."""
MODEL_FILES = ("model.safetensors", "tokenizer.json", "model.json")


def search(query: str | Path, run: Path, split: Path, *, captions: bool = False, top: int = 10) -> list[dict[str, Any]]:
    """The clips of a split, or with `captions` its captions, nearest to a text or to an audio file, best first.

    Args:
        query: a text, or the path of an audio file.
        run: folder of a saved model.
        split: folder of a split's shards; its clips need no captions unless these are searched.
        top: results at most.

    Returns:
        rank (from 1), score (cosine), key and source_name of the clip, and its captions, or the caption found.

    Raises:
        PipelineError: no such run, split or file, a split without clips or captions, shards at another rate than the
            model hears, a blank text, or embeddings without a direction.
    """
    if isinstance(query, str) and not query.strip():
        raise PipelineError("the text to search with is blank")
    shards = open_shards(split)
    model = load_model(run, device=str(choose_device(None)))
    texts, clip_of_text = captions_of(shards) if captions else ([], np.zeros(0, np.int64))
    if captions and not texts:
        raise PipelineError(
            f"{split}: the split has no captions to search in; leave --captions out to search its clips"
        )

    folder = run / "index" / f"{shards.manifest_sha256[:16]}-{checksum_of(run)[:16]}"
    if captions:
        index = _indexed(
            folder / "text.npy", len(texts), lambda: embed_texts(model, texts, BATCH_SIZE), lambda row: repr(texts[row])
        )
    else:
        index = _indexed(
            folder / "audio.npy",
            len(shards),
            lambda: embed_audio(model, shards, WINDOWS, BATCH_SIZE),
            lambda row: f"clip {shards.keys[row]}",
        )
    if isinstance(query, str):
        query_1D = embed_texts(model, [query], BATCH_SIZE)
    else:
        query_1D = embed_files(model, [query], WINDOWS, BATCH_SIZE, shards.channels)
    check_vectors(query_1D, lambda row: repr(str(query)))
    rows, scores = nearest(index, unit_rows(query_1D)[0], top)
    clips = clip_of_text[rows] if captions else rows
    keys = [shards.keys[clip] for clip in clips]
    names = source_names(shards, keys)
    return [
        {
            "rank": rank,
            "score": float(score),
            "key": key,
            "source_name": names[key],
            **({"caption": texts[row]} if captions else {"captions": shards.captions(key)}),
        }
        for rank, (row, key, score) in enumerate(zip(rows, keys, scores, strict=True), start=1)
    ]


def checksum_of(run: Path) -> str:
    """The hex SHA-256 of what decides a saved model's embeddings."""
    digests = [sha256_of(run / name) for name in MODEL_FILES]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _indexed(
    path: Path, count: int, embed: Callable[[], NDArray[np.float32]], name_of: Callable[[int], str]
) -> NDArray[np.float32]:
    """Unit vectors (count, D), memory-mapped from `path`, made first where there is no such file."""
    if not path.exists():
        vectors_ND = embed()
        check_vectors(vectors_ND, name_of)
        try:
            with write_atomically(path) as temporary, temporary.open("wb") as file:
                np.save(file, unit_rows(vectors_ND))
        except OSError as error:
            raise PipelineError(f"{path}: the index cannot be written ({error.strerror})") from error
        logger.info("%s: %d embeddings, kept for the next search", path, count)
    try:
        index_ND = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise PipelineError(f"{path}: the index is damaged ({error}); delete it, the next search makes it") from error
    if index_ND.ndim != 2 or len(index_ND) != count or index_ND.dtype != np.float32:
        raise PipelineError(
            f"{path}: the index holds {index_ND.dtype} of shape {index_ND.shape}, {count} rows of float32 were "
            "expected; delete it, the next search makes it"
        )
    return index_ND


def source_names(shards: ShardReader, keys: list[str]) -> dict[str, str]:
    """The path of each clip in its raw dataset, from the manifest."""
    path = shards.folder / "manifest.parquet"
    try:
        rows = pq.read_table(path, columns=["key", "source_name"], filters=[("key", "in", keys)])
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); make it again with index_shards") from error
    return dict(zip(rows["key"].to_pylist(), rows["source_name"].to_pylist(), strict=True))


def render(results: list[dict[str, Any]]) -> str:
    """The results for a terminal: rank, score, key and file, and the captions below."""
    lines = []
    for result in results:
        lines.append(
            f"{result['rank']:4d}  {result['score']:6.3f}  {result['key']}  {printable(result['source_name'])}"
        )
        captions = [result["caption"]] if "caption" in result else result["captions"]
        lines += [f"{'':14}{printable(caption)}" for caption in captions]
    return "\n".join(lines)
