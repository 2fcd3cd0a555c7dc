"""Which windows stand out: more like the query than windows are like captions that have nothing to do with them.

The cosine of a text and a sound has no zero: some windows are near to every caption, and every caption is nearest to
some window. So the score of a window is compared with its scores for reference captions, about 200 everyday sounds.
Its *lead* is the score of the query less the mean score of the references (t-norm of speaker verification, Auckenthaler
et al., 2000, without the division by their deviation).

How large may a lead be by chance? Each reference caption has a highest lead over all windows of the index. For a sound
that is not in the recordings, the highest lead is one of that kind. The maximum of many values has a Gumbel
distribution, also if neighbours are alike. It is fitted to the references' maxima by their
lower quartile and median: sounds that are in the recordings raise only the upper half. The threshold is exceeded by a
caption of an absent sound with the probability `like_chance`. So at 0.01, one query in a hundred for sounds that are
not there shows anything. That counts the whole index, so no correction for the number of windows is needed.

Deviations over the index (z-norm) were tried, too. At equal false alarms they found about half as many sounds, and the
alarms were ten times as many as asked for, because a sound that is rare in the index is far from its mean for every
query. `bench/chance.py` compares both.
"""

# N = windows, R = reference captions, D = joint width

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_REFERENCES = Path(__file__).with_name("reference_captions.txt")
_BLOCK_ROWS = 1 << 14


def reference_captions() -> list[str]:
    """Return the reference captions."""
    return _REFERENCES.read_text(encoding="utf-8").splitlines()


def standing_out(
    vectors_ND: NDArray[np.float32],
    is_searched_N: NDArray[np.bool_],
    query_D: NDArray[np.float32],
    references_RD: NDArray[np.float32],
    like_chance: float,
) -> NDArray[np.bool_]:
    """Return which windows stand out (N,): their lead is beyond the threshold; see `leads` and `threshold`."""
    lead_N, highest_R = leads(vectors_ND, is_searched_N, query_D, references_RD)
    return lead_N > threshold(highest_R, like_chance)


def leads(
    vectors_ND: NDArray[np.float32],
    is_searched_N: NDArray[np.bool_],
    query_D: NDArray[np.float32],
    references_RD: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lead of each window for the query (N,), and the highest lead for each reference caption (R,).

    A reference caption is compared with the others. All vectors have the length 1, `is_searched_N` says which rows
    count for the references.
    """
    mean_D = references_RD.mean(axis=0)
    others = len(references_RD) / (len(references_RD) - 1)
    columns_DR = ((references_RD - mean_D) * np.float32(others)).T.copy()
    highest_R = np.full(len(references_RD), -np.inf, np.float32)
    for first in range(0, len(vectors_ND), _BLOCK_ROWS):
        block_ND = vectors_ND[first : first + _BLOCK_ROWS]
        lead_NR = (block_ND @ columns_DR)[is_searched_N[first : first + _BLOCK_ROWS]]
        if len(lead_NR):
            np.maximum(highest_R, lead_NR.max(axis=0), out=highest_R)
    return vectors_ND @ (query_D - mean_D), highest_R


def threshold(highest_R: NDArray[np.floating], like_chance: float) -> float:
    """Return the lead that the caption of an absent sound exceeds with the probability `like_chance`.

    highest_R: the highest lead for each reference caption.
    """
    quartile, median = np.quantile(highest_R, (0.25, 0.5))
    scale = (median - quartile) / (_gumbel(0.5) - _gumbel(0.25))
    return float(median + scale * (_gumbel(1 - like_chance) - _gumbel(0.5)))


def _gumbel(probability: float) -> float:
    """The quantile of the Gumbel distribution of location 0 and scale 1."""
    return -math.log(-math.log(probability))
