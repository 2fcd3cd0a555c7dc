"""Embeddings of a split's clips in a Parquet file, written and read in blocks: millions of clips need little memory."""

# B = clips of a block, N = clips, D = joint width

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.catalogs import regrouped
from pipeline.data.parquet import check_parquet, open_parquet, parquet_writer
from pipeline.errors import PipelineError

BLOCK = 4096
"""Clips that are written and read together: 16 MB at a width of 1024."""

FACTS_KEY = b"embeddings"


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorFacts:
    """The origin of a file of embeddings, kept in its footer."""

    dataset: str
    split: str
    manifest_sha256: str
    """Of the manifest whose usable clips are embedded, in its order."""
    weights_sha256: str
    """Of the model's weights."""
    windows: str
    width: int
    clips: int

    @property
    def name(self) -> str:
        """DATASET/SPLIT."""
        return f"{self.dataset}/{self.split}"


def _schema(facts: VectorFacts) -> pa.Schema:
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), facts.width)
    columns = [pa.field("key", pa.string(), nullable=False), pa.field("embedding", vector, nullable=False)]
    return pa.schema(columns, metadata={FACTS_KEY: json.dumps(asdict(facts))})


@contextlib.contextmanager
def vectors_writer(path: Path, facts: VectorFacts) -> Iterator[Callable[[Iterable[str], NDArray[np.float32]], None]]:
    """Yield a function that writes the keys and the unit vectors (B, D) of a block of clips.

    The file appears, with its checksum, once the block ends without an error.
    """
    schema = _schema(facts)
    with parquet_writer(path, schema) as writer:

        def write(keys: Iterable[str], unit_BD: NDArray[np.float32]) -> None:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit_BD.ravel()), type=schema.field("embedding").type)
            writer.write_table(pa.table([pa.array(keys, pa.string()), vectors], schema=schema))

        yield write


class VectorFile:
    """A file of embeddings, whose checksum is compared when it is opened.

    Raises:
        PipelineError: The file is missing or damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        check_parquet(path, "embed_split")
        self.path = path
        with open_parquet(path, "embed_split", is_checked=True) as file:
            footer = (file.schema_arrow.metadata or {}).get(FACTS_KEY)
            if footer is None:
                raise PipelineError(f"{path}: holds no embeddings of a split; delete it and make it with embed_split")
            recorded = json.loads(footer)
            self.facts = VectorFacts(**{field.name: recorded[field.name] for field in fields(VectorFacts)})

    def __len__(self) -> int:
        return self.facts.clips

    def blocks(self, sizes: Iterable[int] | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield unit vectors (B, D) in order: `BLOCK` at once, or as many as each of `sizes` says."""
        if sizes is None:
            sizes = [BLOCK] * -(-len(self) // BLOCK)
        with open_parquet(self.path, "embed_split", is_checked=True) as file:
            batches = file.iter_batches(BLOCK, columns=["embedding"], use_threads=False)
            for table in regrouped((pa.Table.from_batches([batch]) for batch in batches), sizes):
                flat = table["embedding"].combine_chunks().flatten()
                yield flat.to_numpy().reshape(-1, self.facts.width)

    def read(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the unit vectors (N, D) of all clips, or of some rows in their order; memory holds these alone."""
        wanted = np.arange(len(self)) if rows is None else rows
        found_ND = np.empty((len(wanted), self.facts.width), np.float32)
        first = 0
        for block_BD in self.blocks():
            is_here = (wanted >= first) & (wanted < first + len(block_BD))
            found_ND[is_here] = block_BD[wanted[is_here] - first]
            first += len(block_BD)
        return found_ND
