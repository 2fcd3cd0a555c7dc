"""Search in the clips or captions of a split, by text or by sound.

The embeddings of a split are computed once per model and kept in INDEX/MANIFEST-MODEL/. These are the checksums of the
split's manifest and of the model's files, so every model and split has its own index.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.shards.format import usable_batches
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError, printable
from pipeline.evaluation.embedding import captions_of, embed_audio, embed_sounds, embed_texts
from pipeline.evaluation.model import AudioTextModel, load
from pipeline.evaluation.vectors import check_vectors, nearest, unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.files import read_json, sha256_of, write_atomically
from pipeline.models.clap import ClapModel

logger = logging.getLogger(__name__)

WINDOWS = "mean"
"""How windows are taken from long clips, in the index and in the query."""
MODEL_FILES = ("model.safetensors", "tokenizer.json", "model.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """A clip, or a caption of a clip, that `search` found."""

    rank: int
    """1 is the nearest."""
    score: float
    """The cosine of query and clip, or of query and caption."""
    key: str
    source_name: str
    """The clip's path in its raw dataset."""
    captions: list[str]
    """All captions of the clip."""
    caption: str | None = None
    """The caption found, if captions are searched."""

    def as_json(self) -> dict[str, Any]:
        """Return the values for JSON: with the caption found, or else all captions of the clip."""
        left_out = "caption" if self.caption is None else "captions"
        return {name: value for name, value in asdict(self).items() if name != left_out}


def search(
    query: str | Path,
    model: AudioTextModel | str | Path,
    split: str | Path,
    *,
    captions: bool = False,
    top: int = 10,
    index: str | Path | None = None,
) -> list[SearchResult]:
    """Return the clips of a split, or its captions, nearest to a text or to an audio file, best first.

    Args:
        query: a text (`str`), or an audio file (`Path`).
        model: a model, or the folder of a saved one.
        split: folder of a split's shards.
        captions: whether to search captions instead of clips.
        top: maximum number of results.
        index: folder that keeps the embeddings of the split for the next search. The default is the folder `index` of
            the model, or the user's cache folder if the model is an export or its folder is read-only.

    Raises:
        PipelineError: no such model, split or file, a split without clips or captions, shards at another rate than the
            model's, a damaged tar, a blank text, or embeddings without a direction.

    Example:
        >>> import pipeline
        >>> model = pipeline.load("results/runs/clotho_composed_audioset/seed0")  # doctest: +SKIP
        >>> found = pipeline.search("a dog barks", model, "results/shards/clotho/evaluation")  # doctest: +SKIP
        >>> found[0].key, found[0].score, found[0].captions  # doctest: +SKIP
    """
    if not isinstance(model, AudioTextModel):
        model = load(model)
    shards = open_shards(Path(split))
    paths = index_paths(model, shards, index, "text.npy" if captions else "audio.npy")
    texts, clip_of_row = captions_of(shards) if captions else ([], np.arange(len(shards)))
    if captions and not texts:
        raise PipelineError(f"{split}: the split has no captions; leave --captions out to search its clips")

    # The query's vector comes first, because an unusable query then fails at once.
    query_D = embed_query(query, model.network, shards.channels)

    vectors = caption_vectors(texts, model, paths) if captions else clip_vectors(model, shards, paths)

    # The nearest neighbours.
    rows, scores = nearest(vectors, query_D, top)
    keys = [shards.keys[clip] for clip in clip_of_row[rows]]
    names = source_names(shards, keys)
    return [
        SearchResult(
            rank=rank,
            score=float(score),
            key=key,
            source_name=names[key],
            captions=shards.captions(key),
            caption=texts[row] if captions else None,
        )
        for rank, (row, key, score) in enumerate(zip(rows, keys, scores, strict=True), start=1)
    ]


def clip_vectors(model: AudioTextModel, shards: ShardReader, paths: list[Path]) -> NDArray[np.float32]:
    """Return the unit vectors (N, D) of a split's clips, from the index at `index_paths` or computed now."""

    def embed() -> NDArray[np.float32]:
        whole = open_shards(shards.folder, verify=True)  # no index of a damaged tar
        return embed_audio(model.network, whole, WINDOWS, BATCH_SIZE)

    return indexed(paths, len(shards), embed, lambda row: f"clip {shards.keys[row]}")


def caption_vectors(texts: list[str], model: AudioTextModel, paths: list[Path]) -> NDArray[np.float32]:
    """Return the unit vectors (M, D) of a split's captions, from the index at `index_paths` or computed now."""

    def embed() -> NDArray[np.float32]:
        return embed_texts(model.network, texts, BATCH_SIZE)

    return indexed(paths, len(texts), embed, lambda row: repr(texts[row]))


def index_paths(model: AudioTextModel, shards: ShardReader, index: str | Path | None, name: str) -> list[Path]:
    """Return the paths that may hold a file of a split's index, the preferred one first; see `index_folders`."""
    folder = f"{shards.manifest_sha256[:16]}-{checksum_of(model.folder)[:16]}"
    return [path / folder / name for path in index_folders(model.folder, index)]


def checksum_of(folder: Path) -> str:
    """Return the hex SHA-256 of the files that determine a saved model's embeddings.

    The checksums that model.json records were checked when the model was loaded, and are not computed again.
    """
    recorded = read_json(folder / "model.json").get("files_sha256", {})
    digests = [recorded.get(name) or sha256_of(folder / name) for name in MODEL_FILES]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def index_folders(model_folder: Path, requested: str | Path | None) -> list[Path]:
    """Return the folders that may keep an index, the preferred one first.

    An export, recognised by its model card README.md, stays unchanged.

    Raises:
        PipelineError: The requested folder is read-only.
    """
    if requested is not None:
        folder = Path(requested).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise PipelineError(f"{folder}: cannot be written to ({error.strerror}); give another folder") from error
        return [folder]
    try:
        home = Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        home = Path(tempfile.gettempdir())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home) / "audio-composed-text" / "index"
    return [cache] if (model_folder / "README.md").exists() else [model_folder / "index", cache]


def indexed(
    paths: list[Path], count: int, embed: Callable[[], NDArray[np.float32]], name_of: Callable[[int], str]
) -> NDArray[np.float32]:
    """Return unit vectors (count, D), memory-mapped from the first of `paths` that exists.

    Otherwise compute them and keep them in the first of `paths` that can be written. If none can, log a warning.
    """
    for path in paths:
        if path.exists():
            return read_index(path, count)
    vectors_ND = embed()
    check_vectors(vectors_ND, name_of)
    unit_ND = unit_rows(vectors_ND)
    reasons = []
    for path in paths:
        try:
            with write_atomically(path) as temporary, temporary.open("wb") as file:
                np.save(file, unit_ND)
        except (OSError, PipelineError) as error:
            reasons.append(f"{path}: {getattr(error, 'strerror', None) or error}")
        else:
            logger.info("%s: %d embeddings, kept for the next search", path, count)
            return read_index(path, count)  # unlike the array, a mapped file can leave memory
    logger.warning("the index cannot be kept (%s); give another folder with --index", "; ".join(reasons))
    return unit_ND


def read_index(path: Path, count: int) -> NDArray[np.float32]:
    """Return the vectors of an index, memory-mapped; PipelineError if they are damaged or their number is wrong."""
    try:
        index_ND = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise PipelineError(f"{path}: the index is damaged ({error}); delete it and search again") from error
    if index_ND.ndim != 2 or len(index_ND) != count or index_ND.dtype != np.float32:
        raise PipelineError(
            f"{path}: the index holds {index_ND.dtype} of shape {index_ND.shape}, expected {count} rows of float32; "
            "delete it and search again"
        )
    return index_ND


def embed_query(query: str | Path, network: ClapModel, channels: str) -> NDArray[np.float32]:
    """Return the unit vector (D,) of a text or an audio file.

    Raises:
        PipelineError: a blank text, an audio file that cannot be used, or an embedding without a direction.
    """
    if isinstance(query, str):
        if not query.strip():
            raise PipelineError("the query text is blank; give a text or an audio file")
        query_1D = embed_texts(network, [query], BATCH_SIZE)
    else:
        query_1D = embed_sounds(network, [query], WINDOWS, BATCH_SIZE, channels)
    check_vectors(query_1D, lambda row: repr(str(query)))
    return unit_rows(query_1D)[0]


def source_names(shards: ShardReader, keys: list[str]) -> dict[str, str]:
    """The path of each clip in its raw dataset, from the manifest."""
    names: dict[str, str] = {}
    for batch in usable_batches(shards.folder / "manifest.parquet", ["key", "source_name"]):
        rows = batch.filter(pc.is_in(batch["key"], pa.array(keys)))
        names |= zip(rows["key"].to_pylist(), rows["source_name"].to_pylist(), strict=True)
    return names


def render(results: list[SearchResult]) -> str:
    """Return the results as text: rank, score, key and file, and the captions below."""
    lines = []
    for found in results:
        lines.append(f"{found.rank:4d}  {found.score:6.3f}  {found.key}  {printable(found.source_name)}")
        captions = found.captions if found.caption is None else [found.caption]
        lines += [f"{'':14}{printable(caption)}" for caption in captions]
    return "\n".join(lines)
