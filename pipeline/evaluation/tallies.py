"""Count the scores of a tile above and near each text's own clip's score, in one pass compiled by numba.

numpy would need one pass and one array per comparison: two for the rows, and for the columns four per caption.
"""

# m, n = texts and clips of a tile, C = captions of the clip that has most

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

_BLOCK = 128
"""Scores that are checked together; with a trained model, most blocks hold no score that counts and are skipped."""


class Tally(NamedTuple):
    """Counts of a tile (int32) and places in it (row * n + column, ascending)."""

    ahead_m: NDArray[np.int32]
    """Scores of a row that exceed the own clip's score by more than the margin."""
    tied_m: NDArray[np.int32]
    """Scores of a row that differ from it by no more than the margin."""
    ahead_Cn: NDArray[np.int32]
    """Scores of a column above that of caption c of the clip."""
    tied_Cn: NDArray[np.int32]
    """Scores of a column that differ from it by no more than the margin."""
    ahead_of_choice_Cn: NDArray[np.int32]
    """As `ahead_Cn`, but only of texts that are caption c of a clip."""
    tied_of_choice_Cn: NDArray[np.int32]
    """As `tied_Cn`, but only of texts that are caption c of a clip."""
    near: NDArray[np.int32]
    """Places of the scores that are counted in any `tied`; empty with a margin of 0, where none is undecided."""
    for_text: NDArray[np.int32]
    """Places of the scores above their row's `floor_m`."""
    for_clip: NDArray[np.int32]
    """Places of the scores above their column's `floor_n`."""


@numba.njit(cache=True, nogil=True)
def _is_like(score, own, margin):  # type: ignore[no-untyped-def]
    return (score >= own - margin) & (score <= own + margin)


@numba.njit(cache=True, nogil=True)
def tally(  # type: ignore[no-untyped-def]
    scores_mn, own_m, own_Cn, is_choice_mC, floor_m, floor_n, margin
) -> Tally:
    """Return the counts of a tile of scores (m, n).

    Args:
        scores_mn: float32 or float64, contiguous, finite; the other scores have the same type.
        own_m: the score of each text's own clip.
        own_Cn: the score of caption c of each clip with it.
        is_choice_mC: whether a text is caption c of its clip.
        floor_m, floor_n: the score that one must exceed to be listed for its row, and for its column.
        margin: how far scores may be off; those within the margin of an own score are undecided.
    """
    n_texts, n_clips = scores_mn.shape
    n_choices = len(own_Cn)
    ahead_m, tied_m = np.zeros(n_texts, np.int32), np.zeros(n_texts, np.int32)
    ahead_Cn, tied_Cn = np.zeros(own_Cn.shape, np.int32), np.zeros(own_Cn.shape, np.int32)
    ahead_of_choice_Cn, tied_of_choice_Cn = np.zeros(own_Cn.shape, np.int32), np.zeros(own_Cn.shape, np.int32)
    # Room for every score; pages that are never written take no memory.
    near, for_text, for_clip = (
        np.empty(scores_mn.size, np.int32), np.empty(scores_mn.size, np.int32), np.empty(scores_mn.size, np.int32)
    )  # fmt: skip
    n_near, n_for_text, n_for_clip = 0, 0, 0

    least_n = floor_n.copy()
    for choice in range(n_choices):
        for column in range(n_clips):
            least_n[column] = min(least_n[column], own_Cn[choice, column] - margin)

    flags = np.zeros((3, _BLOCK), np.uint8)
    is_near, is_for_text, is_for_clip = flags[0], flags[1], flags[2]
    near_words, text_words, clip_words = (
        is_near.view(np.uint64), is_for_text.view(np.uint64), is_for_clip.view(np.uint64)
    )  # fmt: skip
    for row in range(n_texts):
        own, floor = own_m[row], floor_m[row]
        least = min(floor, own - margin)
        ahead, tied = 0, 0
        for start in range(0, n_clips, _BLOCK):
            stop = min(start + _BLOCK, n_clips)
            scores, leasts = scores_mn[row, start:stop], least_n[start:stop]
            # Short loops without branches become vector instructions; flags beyond the end of a short block are 0.
            flags[:, stop - start :] = 0
            for i in range(len(scores)):
                is_near[i] = (scores[i] >= least) | (scores[i] >= leasts[i])
            if not near_words.any():
                continue

            floors = floor_n[start:stop]
            for i in range(len(scores)):
                is_like = _is_like(scores[i], own, margin)
                ahead += scores[i] > own + margin
                tied += is_like
                is_near[i] = is_like
                is_for_text[i] = scores[i] > floor
                is_for_clip[i] = scores[i] > floors[i]
            for choice in range(n_choices):
                owns = own_Cn[choice, start:stop]
                aheads, ties = ahead_Cn[choice, start:stop], tied_Cn[choice, start:stop]
                for i in range(len(scores)):
                    is_like = _is_like(scores[i], owns[i], margin)
                    aheads[i] += scores[i] > owns[i] + margin
                    ties[i] += is_like
                    is_near[i] |= is_like
                if is_choice_mC[row, choice]:
                    aheads, ties = ahead_of_choice_Cn[choice, start:stop], tied_of_choice_Cn[choice, start:stop]
                    for i in range(len(scores)):
                        aheads[i] += scores[i] > owns[i] + margin
                        ties[i] += _is_like(scores[i], owns[i], margin)

            first = row * n_clips + start
            if margin > 0:
                n_near = _list(is_near, near_words, first, near, n_near)
            n_for_text = _list(is_for_text, text_words, first, for_text, n_for_text)
            n_for_clip = _list(is_for_clip, clip_words, first, for_clip, n_for_clip)
        ahead_m[row], tied_m[row] = ahead, tied
    return Tally(
        ahead_m, tied_m, ahead_Cn, tied_Cn, ahead_of_choice_Cn, tied_of_choice_Cn,
        near[:n_near], for_text[:n_for_text], for_clip[:n_for_clip],
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _list(flags, words, first, places, count):  # type: ignore[no-untyped-def]
    """Append the places of a block's set flags, testing eight at a time, and return the new count."""
    for word in range(len(words)):
        if words[word]:
            for i in range(8 * word, 8 * word + 8):
                if flags[i]:
                    places[count] = first + i
                    count += 1
    return count


@numba.njit(cache=True, nogil=True)
def decide(counts, exact, scores_mn, own_m, own_Cn, is_choice_mC, margin) -> None:  # type: ignore[no-untyped-def]
    """Correct the counts of the scores in `counts.near` by their exact values, and write these into the tile."""
    for number in range(len(counts.near)):
        row, column = divmod(counts.near[number], scores_mn.shape[1])
        rough, score = scores_mn[row, column], exact[number]
        if _is_like(rough, own_m[row], margin):
            counts.ahead_m[row] += score > own_m[row]
            counts.tied_m[row] += (score == own_m[row]) - 1
        for choice in range(len(own_Cn)):
            own = own_Cn[choice, column]
            if _is_like(rough, own, margin):
                counts.ahead_Cn[choice, column] += score > own
                counts.tied_Cn[choice, column] += (score == own) - 1
                if is_choice_mC[row, choice]:
                    counts.ahead_of_choice_Cn[choice, column] += score > own
                    counts.tied_of_choice_Cn[choice, column] += (score == own) - 1
        scores_mn[row, column] = score
