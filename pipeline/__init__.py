"""Audio-text contrastive learning from few captioned clips and much unlabeled audio, as a pipeline of batch jobs.

The public interface. Each name is imported on first use:

    >>> import pipeline
    >>> model = pipeline.load("results/runs/clotho_composed_audioset/seed0")  # doctest: +SKIP
    >>> audio = model.embed_audio(["dog.wav", "rain.flac"])  # doctest: +SKIP
    >>> text = model.embed_text(["a dog barks"])  # doctest: +SKIP
    >>> text @ audio.T  # cosines, (1, 2)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.shards.reader import ShardReader, open_split
    from pipeline.data.shards.streaming import stream_clips
    from pipeline.errors import PipelineError
    from pipeline.evaluation.folders.search import FolderSearch, search_folder
    from pipeline.evaluation.metrics import retrieval_metrics
    from pipeline.evaluation.model import AudioTextModel, load
    from pipeline.evaluation.search import SearchResult, search
    from pipeline.evaluation.selection import Suggestion, suggest
    from pipeline.training.losses import info_nce

__all__ = [
    "AudioTextModel",
    "FolderSearch",
    "PipelineError",
    "SearchResult",
    "ShardReader",
    "Suggestion",
    "info_nce",
    "load",
    "open_split",
    "retrieval_metrics",
    "search",
    "search_folder",
    "stream_clips",
    "suggest",
]

_MODULES = {
    "AudioTextModel": "pipeline.evaluation.model",
    "FolderSearch": "pipeline.evaluation.folders.search",
    "PipelineError": "pipeline.errors",
    "SearchResult": "pipeline.evaluation.search",
    "ShardReader": "pipeline.data.shards.reader",
    "Suggestion": "pipeline.evaluation.selection",
    "info_nce": "pipeline.training.losses",
    "load": "pipeline.evaluation.model",
    "open_split": "pipeline.data.shards.reader",
    "retrieval_metrics": "pipeline.evaluation.metrics",
    "search": "pipeline.evaluation.search",
    "search_folder": "pipeline.evaluation.folders.search",
    "stream_clips": "pipeline.data.shards.streaming",
    "suggest": "pipeline.evaluation.selection",
}


def __getattr__(name: str) -> Any:
    """Return a public name, imported on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
