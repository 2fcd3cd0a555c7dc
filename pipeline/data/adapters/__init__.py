"""One adapter a source layout: it reads what the publisher ships and yields a row a clip, unjudged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.data.adapters.audiocaps import read_audiocaps
from pipeline.data.adapters.audioset import read_audioset
from pipeline.data.adapters.clotho import read_clotho
from pipeline.data.adapters.folder import read_folder
from pipeline.data.adapters.parquet import read_parquet
from pipeline.data.adapters.sources import SourceRow
from pipeline.data.adapters.webdataset import read_webdataset

__all__ = ["ADAPTERS", "SourceRow"]

ADAPTERS: dict[str, Callable[[Path, str], Iterator[SourceRow]]] = {
    "audiocaps": read_audiocaps,
    "audioset": read_audioset,
    "clotho": read_clotho,
    "folder": read_folder,
    "parquet": read_parquet,
    "webdataset": read_webdataset,
}
"""Adapter by name: (root, split) -> source rows. Raises PipelineError for a layout that is not the publisher's."""
