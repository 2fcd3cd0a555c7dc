"""Moments of a recording: neighbouring windows that score high, merged into one stretch of time.

The score at a time is the mean score of the windows that cover it. This curve resolves time as finely as the windows'
hop: a sound shorter than a window raises all windows that contain it, and only where they overlap is the mean high.

The best window begins the first moment, at its best time. The moment extends to both sides as long as the curve is at
least `SHARE` of its height there. Height is measured from a baseline, the score of windows without the sound. Then the
best window that overlaps no moment begins the next one.
"""

# W = windows of a recording, S = stretches between neighbouring starts and ends of windows

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHARE = 0.6
"""Of a moment's greatest height, where it ends.

Where windows overlap by half, a sound shorter than their hop has neighbours of half its height, because one of the two
windows there contains it. They are outside. A sound as long as a window has at worst two thirds of its height at its
ends. They are inside.
"""
_DIGITS = 6
"""Times are rounded to microseconds, so that a start and an end at one time are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A stretch of a recording."""

    start_s: float
    end_s: float
    score: float
    """Score of its best window."""


def merge_windows(
    start_s_W: ArrayLike,
    end_s_W: ArrayLike,
    score_W: ArrayLike,
    *,
    baseline: float | None = None,
    may_begin_W: NDArray[np.bool_] | None = None,
) -> list[Moment]:
    """Return the moments of one recording, best first; they do not overlap.

    Args:
        start_s_W: start of each window; windows may overlap and leave gaps, which no moment crosses.
        end_s_W: end of each window.
        score_W: finite scores, higher is better.
        baseline: score of windows without the sound; the default is the median of `score_W`.
        may_begin_W: which windows may be the best of a moment; the default is all.
    """
    starts_W, ends_W = (np.round(np.asarray(times, np.float64), _DIGITS) for times in (start_s_W, end_s_W))
    scores_W = np.asarray(score_W, np.float64)
    if len(scores_W) == 0:
        return []
    height = float(np.median(scores_W)) if baseline is None else baseline

    # The curve: the mean score of the windows over each stretch, NaN where there is none.
    edges = np.unique(np.concatenate([starts_W, ends_W]))
    first_W, end_W = np.searchsorted(edges, starts_W), np.searchsorted(edges, ends_W)
    curve_S = _mean_over_stretches(first_W, end_W, scores_W, len(edges))

    taken_S = np.zeros(len(curve_S), bool)
    moments = []
    order = np.argsort(-scores_W, kind="stable")
    for window in order if may_begin_W is None else order[may_begin_W[order]]:
        first, end = first_W[window], end_W[window]
        if taken_S[first:end].any():
            continue
        best = int(first + np.argmax(curve_S[first:end]))
        least = curve_S[best] - (1 - SHARE) * max(0.0, curve_S[best] - height)
        left, right = best, best + 1
        while left > 0 and curve_S[left - 1] >= least and not taken_S[left - 1]:
            left -= 1
        while right < len(curve_S) and curve_S[right] >= least and not taken_S[right]:
            right += 1
        taken_S[left:right] = True
        moments.append(Moment(start_s=float(edges[left]), end_s=float(edges[right]), score=float(scores_W[window])))
    return moments


def _mean_over_stretches(
    first_W: NDArray[np.int64], end_W: NDArray[np.int64], scores_W: NDArray[np.float64], edges: int
) -> NDArray[np.float64]:
    """Return the mean score of the windows over each stretch between two edges; NaN without a window."""

    def summed(values_W: NDArray[np.float64] | None) -> NDArray[np.float64]:
        change = np.bincount(first_W, values_W, edges) - np.bincount(end_W, values_W, edges)
        return np.cumsum(change)[:-1]

    counts_S = summed(None)
    totals_S = summed(scores_W)
    return np.divide(totals_S, counts_S, out=np.full(edges - 1, np.nan), where=counts_S > 0)
