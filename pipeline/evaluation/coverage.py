"""How near the clips of one collection are to those of another: exact cosines, in blocks of bounded memory."""

# B = clips of a block, N = clips of a pool of any size, M = clips to compare with, D = joint width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_SCORES = 1 << 24
"""Cosines in memory at once: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest other clip of each of some clips: its row and its cosine."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Nearest]) -> Nearest:
        """Return the nearest clips of consecutive blocks as one."""
        return cls(
            rows=np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)]),
            cosines=np.concatenate([np.empty(0, np.float32), *(part.cosines for part in parts)]),
        )


def block_rows(others: int) -> int:
    """Return how many clips may be compared at once with so many others."""
    return max(1, MOST_SCORES // max(1, others))


def scores_of(unit_BD: NDArray[np.float32], others_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines (B, M) of unit vectors, at most 1."""
    return np.minimum(unit_BD @ others_MD.T, 1, dtype=np.float32)


def nearest_of(scores_BM: NDArray[np.float32]) -> Nearest:
    """Return the nearest of the M others for each clip; the first of equally near ones."""
    rows = scores_BM.argmax(axis=1)
    return Nearest(rows=rows, cosines=np.take_along_axis(scores_BM, rows[:, None], axis=1)[:, 0])


def nearest_among(unit_ND: NDArray[np.float32], others_MD: NDArray[np.float32]) -> Nearest:
    """Return the nearest of the M others for each of N clips."""
    step = block_rows(len(others_MD))
    return Nearest.joined(
        [nearest_of(scores_of(unit_ND[first : first + step], others_MD)) for first in range(0, len(unit_ND), step)]
    )


@dataclass(frozen=True, kw_only=True)
class NearestSoFar:
    """The nearest clip of a pool to each of M clips, while the pool is read in blocks."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]

    @classmethod
    def of_none(cls, count: int) -> NearestSoFar:
        """Return the state before the first block: no row (-1), and a cosine below all others."""
        return cls(rows=np.full(count, -1), cosines=np.full(count, -np.inf, np.float32))

    def add(self, scores_BM: NDArray[np.float32], rows_B: NDArray[np.int64]) -> None:
        """Take a block's cosines into account; `rows_B` are the rows of its clips in the pool."""
        if len(rows_B) == 0:
            return
        best = scores_BM.argmax(axis=0)
        cosines = np.take_along_axis(scores_BM, best[None], axis=0)[0]
        nearer = cosines > self.cosines
        self.rows[nearer], self.cosines[nearer] = rows_B[best[nearer]], cosines[nearer]
