"""Figures of moment retrieval: R1 at an IoU of 0.5 and 0.7, and mAP, as of task 6 of the DCASE 2026 challenge.

A query is a caption of a recording with one or more true moments. A system answers with moments of this recording, best
first. IoU is the length of the intersection of two moments over that of their union.

    R1@u    share of queries whose first moment has an IoU of at least u with a true one
    mAP@u   mean over the queries of the average precision of the first ten moments. One after another, a moment takes
            the true one that it overlaps most of those that no better one has taken, and is right if their IoU is at
            least u. The precision at each recall is the highest at this or a higher recall (Pascal VOC 2011).
    mAP     mean of mAP@u over u = 0.5, 0.55, ..., 0.95

So does the evaluation of the challenge's baseline, which comes from Moment-DETR (QVHighlights).

Moments with equal scores have no order. A figure is its expectation over all orders of them, or over `DRAWS` orders if
there are more.
"""

# P = moments of an answer, G = true moments of a query, U = thresholds of the IoU, F = figures

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.moments import Moment

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Of mAP."""
FIRST_MOMENTS = 10
"""Moments of an answer that count for mAP."""
DRAWS = 500
"""Orders of tied moments that are drawn where there are more."""
_DIGITS = 9
"""An IoU is rounded, so that 0.7 computed from times is at least 0.7."""


def moment_figures(moments: Sequence[Moment], true_G2: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return R1@0.5, R1@0.7, mAP@0.5, mAP@0.75 and mAP of one query (5,), between 0 and 1.

    Args:
        moments: the answer, in any order; none scores 0.
        true_G2: start and end of each true moment, at least one, in seconds.
    """
    if not moments:
        return np.zeros(5)
    least = sorted((moment.score for moment in moments), reverse=True)[:FIRST_MOMENTS][-1]
    moments = [moment for moment in moments if moment.score >= least]  # the others are in no order among the first
    scores_P = np.array([moment.score for moment in moments])
    iou_PG = overlaps(np.array([(moment.start_s, moment.end_s) for moment in moments]), true_G2)
    orders = list(tied_orders(scores_P))
    best_P = iou_PG.max(axis=1)
    first = np.array([best_P[order[0]] for order in orders])
    precision_U = np.mean([average_precisions(iou_PG[order[:FIRST_MOMENTS]]) for order in orders], axis=0)
    at = dict(zip(THRESHOLDS, precision_U, strict=True))
    return np.array([(first >= 0.5).mean(), (first >= 0.7).mean(), at[0.5], at[0.75], precision_U.mean()])


def overlaps(moments_P2: NDArray[np.floating], true_G2: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the IoU of every moment with every true one (P, G)."""
    start_PG = np.maximum(moments_P2[:, None, 0], true_G2[None, :, 0])
    end_PG = np.minimum(moments_P2[:, None, 1], true_G2[None, :, 1])
    shared_PG = np.maximum(0.0, end_PG - start_PG)
    lengths_PG = np.diff(moments_P2)[:, 0][:, None] + np.diff(true_G2)[:, 0][None, :]
    return np.round(shared_PG / (lengths_PG - shared_PG), _DIGITS)


def average_precisions(iou_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the average precision of an answer, best moment first, at each of `THRESHOLDS` (U,)."""
    return np.array([_average_precision(iou_PG, threshold) for threshold in THRESHOLDS])


def _average_precision(iou_PG: NDArray[np.float64], threshold: float) -> float:
    left_PG = iou_PG.copy()
    is_right_P = np.zeros(len(iou_PG), bool)
    for place in range(len(iou_PG)):
        taken = int(left_PG[place].argmax())
        if left_PG[place, taken] >= threshold:
            is_right_P[place] = True
            left_PG[:, taken] = -1.0
    places = np.flatnonzero(is_right_P)
    precision = np.arange(1, len(places) + 1) / (places + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(highest.sum() / iou_PG.shape[1])


def tied_orders(scores_P: NDArray[np.floating]) -> Iterator[list[int]]:
    """Yield the orders by falling score: all of them, or `DRAWS` of them if there are more."""
    groups = [np.flatnonzero(scores_P == score).tolist() for score in np.unique(scores_P)[::-1]]
    if math.prod(math.factorial(len(group)) for group in groups) <= DRAWS:
        for order in itertools.product(*map(itertools.permutations, groups)):
            yield [place for group in order for place in group]
        return
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        yield [place for group in groups for place in generator.permutation(group).tolist()]
