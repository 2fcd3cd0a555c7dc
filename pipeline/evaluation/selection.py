"""Choose which clips of a split to caption next: those that cover it best, given the clips captioned already.

A set L of captioned clips covers a clip x by max k(x, y) over y in L, where the kernel k falls from 1 for equal
embeddings to 0 for distant ones. Coverage is the mean of this over the split. Clips are chosen one by one, each for the
largest gain. This is MaxHerding (Bae, Noh and Sutherland 2024, arXiv 2407.12212), and its objective a facility location
function, for which the greedy choice reaches at least 1 - 1/e of the optimum (Nemhauser et al. 1978).

Here the mean is weighted: n clips that are alike count 1/n each. So a kind of sound counts the same, however often it
was recorded.
"""

# N = clips of the split, M = clips on which coverage is measured, L = captioned clips, B = block, D = joint width

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data.shards.format import usable_batches
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.model import AudioTextModel, load
from pipeline.evaluation.search import clip_vectors, index_paths

logger = logging.getLogger(__name__)

KERNEL_VARIANCE = 1.0
"""sigma ** 2 of the kernel exp(-|x - y| ** 2 / (2 sigma ** 2)) of unit vectors x and y."""
LEAST_VARIANCE = 1e-5
"""Of the kernel that counts clips that are alike, for splits of equal clips."""
MEASURED_CLIPS = 1 << 13
"""Coverage of a larger split is measured on this many of its clips, evenly spaced in the order of the keys."""
BLOCK_ROWS = 1024
"""Clips that are compared together with all measured ones, in at most 32 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A clip that `suggest` proposes to caption."""

    rank: int
    """1 is the first to caption."""
    key: str
    source_name: str
    """The clip's path in its raw dataset."""
    source_id: str | None
    """The recording that it was cut from, where the dataset knows it."""
    coverage: float
    """Coverage of the split once this clip and those of lower rank are captioned: 0 is none, 1 all."""
    share: float
    """Share of the split that is nearer to this clip than to any captioned or suggested one."""


def suggest(
    model: AudioTextModel | str | Path,
    split: str | Path,
    *,
    captioned: Sequence[str | Path] = (),
    count: int = 50,
    index: str | Path | None = None,
) -> list[Suggestion]:
    """Return the clips of a split to caption next, the most useful first.

    Args:
        model: a model, or the folder of a saved one.
        split: folder of a split's shards, usually unlabeled audio.
        captioned: folders of shards whose clips have captions. Clips of `split` with the same audio are not suggested.
        count: number of clips.
        index: folder that keeps the embeddings, as for `pipeline.search`.

    Raises:
        PipelineError: no such model or split, fewer than `count` clips without captions, or any error of
            `pipeline.search` about shards and embeddings.

    Example:
        >>> import pipeline
        >>> run, shards = "results/runs/clotho_finetune/seed0", "results/shards"  # doctest: +SKIP
        >>> found = pipeline.suggest(run, f"{shards}/audioset/balanced_train", count=50)  # doctest: +SKIP
        >>> found[0].source_name, found[0].coverage  # doctest: +SKIP
    """
    if count < 1:
        raise PipelineError(f"asked for {count} clips; ask for at least 1")
    if not isinstance(model, AudioTextModel):
        model = load(model)
    pool, others = open_shards(Path(split)), [open_shards(Path(folder)) for folder in captioned]
    is_candidate_N = without_captions(pool, others)
    if (found := int(is_candidate_N.sum())) < count:
        already = f", {len(pool) - found} others are captioned already" if found < len(pool) else ""
        advice = f"ask for at most {found}" if found else "give a split with more audio"
        raise PipelineError(f"{split}: asked for {count} clips, but {found} can be captioned{already}; {advice}")

    def vectors_of(shards: ShardReader) -> NDArray[np.float32]:
        return clip_vectors(model, shards, index_paths(model, shards, index, "audio.npy"))

    pool_ND = vectors_of(pool)
    measured = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), MEASURED_CLIPS)).round().astype(np.int64))
    coverage = Coverage(pool_ND[measured])
    for shards in others:
        for block_BD in blocks(vectors_of(shards)):
            coverage.add(block_BD, Coverage.CAPTIONED)
    logger.info("%s: the captioned clips cover %.3f", split, coverage.value)
    rows, reached = choose(pool_ND, coverage, is_candidate_N, count)

    facts = facts_of(pool, rows)
    return [
        Suggestion(
            rank=rank,
            **facts[row],
            coverage=value,
            share=float(np.mean(coverage.nearest_M == rank)),
        )
        for rank, (row, value) in enumerate(zip(rows, reached, strict=True), start=1)
    ]


class Coverage:
    """How well a growing set of clips covers the measured ones, given as unit vectors (M, D)."""

    NOTHING, CAPTIONED = -1, 0

    def __init__(self, measured_MD: NDArray[np.float32]) -> None:
        self._measured_MD = np.ascontiguousarray(measured_MD)
        self._weights_M = rarities(self._measured_MD)
        self._covered_M = np.zeros(len(measured_MD), np.float32)
        self.nearest_M = np.full(len(measured_MD), self.NOTHING)
        """The number of the clips, as given to `add`, that cover each measured clip most."""

    @property
    def value(self) -> float:
        """The weighted mean over the measured clips, from 0 to 1."""
        return float(self._covered_M @ self._weights_M)

    def add(self, vectors_BD: NDArray[np.float32], number: int) -> None:
        """Add clips to the set, under a number for `nearest_M`."""
        kernel_M = self._kernel(vectors_BD).max(axis=0)
        is_nearer_M = kernel_M > self._covered_M
        self._covered_M[is_nearer_M] = kernel_M[is_nearer_M]
        self.nearest_M[is_nearer_M] = number

    def gains(self, vectors_BD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return by how much each clip alone would raise the coverage, (B,)."""
        kernel_BM = self._kernel(vectors_BD)
        kernel_BM -= self._covered_M
        return np.maximum(kernel_BM, 0, out=kernel_BM) @ self._weights_M

    def _kernel(self, vectors_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        return kernel(vectors_BD @ self._measured_MD.T, KERNEL_VARIANCE)


def kernel(cosines_BM: NDArray[np.float32], variance: float) -> NDArray[np.float32]:
    """Return exp(-|x - y| ** 2 / (2 sigma ** 2)) in place of the cosines, as |x - y| ** 2 = 2 - 2 x y at length 1."""
    cosines_BM -= 1
    cosines_BM /= variance
    return np.exp(cosines_BM, out=cosines_BM)


def rarities(vectors_MD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return weights (M,) that sum to 1: one over the number of clips that are like a clip, itself included.

    The number is a sum of kernels over all clips. Their sigma ** 2 is the mean of 1 - x y over the clips x and their
    nearest others y, so that it follows the model and the split.
    """
    nearest = []
    for first, block_BD in zip(range(0, len(vectors_MD), BLOCK_ROWS), blocks(vectors_MD), strict=True):
        cosines_BM = block_BD @ vectors_MD.T
        np.fill_diagonal(cosines_BM[:, first:], -1)
        nearest.append(cosines_BM.max(axis=1))
    variance = max(float(1 - np.concatenate(nearest).mean(dtype=np.float64)), LEAST_VARIANCE)
    counts = [
        kernel(block_BD @ vectors_MD.T, variance).sum(axis=1, dtype=np.float64) for block_BD in blocks(vectors_MD)
    ]
    weights_M = 1 / np.concatenate(counts)
    return weights_M / weights_M.sum()


def choose(
    pool_ND: NDArray[np.float32], coverage: Coverage, is_candidate_N: NDArray[np.bool_], count: int
) -> tuple[list[int], list[float]]:
    """Return the `count` candidates chosen greedily, and the coverage after each; they are added to `coverage`.

    Ties go to the lower row. A gain never grows as clips are added, so an old gain is an upper bound, and only clips
    with the highest bounds are computed again (Minoux 1978). The result is that of computing all.
    """
    whole = tqdm(blocks(pool_ND), desc="coverage", unit="block", total=-(-len(pool_ND) // BLOCK_ROWS), disable=None)
    bound_N = np.concatenate([coverage.gains(block_BD) for block_BD in whole])
    bound_N[~is_candidate_N] = -np.inf
    rows: list[int] = []
    reached: list[float] = []
    is_new_N = np.ones(len(pool_ND), bool)
    while True:
        row = int(bound_N.argmax())
        if is_new_N[row]:
            rows.append(row)
            coverage.add(pool_ND[row : row + 1], len(rows))
            reached.append(coverage.value)
            if len(rows) == count:
                return rows, reached
            bound_N[row] = -np.inf
            is_new_N[:] = False
        else:
            highest = np.argpartition(-bound_N, min(BLOCK_ROWS, len(bound_N)) - 1)[:BLOCK_ROWS]
            block = np.union1d(highest, row)  # of more ties than fit, the highest may not hold the row
            block = block[~is_new_N[block] & np.isfinite(bound_N[block])]
            bound_N[block] = coverage.gains(pool_ND[block])
            is_new_N[block] = True


def blocks(vectors_ND: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors in blocks of `BLOCK_ROWS`."""
    for first in range(0, len(vectors_ND), BLOCK_ROWS):
        yield vectors_ND[first : first + BLOCK_ROWS]


def without_captions(pool: ShardReader, captioned: Sequence[ShardReader]) -> NDArray[np.bool_]:
    """Return which clips of a split, by row, have the audio of no clip of the captioned splits."""
    known = pa.concat_arrays(
        [pa.array([], pa.string())]
        + [batch["sha256"] for shards in captioned for batch in usable_batches(manifest_of(shards), ["sha256"])]
    )
    masks = [pc.is_in(batch["sha256"], known) for batch in usable_batches(manifest_of(pool), ["sha256"])]
    return ~np.concatenate([np.empty(0, bool), *(mask.to_numpy(zero_copy_only=False) for mask in masks)])


def facts_of(pool: ShardReader, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return key, source name and source id of some rows, from the manifest."""
    names, first = ["key", "source_name", "source_id"], 0
    facts: dict[int, dict[str, Any]] = {}
    for batch in usable_batches(manifest_of(pool), names):
        here = [row for row in rows if first <= row < first + batch.num_rows]
        found = batch.select(names).take(pa.array([row - first for row in here], pa.int64()))
        facts |= zip(here, found.to_pylist(), strict=True)
        first += batch.num_rows
    return facts


def manifest_of(shards: ShardReader) -> Path:
    """Return the path of the manifest of a split."""
    return shards.folder / "manifest.parquet"
