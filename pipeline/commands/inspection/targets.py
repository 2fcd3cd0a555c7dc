"""What lies at a path, told by its contents, and how to read it without reading more than is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.catalogs import CATALOG_SCHEMA, OK
from pipeline.data.leaks import LEAKED_SCHEMA, leaked_path, read_leaked
from pipeline.data.pairs import SCHEMA as PAIRS_SCHEMA
from pipeline.data.pairs import read_facts
from pipeline.data.shards.format import FACTS_KEY, MANIFEST_SCHEMA
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of

BATCH_ROWS = 1 << 16
TRAINING_COLUMNS = {"step", "epoch", "loss", "learning_rate"}
PAIRS_FACTS = {"seed", "epochs", "steps_per_epoch", "batch_size", "window_frames", "sample_rate_hz"}
ACCEPTED = (
    "give a folder of shards (or its manifest.parquet or manifest.json), a catalog, a pairs file, "
    "or the folder of a run (with model.json or training.parquet)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that the stages made."""

    kind: Literal["shards", "catalog", "pairs", "run"]
    path: Path
    """The manifest.parquet of shards, the folder of a run, else the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedSplit:
    """A split that a pairs file draws from."""

    role: Literal["labeled", "unlabeled"]
    name: str
    """DATASET/SPLIT."""
    manifest_sha256: str
    """Of the manifest that the pairs were made from."""
    folder: Path | None
    """Where its manifest is now; None if it was not found."""

    @property
    def manifest(self) -> Path:
        """The manifest of a split that was found."""
        assert self.folder is not None
        return self.folder / "manifest.parquet"

    def state(self) -> Literal["as paired", "has changed", "not found"]:
        """What became of the manifest that the pairs were made from."""
        if self.folder is None:
            return "not found"
        is_the_same = sha256_of(self.manifest) == self.manifest_sha256
        return "as paired" if is_the_same else "has changed"


def find_target(path: Path) -> Target:
    """What a file or folder is; PipelineError that says what was found if it is nothing that the stages make."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        if {"manifest.parquet", "manifest.json"} & set(names):
            return Target("shards", path / "manifest.parquet")
        if {"model.json", "training.parquet"} & set(names):
            return Target("run", path)
        if "checkpoints" in names:
            raise PipelineError(f"{path}: a run whose training has not ended; logs/train/ shows how far it is")
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
    schema = read_schema(path)
    metadata = schema.metadata or {}
    if b"pairs" in metadata and schema.names == PAIRS_SCHEMA.names:
        return Target("pairs", path)
    if schema.names == MANIFEST_SCHEMA.names:
        if FACTS_KEY in metadata:
            raise PipelineError(f"{path}: the rows of one shard; join them with index_shards and give their folder")
        return Target("shards", path)
    if schema.names == CATALOG_SCHEMA.names:
        return Target("catalog", path)
    if schema.names == LEAKED_SCHEMA.names:
        raise PipelineError(f"{path}: the clips that a run leaves out; give the pairs file beside it, which shows them")
    if set(schema.names) >= TRAINING_COLUMNS:
        return Target("run", path.parent)
    raise PipelineError(f"{path}: a Parquet file with the columns {', '.join(schema.names)}; {ACCEPTED}")


def check_manifest(path: Path) -> None:
    """Raise PipelineError unless a manifest is there and has the columns of one."""
    if not path.is_file():
        raise PipelineError(f"{path}: not found; make it with index_shards")
    if (names := read_schema(path).names) != MANIFEST_SCHEMA.names:
        raise PipelineError(f"{path}: no manifest, its columns are {', '.join(names)}; make it again with index_shards")


def read_pairs_facts(path: Path) -> dict[str, Any]:
    """What a pairs file says of itself, complete."""
    facts = read_facts(path)
    if missing := sorted((PAIRS_FACTS | {"labeled", "unlabeled"}) - set(facts)):
        raise PipelineError(f"{path}: its footer has no {', '.join(missing)}; make it again with pair_clips")
    return facts


def splits_of(pairs: Path, facts: Mapping[str, Any], shards: Path | None) -> list[PairedSplit]:
    """The splits of a pairs file and where they are: in `shards`, else in a folder `shards` beside the pairs, which is
    looked for from the file upwards, else where they were when the pairs were made."""
    splits = []
    for role in ("labeled", "unlabeled"):
        for recorded, checksum in facts[role].items():
            name = "/".join(Path(recorded).parts[-2:])
            beside = [parent / "shards" / name for parent in pairs.absolute().parents]
            folders = [*beside, Path(recorded)] if shards is None else [shards / name]
            folder = next((folder for folder in folders if (folder / "manifest.parquet").is_file()), None)
            splits.append(PairedSplit(role=role, name=name, manifest_sha256=checksum, folder=folder))
    return splits


def leaked_of(pairs: Path, facts: Mapping[str, Any]) -> tuple[str, pa.Table]:
    """Whether the list of a run's leaked clips agrees with its pairs, and the list; an empty one where it is missing.

    Pairs that leave none out need no list.
    """
    path, told = leaked_path(pairs), sum(facts.get("left_out_as_leaked", {}).values())
    if not path.is_file():
        return "missing" if told else "agrees", LEAKED_SCHEMA.empty_table()
    leaked = read_leaked(path)
    return "agrees" if len(leaked) == told else "is of other pairs", leaked


# --- columns ---------------------------------------------------------------------------------------------------------


def read_schema(path: Path) -> pa.Schema:
    """Columns and footer of a Parquet file."""
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def batches(
    path: Path, columns: Sequence[str], row_groups: Sequence[int] | None = None, *, usable: bool = False
) -> Iterator[pa.RecordBatch]:
    """Some columns of a Parquet file, a batch of rows at a time; with `usable` of the rows whose status is ok alone."""
    asked = [*columns, "status"] if usable else list(columns)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=row_groups, columns=asked):
                yield batch.filter(pc.equal(batch["status"], OK)) if usable else batch
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found") from None
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PipelineError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return PipelineError(f"{path}: a damaged Parquet file ({reason}); make it again")
