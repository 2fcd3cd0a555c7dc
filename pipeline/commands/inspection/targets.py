"""Which output of the stages a path is, judged by its contents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.commands.inspection.columns import MAKER, read_schema
from pipeline.data.catalogs import CATALOG_SCHEMA, fitting
from pipeline.data.leaks import LEAKED_SCHEMA
from pipeline.data.pairs import SCHEMA as PAIRS_SCHEMA
from pipeline.data.parquet import check_parquet
from pipeline.data.shards.format import FACTS_KEY, is_manifest
from pipeline.errors import PipelineError
from pipeline.files import read_json

TRAINING_COLUMNS = {"step", "epoch", "loss", "learning_rate"}
ACCEPTED = (
    "give a folder of shards (or its manifest.parquet or manifest.json), a catalog, a pairs file, "
    "or the folder of a run (with model.json or training.parquet)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """An output of the stages."""

    kind: Literal["shards", "catalog", "pairs", "run"]
    path: Path
    """The manifest.parquet of shards, the folder of a run, else the file."""


def find_target(path: Path) -> Target:
    """Return what a file or folder is; PipelineError, which says what was found, for no output of the stages."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        if {"manifest.parquet", "manifest.json"} & set(names):
            return Target("shards", path / "manifest.parquet")
        if {"model.json", "training.parquet"} & set(names):
            return Target("run", path)
        if "checkpoints" in names:
            raise PipelineError(f"{path}: a run whose training has not ended; logs/train/ shows its progress")
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        found = f"holds {', '.join(names[:5])}{more}" if names else "is empty"
        raise PipelineError(f"{path}: a folder that {found}; {ACCEPTED}")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; {ACCEPTED}") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"PAR1"):
        return _parquet_target(path)
    if start.lstrip().startswith(b"{"):
        names = sorted(read_json(path))
        if "manifest_sha256" in names:
            return Target("shards", path.with_name("manifest.parquet"))
        if "backbone" in names:
            return Target("run", path.parent)
        raise PipelineError(f"{path}: a JSON file with {', '.join(names[:8]) or 'nothing in it'}; {ACCEPTED}")
    found = f"begins with {start!r}" if start else "is empty"
    raise PipelineError(f"{path}: a file that {found}, neither Parquet nor JSON; {ACCEPTED}")


def _parquet_target(path: Path) -> Target:
    check_parquet(path, MAKER)
    schema = read_schema(path)
    metadata = schema.metadata or {}
    if b"pairs" in metadata and schema.names[: len(PAIRS_SCHEMA)] == PAIRS_SCHEMA.names:
        return Target("pairs", path)
    if is_manifest(schema.names):
        if FACTS_KEY in metadata:
            raise PipelineError(f"{path}: the rows of one shard; join them with index_shards and give their folder")
        return Target("shards", path)
    if schema.names == fitting(CATALOG_SCHEMA, schema.names).names:
        return Target("catalog", path)
    if schema.names == LEAKED_SCHEMA.names:
        raise PipelineError(f"{path}: the clips that a run leaves out; give the pairs file next to it")
    if set(schema.names) >= TRAINING_COLUMNS:
        return Target("run", path.parent)
    raise PipelineError(f"{path}: a Parquet file with the columns {', '.join(schema.names)}; {ACCEPTED}")


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Name the file if its contents contradict each other in a way that no check covers, as after a flipped bit."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise PipelineError(f"{path}: is damaged, make it again ({type(error).__name__}: {error})") from error
