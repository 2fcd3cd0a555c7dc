"""Describe the unlabeled audio of a target: how near it is to the labeled and to the held-out clips, and a map."""

# B = clips of a block, N = unlabeled clips, M = held-out clips, L = labeled clips, D = joint width

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.leaks import LOOKED_AT, leaks_of, read_held_out
from pipeline.data.parquet import open_parquet, parquet_writer, write_parquet
from pipeline.data.shards.format import check_manifest, read_summary, usable_batches
from pipeline.errors import PipelineError
from pipeline.evaluation.coverage import Nearest, NearestSoFar, block_rows, nearest_among, nearest_of, scores_of
from pipeline.evaluation.vector_files import BLOCK, VectorFile
from pipeline.files import read_json, sha256_of
from pipeline.provenance import remember, restore
from pipeline.results.maps import map_of, neighbours_kept
from pipeline.results.pools import (
    HELD_OUT_SCHEMA,
    MAP_SCHEMA,
    QUANTILES,
    QUIET_DBFS,
    UNLABELED_SCHEMA,
    PoolSummary,
    UnlabeledFigures,
    answer,
    write_summary,
)
from pipeline.stages import VERSIONS, run

logger = logging.getLogger(__name__)

OUTPUTS = ("summary.json", "held_out.parquet", "unlabeled.parquet", "map.parquet")
MOST_DOTS = {"unlabeled": 500, "labeled": 250, "held_out": 250}
"""Dots of each group on the map: if there are more clips, so many are drawn at random."""
LISTED = 10
"""Held-out clips worst covered, and unlabeled clips farthest from all others, that are always on the map."""
_LEVELS = ("key", "source_name", "frames", "sample_rate_hz", "peak_dbfs", "rms_dbfs")


# --- splits and their embeddings -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbeddedSplit:
    """A split's manifest and embeddings, which belong together."""

    name: str
    """DATASET/SPLIT."""
    manifest: Path
    not_used: dict[str, int]
    """Rows without a clip, by reason."""
    vectors: VectorFile

    def rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of the usable clips, at most `BLOCK` clips at once."""
        for batch in usable_batches(self.manifest, columns):
            for first in range(0, batch.num_rows, BLOCK):
                yield pa.Table.from_batches([batch.slice(first, BLOCK).select(columns)])


def open_splits(names: Sequence[str], shards: Path, embeddings: Path) -> list[EmbeddedSplit]:
    """Return splits by name.

    Raises:
        PipelineError: A file is missing or damaged, or embeddings are of other shards.
    """
    splits = []
    for name in names:
        folder = shards / name
        summary = read_summary(folder / "manifest.json")
        check_manifest(folder / "manifest.parquet", summary)
        vectors = VectorFile(embeddings / name / "embeddings.parquet")
        if vectors.facts.manifest_sha256 != summary["manifest_sha256"]:
            raise PipelineError(f"{vectors.path}: is of other shards than {folder}; make it again with embed_split")
        splits.append(
            EmbeddedSplit(
                name=name, manifest=folder / "manifest.parquet", not_used=dict(summary["reason"]), vectors=vectors
            )
        )
    return splits


def check_one_model(splits: Sequence[EmbeddedSplit]) -> None:
    """Raise `PipelineError` unless one model embedded all splits, with the same windows."""
    first = splits[0].vectors
    for vectors in (split.vectors for split in splits):
        for what in ("width", "weights_sha256", "windows"):
            here, there = getattr(vectors.facts, what), getattr(first.facts, what)
            if here != there:
                raise PipelineError(
                    f"{vectors.path}: its {what} is {here}, that of {first.path} is {there}; make both again with "
                    "embed_split and one model"
                )


def taken(tables: Iterable[pa.Table], rows: NDArray[np.int64]) -> pa.Table:
    """Return some rows, in ascending order, of the rows that follow one another in tables."""
    first, parts = 0, []
    for table in tables:
        inside = rows[(rows >= first) & (rows < first + len(table))]
        parts.append(table.take(pa.array(inside - first)))
        first += len(table)
    return pa.concat_tables(parts)


def clips_of(splits: Sequence[EmbeddedSplit], rows: NDArray[np.int64]) -> pa.Table:
    """Return names and captions of some clips, by their rows over all splits."""
    tables = (with_names(split, table) for split in splits for table in split.rows(["key", "source_name", "captions"]))
    return taken(tables, rows)


def with_names(split: EmbeddedSplit, rows: pa.Table) -> pa.Table:
    """Return rows of a split with the names of its dataset and split as columns."""
    dataset, name = split.name.split("/")
    columns = {"dataset": [dataset] * len(rows), "split": [name] * len(rows)}
    for column, values in columns.items():
        rows = rows.append_column(column, pa.array(values, pa.string()))
    return rows


def keys_of(splits: Sequence[EmbeddedSplit]) -> list[str]:
    """Return the keys of all usable clips of splits."""
    return [key for split in splits for rows in split.rows(["key"]) for key in rows["key"].to_pylist()]


def vectors_of(splits: Sequence[EmbeddedSplit], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the unit vectors of some clips, by their rows over all splits, in ascending order."""
    first, parts = 0, []
    for split in splits:
        inside = rows[(rows >= first) & (rows < first + len(split.vectors))]
        parts.append(split.vectors.read(inside - first))
        first += len(split.vectors)
    return np.concatenate(parts)


# --- what is known of the unlabeled clips before they are compared ---------------------------------------------------


def leaked_clips(split: EmbeddedSplit, identities: pa.Table) -> NDArray[np.bool_]:
    """Return which usable clips of a split are also in a held-out split.

    Raises:
        PipelineError: All of them are.
    """
    masks = [
        leaks_of(batch, identities, "unlabeled")[0].to_numpy(zero_copy_only=False)
        for batch in usable_batches(split.manifest, LOOKED_AT)
    ]
    mask = np.concatenate(masks)
    if mask.all():
        raise PipelineError(f"{split.manifest}: all {len(mask)} clips are also in a validation or test split")
    return mask


def draw(count: int, usable_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of at most `count` usable clips, drawn at random; the same for the same clips."""
    mask = np.zeros(len(usable_N), bool)
    mask[drawn_rows(np.flatnonzero(usable_N), count)] = True
    return mask


def drawn_rows(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most `count` of some rows, drawn at random with a fixed seed."""
    return np.random.default_rng(0).choice(rows, size=min(count, len(rows)), replace=False)


def read_near_duplicates(paths: Sequence[Path], held_out: Iterable[str]) -> dict[str, str] | None:
    """Return, by key, the held-out clip that shares a stretch of sound, from reports of find_near_duplicates.

    None if there is no report. Of several held-out clips the most similar one counts.
    """
    found: dict[str, str] = {}
    wanted = set(held_out)
    for path in paths:
        pairs = read_json(path).get("pairs")
        if not isinstance(pairs, list):
            raise PipelineError(f"{path}: has no list of pairs; make it again with find_near_duplicates")
        for pair in pairs:  # the most similar first
            if pair["held_out_key"] in wanted:
                found.setdefault(pair["key"], pair["held_out_key"])
    return found if paths else None


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Coverage:
    """Some unlabeled clips and how near they come to the held-out clips, while they are read."""

    name: str
    usable_N: NDArray[np.bool_]
    """Clips that do not leak."""
    drawn_N: NDArray[np.bool_]
    """As many of them as there are labeled clips, drawn at random."""
    nearest: NearestSoFar
    """Of all usable clips to each held-out clip."""
    nearest_drawn: NearestSoFar
    not_used: Counter[str]
    seconds: float = 0.0
    near_duplicates: int = 0
    rms_dbfs: list[NDArray[np.float32]] = field(default_factory=list)
    from_labeled: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, scores_BM: NDArray[np.float32], first: int) -> None:
        """Take the cosines of a block's clips to the held-out clips into account; its first clip is row `first`."""
        rows_B = np.arange(first, first + len(scores_BM))
        for nearest, mask_N in ((self.nearest, self.usable_N), (self.nearest_drawn, self.drawn_N)):
            mask_B = mask_N[rows_B]
            nearest.add(scores_BM[mask_B], rows_B[mask_B])

    def count(self, clips: pa.Table, near_duplicates: int, from_labeled: NDArray[np.float32]) -> None:
        """Count usable clips, with their cosines to the nearest labeled clip."""
        self.seconds += float(np.sum(duration_s(clips).to_numpy()))
        self.near_duplicates += near_duplicates
        self.rms_dbfs.append(clips["rms_dbfs"].to_numpy())
        self.from_labeled.append(from_labeled)


class Description:
    """The unlabeled clips of a target, next to its labeled and held-out clips."""

    def __init__(
        self,
        held_out: EmbeddedSplit,
        labeled: Sequence[EmbeddedSplit],
        unlabeled: Sequence[EmbeddedSplit],
        identities: pa.Table,
    ) -> None:
        """`identities`: the clips of all held-out splits, see `pipeline.data.leaks.read_held_out`."""
        self.held_out, self.labeled, self.unlabeled = held_out, labeled, unlabeled
        self.held_out_MD = held_out.vectors.read()
        self.labeled_LD = np.concatenate([split.vectors.read() for split in labeled])
        self.held_out_keys = keys_of([held_out])
        self.labeled_keys = keys_of(labeled)
        self.labeled_of_held_out = nearest_among(self.held_out_MD, self.labeled_LD)
        self.near_cosine = float(np.median(self.labeled_of_held_out.cosines))
        usable = [~leaked_clips(split, identities) for split in unlabeled]
        self.parts = [
            self._coverage(split.name, usable_N, Counter(split.not_used))
            for split, usable_N in zip(unlabeled, usable, strict=True)
        ]
        self.whole = self._coverage(
            "all", np.concatenate(usable), sum((part.not_used for part in self.parts), Counter())
        )
        self.farness_N = np.empty(0, np.float32)
        """Each unlabeled clip's cosine to the nearest labeled or held-out clip; infinite for clips that leak."""

    def _coverage(self, name: str, usable_N: NDArray[np.bool_], not_used: Counter[str]) -> Coverage:
        nearest, nearest_drawn = (NearestSoFar.of_none(len(self.held_out_keys)) for _ in range(2))
        drawn_N = draw(len(self.labeled_keys), usable_N)
        return Coverage(
            name=name,
            usable_N=usable_N,
            drawn_N=drawn_N,
            nearest=nearest,
            nearest_drawn=nearest_drawn,
            not_used=not_used,
        )

    def write_unlabeled(self, path: Path, near_duplicates: dict[str, str] | None) -> None:
        """Compare every unlabeled clip with the labeled and held-out ones, and write unlabeled.parquet."""
        first, farness = 0, []
        with parquet_writer(path, UNLABELED_SCHEMA) as writer:
            for split, part in zip(self.unlabeled, self.parts, strict=True):
                row, sizes = 0, [len(rows) for rows in split.rows(["key"])]
                for clips, unit_BD in zip(split.rows(_LEVELS), split.vectors.blocks(sizes), strict=True):
                    usable_B = part.usable_N[row : row + len(clips)]
                    held_out = self._compare(unit_BD, [(part, row), (self.whole, first + row)])
                    labeled = nearest_among(unit_BD, self.labeled_LD)
                    twins = [(near_duplicates or {}).get(key) for key in clips["key"].to_pylist()]
                    writer.write_table(self._rows(split, clips, usable_B, labeled, held_out, twins))
                    for coverage in (part, self.whole):
                        count = sum(twin is not None for twin in np.array(twins, object)[usable_B])
                        coverage.count(clips.filter(pa.array(usable_B)), count, labeled.cosines[usable_B])
                    farness.append(np.where(usable_B, np.maximum(labeled.cosines, held_out.cosines), np.inf))
                    row += len(clips)
                first += row
        self.farness_N = np.concatenate(farness)

    def _compare(self, unit_BD: NDArray[np.float32], coverages: Sequence[tuple[Coverage, int]]) -> Nearest:
        """Return the nearest held-out clip of each clip of a block.

        coverages: those that the block counts for, each with the row of the block's first clip.
        """
        found: list[Nearest] = []
        step = block_rows(len(self.held_out_MD))
        for begin in range(0, len(unit_BD), step):
            scores_BM = scores_of(unit_BD[begin : begin + step], self.held_out_MD)
            found.append(nearest_of(scores_BM))
            for coverage, first in coverages:
                coverage.add(scores_BM, first + begin)
        return Nearest.joined(found)

    def _rows(
        self,
        split: EmbeddedSplit,
        clips: pa.Table,
        usable_B: NDArray[np.bool_],
        labeled: Nearest,
        held_out: Nearest,
        twins: list[str | None],
    ) -> pa.Table:
        named = with_names(split, clips)
        columns = {
            **{name: named[name] for name in ("key", "dataset", "split", "source_name")},
            "duration_s": duration_s(clips),
            **{name: clips[name] for name in ("peak_dbfs", "rms_dbfs")},
            "leaked": ~usable_B,
            "nearest_labeled": [self.labeled_keys[row] for row in labeled.rows],
            "labeled_cosine": labeled.cosines,
            "nearest_held_out": [self.held_out_keys[row] for row in held_out.rows],
            "held_out_cosine": held_out.cosines,
            "near_duplicate_of": twins,
        }
        return pa.table(columns, schema=UNLABELED_SCHEMA)

    def held_out_table(self) -> pa.Table:
        """Return the held-out clips with their nearest labeled and unlabeled clips, by `HELD_OUT_SCHEMA`."""
        rows, places = np.unique(self.whole.nearest.rows, return_inverse=True)
        keys = taken((table for split in self.unlabeled for table in split.rows(["key"])), rows)["key"].to_pylist()
        clips = clips_of([self.held_out], np.arange(len(self.held_out_keys)))
        columns = {
            **{name: clips[name] for name in ("key", "dataset", "split", "source_name", "captions")},
            "nearest_labeled": [self.labeled_keys[row] for row in self.labeled_of_held_out.rows],
            "labeled_cosine": self.labeled_of_held_out.cosines,
            "nearest_unlabeled": [keys[place] for place in places],
            "unlabeled_cosine": self.whole.nearest.cosines,
        }
        return pa.table(columns, schema=HELD_OUT_SCHEMA)

    def figures(self, *, has_duplicates: bool) -> list[UnlabeledFigures]:
        """Return the figures of every unlabeled split, and of all together if there are several.

        has_duplicates: whether near-duplicates were looked for.
        """
        parts = self.parts if len(self.parts) == 1 else [*self.parts, self.whole]
        return [self._figures(part, has_duplicates) for part in parts]

    def _figures(self, part: Coverage, has_duplicates: bool) -> UnlabeledFigures:
        rms_dbfs, cosines = np.concatenate(part.rms_dbfs), part.nearest.cosines
        return UnlabeledFigures(
            name=part.name,
            clips=len(rms_dbfs),
            leaked=int((~part.usable_N).sum()),
            hours=round(part.seconds / 3600, 4),
            not_used=dict(part.not_used),
            quiet=int((rms_dbfs < QUIET_DBFS).sum()),
            rms_dbfs=quantiles(rms_dbfs, 1),
            near_duplicates=part.near_duplicates if has_duplicates else None,
            held_out_nearer=int((cosines > self.labeled_of_held_out.cosines).sum()),
            held_out_near=int((cosines >= self.near_cosine).sum()),
            held_out_near_drawn=int((part.nearest_drawn.cosines >= self.near_cosine).sum()),
            to_held_out=quantiles(cosines, 4),
            from_labeled=quantiles(np.concatenate(part.from_labeled), 4),
        )

    # --- the map

    def dots(self, unlabeled_path: Path, held_out: pa.Table) -> tuple[pa.Table, float]:
        """Return the dots of the map (`MAP_SCHEMA`), and the share of neighbours that it keeps.

        unlabeled_path: file of `write_unlabeled`; held_out: `held_out_table`.
        """
        worst = np.argsort(self.whole.nearest.cosines, kind="stable")[:LISTED]
        farthest = np.argsort(self.farness_N, kind="stable")[:LISTED]
        shown = {
            "unlabeled": chosen(
                [*farthest, *self.whole.nearest.rows[worst]],
                np.flatnonzero(self.whole.usable_N),
                MOST_DOTS["unlabeled"],
            ),
            "labeled": chosen(
                self.labeled_of_held_out.rows[worst], np.arange(len(self.labeled_keys)), MOST_DOTS["labeled"]
            ),
            "held_out": chosen(worst, np.arange(len(self.held_out_keys)), MOST_DOTS["held_out"]),
        }
        splits = {"unlabeled": self.unlabeled, "labeled": self.labeled, "held_out": [self.held_out]}
        unit_ND = np.concatenate([vectors_of(splits[group], rows) for group, rows in shown.items()])
        places_N2 = map_of(unit_ND)

        # Each dot: its names and captions, and its nearest clips of the other groups.
        with open_parquet(unlabeled_path, "describe_pool") as file:
            batches = file.iter_batches(BLOCK, use_threads=False)
            described = taken((pa.Table.from_batches([batch]) for batch in batches), shown["unlabeled"])
        nearest = {"unlabeled": described, "held_out": held_out.take(pa.array(shown["held_out"]))}
        rows: list[dict[str, Any]] = []
        for group, table in ((group, clips_of(splits[group], shown[group])) for group in shown):
            others = nearest[group].to_pylist() if group in nearest else [{}] * len(table)
            for clip, other in zip(table.to_pylist(), others, strict=True):
                x, y = places_N2[len(rows)]
                found = {name: value for name, value in other.items() if name in MAP_SCHEMA.names}
                rows.append({**found, **clip, "group": group, "x": x, "y": y})
        return pa.Table.from_pylist(rows, schema=MAP_SCHEMA), neighbours_kept(unit_ND, places_N2)


def chosen(always: Iterable[int], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most `count` of some rows in ascending order: those of `always`, and others drawn at random."""
    kept = np.intersect1d(np.array(list(always), np.int64), rows)
    return np.sort(np.concatenate([kept, drawn_rows(np.setdiff1d(rows, kept), count - len(kept))]))


def duration_s(clips: pa.Table) -> pa.ChunkedArray:
    """Return the lengths of clips in seconds."""
    return pc.divide(pc.cast(clips["frames"], pa.float64()), pc.cast(clips["sample_rate_hz"], pa.float64()))


def quantiles(values: NDArray[np.floating], digits: int) -> list[float]:
    """Return `QUANTILES` of values, rounded."""
    return [round(float(value), digits) for value in np.quantile(values, QUANTILES)]


# --- the stage -------------------------------------------------------------------------------------------------------


def describe(args: argparse.Namespace) -> PoolSummary:
    """Write the tables of a description to `args.out`, and return its summary."""
    names = [args.held_out, *args.labeled, *args.unlabeled]
    held_out, *others = open_splits(names, args.shards, args.embeddings)
    check_one_model([held_out, *others])
    labeled, unlabeled = others[: len(args.labeled)], others[len(args.labeled) :]
    near_duplicates = read_near_duplicates(args.near_duplicates, keys_of([held_out]))

    found = Description(held_out, labeled, unlabeled, read_held_out(args.identities))
    found.write_unlabeled(args.out / "unlabeled.parquet", near_duplicates)
    table = found.held_out_table()
    write_parquet(table, args.out / "held_out.parquet")
    dots, kept = found.dots(args.out / "unlabeled.parquet", table)
    write_parquet(dots, args.out / "map.parquet")
    return PoolSummary(
        target=args.target,
        role=args.role,
        held_out=held_out.name,
        held_out_clips=len(found.held_out_keys),
        labeled=[split.name for split in labeled],
        labeled_clips=len(found.labeled_keys),
        weights_sha256=held_out.vectors.facts.weights_sha256,
        near_cosine=round(found.near_cosine, 4),
        labeled_to_held_out=quantiles(found.labeled_of_held_out.cosines, 4),
        unlabeled=found.figures(has_duplicates=near_duplicates is not None),
        dots=dict(Counter(dots["group"].to_pylist())),
        neighbours_kept=round(kept, 3),
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="dataset whose held-out clips are to be covered")
    parser.add_argument("--role", choices=["validation", "test"], required=True, help="role of the held-out split")
    parser.add_argument("--held-out", required=True, metavar="DATASET/SPLIT")
    parser.add_argument("--labeled", nargs="+", required=True, metavar="DATASET/SPLIT")
    parser.add_argument("--unlabeled", nargs="+", required=True, metavar="DATASET/SPLIT")
    parser.add_argument("--shards", type=Path, required=True, help="folder with DATASET/SPLIT/manifest.json")
    parser.add_argument(
        "--embeddings", type=Path, required=True, help="folder with DATASET/SPLIT/embeddings.parquet of embed_split"
    )
    parser.add_argument(
        "--identities", type=Path, nargs="*", default=[], help="identities.parquet of all held-out splits"
    )
    parser.add_argument("--near-duplicates", type=Path, nargs="*", default=[], help="reports of find_near_duplicates")
    parser.add_argument("--out", type=Path, required=True, help=f"folder to write {', '.join(OUTPUTS)} to")
    return parser


def made_from(args: argparse.Namespace) -> dict[str, Any]:
    """Return what determines the description, for `pipeline.provenance`."""
    names = [args.held_out, *args.labeled, *args.unlabeled]
    files = [
        *(args.shards / name / "manifest.json" for name in names),
        *(args.embeddings / name / "embeddings.parquet" for name in names),
        *args.identities,
        *args.near_duplicates,
    ]
    return {
        "stage": "describe_pool",
        "version": VERSIONS["describe_pool"],
        "files": {str(path): sha256_of(path) for path in files if path.is_file()},
        **{name: getattr(args, name) for name in ("target", "role", "held_out", "labeled", "unlabeled")},
    }


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    outputs, origin = [args.out / name for name in OUTPUTS], made_from(args)
    if restore(outputs, origin):
        return
    summary = describe(args)
    write_summary(summary, args.out / "summary.json")
    remember(outputs, origin)
    for figures in summary.unlabeled:
        logger.info("%s for %s: %s", figures.name, summary.held_out, " ".join(answer(summary, figures)))


if __name__ == "__main__":
    run(main)
