"""Clips as dots in two dimensions, so that near dots are clips with near embeddings."""

# N = clips, D = joint width

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERPLEXITY = 30
"""Of t-SNE: about the number of neighbours that a dot keeps near it; the usual value."""
NEIGHBOURS = 10
"""Of `neighbours_kept`."""


def map_of(unit_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a place in the unit square for each clip, (N, 2), by t-SNE from its principal components.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008. One thread and a fixed seed: the same
    vectors give the same places on the same kind of processor.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(unit_ND) < 4:  # too few for principal components that mean something
        return np.stack([np.linspace(0, 1, len(unit_ND)), np.full(len(unit_ND), 0.5)], axis=1).astype(np.float32)
    perplexity = min(PERPLEXITY, (len(unit_ND) - 1) / 3)
    spread_D = np.abs(unit_ND - unit_ND[0]).max()
    start = "pca" if spread_D > 0 else "random"  # clips that are all the same have no components
    with threadpool_limits(1):
        places_N2 = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(unit_ND)
    low, high = places_N2.min(axis=0), places_N2.max(axis=0)
    return ((places_N2 - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def neighbours_kept(unit_ND: NDArray[np.float32], places_N2: NDArray[np.float32]) -> float:
    """Return the share of each clip's nearest clips (at most 10) that are also its nearest dots, as a mean."""
    count = min(NEIGHBOURS, len(unit_ND) - 1)
    if count < 1:
        return 1.0
    near = [_nearest(vectors, count) for vectors in (unit_ND.astype(np.float64), places_N2.astype(np.float64))]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(*near, strict=True)]))


def _nearest(vectors_ND: NDArray[np.float64], count: int) -> list[list[int]]:
    squares_N = (vectors_ND**2).sum(axis=1)
    distances_NN = squares_N[:, None] + squares_N - 2 * vectors_ND @ vectors_ND.T
    np.fill_diagonal(distances_NN, np.inf)
    return np.argsort(distances_NN, axis=1, kind="stable")[:, :count].tolist()
