"""Check and normalise embeddings, and find those nearest to a query."""

# N = vectors, D = joint width

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError


def check_vectors(vectors_ND: NDArray[np.floating], name_of: Callable[[int], str]) -> None:
    """Raise PipelineError if an embedding is not finite or zero; the message names the first by `name_of(row)`."""
    finite_N = np.isfinite(vectors_ND).all(axis=1)
    if not finite_N.all():
        raise PipelineError(
            f"the embedding of {name_of(int(np.argmin(finite_N)))} is not finite "
            f"({np.sum(~finite_N)} of {len(vectors_ND)}); did the training diverge?"
        )
    zero_N = ~vectors_ND.any(axis=1)
    if zero_N.any():
        raise PipelineError(
            f"the embedding of {name_of(int(np.argmax(zero_N)))} is zero ({np.sum(zero_N)} of {len(vectors_ND)}) "
            "and has no direction to compare"
        )


def unit_rows(vectors_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the vectors at length 1; they must have passed `check_vectors`."""
    return (vectors_ND / np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)


def nearest(
    unit_ND: NDArray[np.float32], query_D: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows nearest to a query by the cosine, best first, ties in the order of the rows, and their cosines.

    The search is exact: one product and one partition. Its time is that of reading the vectors once, measured by
    `bench/search.py`.
    """
    return highest(unit_ND @ query_D, count)


def highest(scores_N: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows of the highest scores, best first, ties in the order of the rows, and these scores."""
    count = min(count, len(scores_N))
    least = np.partition(scores_N, -count)[-count]
    rows = np.flatnonzero(scores_N >= least)  # more than `count` if the last place is tied
    order = np.lexsort((rows, -scores_N[rows]))[:count]
    return rows[order], scores_N[rows[order]]
