"""One adapter per source layout: it reads what the publisher ships and yields one row per clip, unjudged."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.data.adapters.rows import SourceRow

__all__ = ["ADAPTERS", "SourceRow"]


def _adapter(name: str) -> Callable[[Path, str], Iterator[SourceRow]]:
    """The adapter of a module, imported when it is called: planning needs `listing` alone, and pyarrow takes long."""

    def read(root: Path, split: str) -> Iterator[SourceRow]:
        module = importlib.import_module(f"{__name__}.{name}")
        rows: Iterator[SourceRow] = getattr(module, f"read_{name}")(root, split)
        return rows

    return read


ADAPTERS = {name: _adapter(name) for name in ("audiocaps", "audioset", "clotho", "folder", "parquet", "webdataset")}
"""Adapter by name: (root, split) -> source rows. Raises PipelineError for a layout that is not the publisher's."""
