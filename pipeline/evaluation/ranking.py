"""The rank of every text's clip and of every clip's texts among all candidates, counted tile by tile.

Ranks from embeddings never hold all M x N scores in memory, and are exact nevertheless; see `rank_embeddings`.
"""

# M = texts, N = clips, D = joint width, C = captions of the clip that has most, Q = queries, G = gallery,
# K = first places, m, n = texts and clips of a tile

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.evaluation.tallies import Tally

DEPTH = 10
"""Places that count for mAP@10, and candidates listed for each query."""
SCORES_PER_TILE = 1 << 22
_ROUNDING = 2.0**-24
"""Largest relative error of a float32 product or sum."""
_ROWS_AT_ONCE = 128
"""Rows converted to float64 together: 1 MB of width 1024, which stays in a core's cache."""
_GATHER_COST = 64
"""A product of two gathered rows costs about as much as this many in a matrix product. So a tile in which more than
1 / 64 of the scores are undecided is computed again as a whole."""
_GROUP = 64
"""Scores per maximum in `_reached`: the tenth highest maximum is a quick lower bound of the tenth highest score."""


Exact = Callable[[NDArray[np.integer], NDArray[np.integer]], NDArray[np.floating]]
"""Returns the exact scores of pairs of a query and a candidate."""


@dataclass(frozen=True, kw_only=True)
class TiedRanks:
    """Ranks of relevant candidates: each of ahead + 1 .. ahead + tied is equally likely."""

    ahead: NDArray[np.int64]
    """Candidates that score strictly higher."""
    tied: NDArray[np.int64]
    """Candidates that score the same, itself included."""
    relevant_ahead: NDArray[np.int64]
    """Relevant ones among `ahead`."""
    relevant_tied: NDArray[np.int64]
    """Relevant ones among `tied`, itself included."""

    def __getitem__(self, index: Any) -> TiedRanks:
        return TiedRanks(
            ahead=self.ahead[index],
            tied=self.tied[index],
            relevant_ahead=self.relevant_ahead[index],
            relevant_tied=self.relevant_tied[index],
        )

    def rank(self) -> NDArray[np.float64]:
        """Return the expected rank, 1-based."""
        return self.ahead + (self.tied + 1) / 2

    def best_rank(self) -> NDArray[np.float64]:
        """Return the expected best rank of the relevant candidates that tie with this one."""
        return self.ahead + (self.tied + 1) / (self.relevant_tied + 1)

    def within(self, k: int) -> NDArray[np.float64]:
        """Return the probability that this candidate is among the first k."""
        return np.clip(k - self.ahead, 0, self.tied) / self.tied

    def any_within(self, k: int) -> NDArray[np.float64]:
        """Return the probability that any relevant candidate that ties with this one is among the first k."""
        drawn = np.clip(k - self.ahead, 0, self.tied)
        none = np.ones(self.ahead.shape)
        for taken in range(min(k, int(drawn.max(initial=0)))):
            left = self.tied - taken
            none *= np.where(taken < drawn, (left - self.relevant_tied) / np.maximum(left, 1), 1.0)
        return 1.0 - none

    def precision(self, depth: int = DEPTH) -> NDArray[np.float64]:
        """Return the expected i / rank within `depth`, 0 beyond it; this is the i-th relevant candidate."""
        first = np.minimum(self.ahead, depth)
        last = np.minimum(self.ahead + self.tied, depth)
        slope = (self.relevant_tied - 1) / np.maximum(self.tied - 1, 1)
        base = 1 + self.relevant_ahead - (1 + self.ahead) * slope
        return (base * (_HARMONIC[last] - _HARMONIC[first]) + slope * (last - first)) / self.tied


MOST_DEPTH = 16
"""The greatest depth of `TiedRanks.precision`."""
_HARMONIC = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, MOST_DEPTH + 1))])


@dataclass(frozen=True, kw_only=True)
class Top:
    """The first `DEPTH` candidates of each query, best first, ties in the order of the gallery (Q, up to `DEPTH`)."""

    place: NDArray[np.int64]
    score: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The ranks of every relevant candidate, in both directions, for all protocols."""

    audio_of_text_M: NDArray[np.int64]
    text_of_audio_NC: NDArray[np.int64]
    """The texts of each clip in order; a clip with fewer than C repeats its texts."""
    captions_N: NDArray[np.int64]
    """Number of captions of each clip."""
    t2a_M: TiedRanks
    """Rank of each text's clip among all clips."""
    a2t_M: TiedRanks
    """Rank of each text among all texts, with its clip as query."""
    a2t_CN: TiedRanks
    """Rank of caption c of each clip among the captions c of all clips, with the clip as query."""
    t2a_top: Top
    """First clips for each text."""
    a2t_top: Top
    """First texts for each clip."""

    def best_a2t_N(self) -> TiedRanks:
        """Return the rank of each clip's highest-scored caption among all texts."""
        ahead_NC = self.a2t_M.ahead[self.text_of_audio_NC]
        best_N = np.take_along_axis(self.text_of_audio_NC, ahead_NC.argmin(axis=1)[:, None], axis=1)[:, 0]
        return self.a2t_M[best_N]


def rank_matrix(similarity: NDArray[np.floating], audio_of_text: NDArray[np.integer]) -> Retrieval:
    """Return the rank of every relevant candidate by a similarity matrix (M, N).

    Args:
        similarity: (M, N), higher is closer; compared in float32 if that holds its type, else in float64.
        audio_of_text: (M,), the clip that each text describes; the first text of a clip is its caption 1.

    Raises:
        PipelineError: no texts or clips, a score that is not finite, a text of an unknown clip, or a clip without a
            text.
    """
    if similarity.ndim != 2:
        raise PipelineError(f"similarities have the shape {similarity.shape}; expected texts x clips")
    n_text, n_audio = similarity.shape
    audio_of_text_M = _checked(n_text, n_audio, audio_of_text)
    return _rank(n_audio, audio_of_text_M, _MatrixScores(similarity, audio_of_text_M), SCORES_PER_TILE)


class _MatrixScores:
    """The scores of a similarity matrix (M, N), with the interface of `_CosineScores`."""

    margin = 0.0

    def __init__(self, similarity: NDArray[np.floating], audio_of_text_M: NDArray[np.int64]) -> None:
        self.similarity = similarity
        self.dtype: type[np.floating] = np.float32 if np.can_cast(similarity.dtype, np.float32) else np.float64
        self.own_M = self.exact(np.arange(len(audio_of_text_M)), audio_of_text_M)

    def exact(self, texts: NDArray[np.integer], clips: NDArray[np.integer]) -> NDArray[np.floating]:
        return self.similarity[texts, clips].astype(self.dtype)

    def tile(self, rows: slice, columns: slice) -> NDArray[np.floating]:
        scores_mn = np.ascontiguousarray(self.similarity[rows, columns], self.dtype)
        if not np.isfinite(scores_mn).all():
            row, column = np.argwhere(~np.isfinite(scores_mn))[0]
            raise PipelineError(
                f"the similarity of text {rows.start + row} and clip {columns.start + column} is "
                f"{scores_mn[row, column]}; every score must be a finite number"
            )
        return scores_mn

    exact_tile = tile


def rank_embeddings(
    text: NDArray[np.floating],
    audio: NDArray[np.floating],
    audio_of_text: NDArray[np.integer],
    scores_per_tile: int = SCORES_PER_TILE,
) -> Retrieval:
    """Return the rank of every relevant candidate by the cosine of embeddings (M, D) and (N, D), in bounded memory.

    Tiles of about `scores_per_tile` scores are computed, counted in both directions and dropped. Memory holds a float32
    copy of `audio` and one tile's rows of `text`, which may be memory-mapped.

    The score is the cosine in float64, rounded to float32. A float32 product alone is not enough: BLAS sums in another
    order at the edge of a tile, so equal embeddings would get different scores. But a float32 product takes half the
    time, and a sum of D products is off by at most D + 2 roundings (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1; two more for the inputs). So only the scores that lie within this margin of a score they
    are compared with are computed again in float64. A tile full of them, as of a collapsed model, is computed again as
    a whole.
    """
    if text.ndim != 2 or audio.ndim != 2 or text.shape[1] != audio.shape[1]:
        raise PipelineError(f"embeddings of texts {text.shape} and clips {audio.shape} have different widths")
    audio_of_text_M = _checked(len(text), len(audio), audio_of_text)
    return _rank(len(audio), audio_of_text_M, _CosineScores(text, audio, audio_of_text_M), scores_per_tile)


def rank_relevant(
    text: NDArray[np.floating],
    audio: NDArray[np.floating],
    texts: NDArray[np.integer],
    is_relevant_QN: NDArray[np.bool_],
) -> TiedRanks:
    """Return the ranks of the relevant clips of some texts among all clips, query by query.

    The score is that of `rank_embeddings`: the cosine in float64, rounded to float32.

    Args:
        text: (M, D)
        audio: (N, D)
        texts: (Q,), the texts that ask.
        is_relevant_QN: the clips that are relevant for them.
    """
    text_lengths, audio_lengths = _lengths(text), _lengths(audio)
    unit_audio_ND = _unit(audio, audio_lengths, slice(0, len(audio)))
    counts = []
    for rows in _slices(len(texts), _ROWS_AT_ONCE):
        unit_text_qD = text[texts[rows]].astype(np.float64) / text_lengths[texts[rows], None]
        scores_qN = (unit_text_qD @ unit_audio_ND.T).astype(np.float32)
        for scores_N, is_relevant_N in zip(scores_qN, is_relevant_QN[rows], strict=True):
            relevant = scores_N[is_relevant_N]
            counts.append(np.stack([*_counts(relevant, scores_N), *_counts(relevant, relevant)]))
    ahead, tied, relevant_ahead, relevant_tied = np.concatenate(counts, axis=1)
    return TiedRanks(ahead=ahead, tied=tied, relevant_ahead=relevant_ahead, relevant_tied=relevant_tied)


def _counts(scores: NDArray[np.floating], others: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, per score, how many of the others are higher, and how many the same."""
    ordered = np.sort(others)
    not_above = np.searchsorted(ordered, scores, side="right")
    return len(ordered) - not_above, not_above - np.searchsorted(ordered, scores, side="left")


class _CosineScores:
    """The cosines of embeddings (M, D) and (N, D).

    `tile` gives rough scores of some texts (rows) and clips (columns), off by up to `margin`; `exact_tile` gives exact
    ones, and `exact` those of pairs. `own_M` are the exact scores of the texts with their clips.
    """

    def __init__(
        self, text: NDArray[np.floating], audio: NDArray[np.floating], audio_of_text_M: NDArray[np.int64]
    ) -> None:
        self.text, self.audio, self.audio_of_text_M = text, audio, audio_of_text_M
        self.margin = (text.shape[1] + 4) * _ROUNDING
        self.length_M, self.length_N = _lengths(text), _lengths(audio)
        self.unit_audio_ND = np.empty(audio.shape, np.float32)
        for rows in _slices(len(audio), _ROWS_AT_ONCE):
            self.unit_audio_ND[rows] = _unit(audio, self.length_N, rows)
        self.own_M = self.exact(np.arange(len(text)), audio_of_text_M)
        self.rows = slice(0, 0)

    def exact(self, texts: NDArray[np.integer], clips: NDArray[np.integer]) -> NDArray[np.floating]:
        scores = np.empty(len(texts), np.float32)
        for part in _slices(len(texts), _ROWS_AT_ONCE):
            left, right = self.text[texts[part]].astype(np.float64), self.audio[clips[part]].astype(np.float64)
            lengths = self.length_M[texts[part]] * self.length_N[clips[part]]
            scores[part] = np.einsum("md,md->m", left, right) / lengths
        return scores

    def tile(self, rows: slice, columns: slice) -> NDArray[np.floating]:
        if rows != self.rows:  # the same texts meet one tile of clips after another
            self.rows = rows
            self.unit_text_mD = _unit(self.text, self.length_M, rows)
            self.rough_text_mD = self.unit_text_mD.astype(np.float32)
        return self.rough_text_mD @ self.unit_audio_ND[columns].T

    def exact_tile(self, rows: slice, columns: slice) -> NDArray[np.floating]:
        scores_mn = (self.unit_text_mD @ _unit(self.audio, self.length_N, columns).T).astype(np.float32)
        owner_m = self.audio_of_text_M[rows]
        inside = np.flatnonzero((owner_m >= columns.start) & (owner_m < columns.stop))
        scores_mn[inside, owner_m[inside] - columns.start] = self.own_M[rows][inside]  # equal to the last bit
        return scores_mn


def _rank(
    n_audio: int, audio_of_text_M: NDArray[np.int64], scores: _MatrixScores | _CosineScores, scores_per_tile: int
) -> Retrieval:
    """Count, tile by tile, the scores above and equal to each text's own clip's, in both directions."""
    from pipeline.evaluation.tallies import decide  # here, because few that import this module rank: numba takes 0.2 s

    n_text = len(audio_of_text_M)
    captions_N = np.bincount(audio_of_text_M, minlength=n_audio)
    text_of_audio_NC = _texts_by_clip(audio_of_text_M, captions_N)
    n_choices = text_of_audio_NC.shape[1]
    own_M = scores.own_M
    own_CN = own_M[text_of_audio_NC.T]
    is_choice_MC = np.zeros((n_text, n_choices), bool)
    is_choice_MC[text_of_audio_NC, np.arange(n_choices)] = True  # a repeated text is several choices

    # Per text among the clips; per caption of each clip among all texts, and among the captions c of all clips.
    ahead_M, tied_M = np.zeros((2, n_text), np.int64)
    ahead_CN, tied_CN, ahead_of_choice_CN, tied_of_choice_CN = np.zeros((4, *own_CN.shape), np.int64)
    t2a_top, a2t_top = _empty_top(n_text, n_audio, own_M.dtype), _empty_top(n_audio, n_text, own_M.dtype)
    width = min(n_audio, max(1, math.isqrt(scores_per_tile)))
    for rows in _slices(n_text, max(1, scores_per_tile // width)):
        for columns in _slices(n_audio, width):
            owns = own_M[rows], np.ascontiguousarray(own_CN[:, columns]), is_choice_MC[rows]
            # Count the tile, and decide its undecided scores.
            scores_mn, margin, counts = _tallied(scores, rows, columns, owns, t2a_top, a2t_top)
            if len(counts.near):
                texts, clips = np.divmod(counts.near, scores_mn.shape[1])
                decided = scores.exact(rows.start + texts, columns.start + clips)
                is_own = audio_of_text_M[rows][texts] == columns.start + clips
                decided[is_own] = own_M[rows][texts[is_own]]  # equal to the last bit
                decide(counts, decided, scores_mn, *owns, scores_mn.dtype.type(margin))
            # Add the counts.
            ahead_M[rows] += counts.ahead_m
            tied_M[rows] += counts.tied_m
            ahead_CN[:, columns] += counts.ahead_Cn
            tied_CN[:, columns] += counts.tied_Cn
            ahead_of_choice_CN[:, columns] += counts.ahead_of_choice_Cn
            tied_of_choice_CN[:, columns] += counts.tied_of_choice_Cn
            # Update the first places.
            texts, clips = np.divmod(counts.for_text, scores_mn.shape[1])
            candidates = scores_mn[texts, clips]
            _take_better(t2a_top, rows, texts, columns.start + clips, candidates, margin, scores.exact)
            texts, clips = np.divmod(counts.for_clip, scores_mn.shape[1])
            candidates = scores_mn[texts, clips]
            _take_better(a2t_top, columns, clips, rows.start + texts, candidates, margin, _turned(scores.exact))

    def by_text(counts_CN: NDArray[np.int64]) -> NDArray[np.int64]:
        counts_M = np.empty(n_text, np.int64)
        counts_M[text_of_audio_NC.T] = counts_CN  # a repeated text has the same count in every choice
        return counts_M

    relevant_ahead_CN, relevant_tied_CN = _relevant_counts(own_CN, captions_N)
    ranks_CN = {"ahead": ahead_CN, "tied": tied_CN}
    ranks_CN |= {"relevant_ahead": relevant_ahead_CN, "relevant_tied": relevant_tied_CN}
    return Retrieval(
        audio_of_text_M=audio_of_text_M,
        text_of_audio_NC=text_of_audio_NC,
        captions_N=captions_N,
        t2a_M=_single(ahead_M, tied_M),
        a2t_M=TiedRanks(**{name: by_text(counts_CN) for name, counts_CN in ranks_CN.items()}),
        a2t_CN=_single(ahead_of_choice_CN, tied_of_choice_CN),
        t2a_top=Top(place=t2a_top.place, score=t2a_top.score.astype(np.float32)),
        a2t_top=Top(place=a2t_top.place, score=a2t_top.score.astype(np.float32)),
    )


def _tallied(
    scores: _MatrixScores | _CosineScores,
    rows: slice,
    columns: slice,
    owns: tuple[NDArray, NDArray, NDArray],
    t2a_top: Top,
    a2t_top: Top,
) -> tuple[NDArray[np.floating], float, Tally]:
    """Return the scores of a tile, their margin and their counts; they are exact if too many rough ones are undecided.

    owns: `own_m`, `own_Cn` and `is_choice_mC` of `tally`.
    """
    from pipeline.evaluation.tallies import tally

    for is_exact in (False, True):
        if is_exact:
            scores_mn, margin = scores.exact_tile(rows, columns), 0.0
            _make_exact(t2a_top, rows, scores.exact)  # exact scores must not be compared with rough ones
            _make_exact(a2t_top, columns, _turned(scores.exact))
        else:
            scores_mn, margin = scores.tile(rows, columns), scores.margin
        floors = _floor(t2a_top, rows, scores_mn, 1, margin), _floor(a2t_top, columns, scores_mn, 0, margin)
        counts = tally(scores_mn, *owns, *floors, scores_mn.dtype.type(margin))
        if len(counts.near) <= scores_mn.size // _GATHER_COST:
            break
    return scores_mn, margin, counts


def _relevant_counts(
    own_CN: NDArray[np.floating], captions_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, per caption of each clip, how many of its captions score higher, and how many the same (C, N)."""
    ahead_CN, tied_CN = np.zeros(own_CN.shape, np.int64), np.zeros(own_CN.shape, np.int64)
    for other in range(len(own_CN)):
        is_caption_N = other < captions_N  # not a repeated one
        ahead_CN += (own_CN[other] > own_CN) & is_caption_N
        tied_CN += (own_CN[other] == own_CN) & is_caption_N
    return ahead_CN, tied_CN


def _checked(n_text: int, n_audio: int, audio_of_text: NDArray[np.integer]) -> NDArray[np.int64]:
    if n_text == 0 or n_audio == 0:
        raise PipelineError(f"nothing to retrieve: {n_text} texts and {n_audio} clips")
    audio_of_text = np.asarray(audio_of_text)
    if audio_of_text.shape != (n_text,) or not np.issubdtype(audio_of_text.dtype, np.integer):
        raise PipelineError(
            f"expected {n_text} indices of clips for {n_text} texts, "
            f"found {audio_of_text.dtype} of shape {audio_of_text.shape}"
        )
    unknown = np.flatnonzero((audio_of_text < 0) | (audio_of_text >= n_audio))
    if unknown.size:
        raise PipelineError(
            f"text {unknown[0]} belongs to clip {audio_of_text[unknown[0]]}, but the clips are 0 to {n_audio - 1} "
            f"({unknown.size} such texts)"
        )
    without = np.flatnonzero(np.bincount(audio_of_text, minlength=n_audio) == 0)
    if without.size:
        raise PipelineError(f"clip {without[0]} has no text ({without.size} of {n_audio} clips); leave such clips out")
    return audio_of_text.astype(np.int64)


def _texts_by_clip(audio_of_text_M: NDArray[np.int64], captions_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the texts of each clip in order, repeated if a clip has fewer than C (N, C)."""
    texts_M = np.argsort(audio_of_text_M, kind="stable")
    first_N = np.cumsum(captions_N) - captions_N
    return texts_M[first_N[:, None] + np.arange(captions_N.max()) % captions_N[:, None]]


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _single(ahead: NDArray[np.int64], tied: NDArray[np.int64]) -> TiedRanks:
    """Return the ranks of candidates that are the only relevant ones of their queries."""
    return TiedRanks(ahead=ahead, tied=tied, relevant_ahead=np.zeros_like(ahead), relevant_tied=np.ones_like(tied))


def _empty_top(n_queries: int, n_gallery: int, dtype: np.dtype) -> Top:
    """Return empty places for the first candidates of each query."""
    shape = n_queries, min(DEPTH, n_gallery)
    return Top(place=np.full(shape, n_gallery), score=np.full(shape, -np.inf, dtype))


def _floor(top: Top, queries: slice, scores_mn: NDArray[np.floating], axis: int, margin: float) -> NDArray[np.floating]:
    """Return the scores that a candidate in a tile must exceed to take one of its query's first places.

    Candidates come in the order of the gallery, so a candidate that ties with the last place comes after it.
    """
    last_Q = top.score[queries, -1].copy()
    is_open_Q = np.isneginf(last_Q)
    if is_open_Q.any():
        last_Q[is_open_Q] = np.nextafter(_reached(scores_mn, axis), -np.inf)[is_open_Q]
    # The last of the first places and a candidate behind it may be off in opposite directions.
    return last_Q - scores_mn.dtype.type(2 * margin)


def _reached(scores_mn: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """Return a score that `DEPTH` scores of each row (axis 1) or column (axis 0) reach, or all if there are fewer."""
    size = scores_mn.shape[axis]
    few, parts = min(DEPTH, size), size // _GROUP
    if parts and axis:
        scores_mn = scores_mn[:, : parts * _GROUP].reshape(len(scores_mn), parts, _GROUP).max(axis=1)
    elif parts:
        scores_mn = scores_mn[: parts * _GROUP].reshape(parts, _GROUP, -1).max(axis=0)
    return np.partition(scores_mn, -few, axis=axis).take(-few, axis=axis)


def _turned(exact: Exact) -> Exact:
    """Return `exact` with clips as queries and texts as candidates."""
    return lambda clips, texts: exact(texts, clips)


def _make_exact(top: Top, queries: slice, exact: Exact) -> None:
    """Give the queries' first places their exact scores; `_take_better` puts them in order."""
    place_QK, score_QK = top.place[queries], top.score[queries]  # views
    query, taken = np.nonzero(np.isfinite(score_QK))
    score_QK[query, taken] = exact(queries.start + query, place_QK[query, taken])


def _take_better(
    top: Top,
    queries: slice,
    asks: NDArray[np.integer],
    places: NDArray[np.integer],
    scores: NDArray[np.floating],
    margin: float,
    exact: Exact,
) -> None:
    """Update the queries' first places with candidates of a tile.

    Args:
        asks: the query of each candidate, counted from `queries.start`.
        places: the index of each candidate in the gallery.
        scores: of the candidates, off by up to `margin`, as are those of the current first places.
        exact: the exact scores of pairs of a query and a candidate.
    """
    place_QK, score_QK = top.place[queries], top.score[queries]  # views
    depth = place_QK.shape[1]
    changed = np.unique(asks)
    query = np.concatenate([np.repeat(changed, depth), asks])
    place = np.concatenate([place_QK[changed].ravel(), places])
    score = np.concatenate([score_QK[changed].ravel(), scores])
    order = np.lexsort((place, -score, query))
    if margin:  # neighbours that may be in the wrong order
        is_near = np.zeros(len(order) + 1, bool)  # near to its predecessor
        with np.errstate(invalid="ignore"):  # between two places that are still empty
            is_near[1:-1] = (np.diff(query[order]) == 0) & (-np.diff(score[order]) <= 2 * margin)
        near = order[is_near[1:] | is_near[:-1]]
        score[near] = exact(queries.start + query[near], place[near])
        order = np.lexsort((place, -score, query))
    best = order[np.searchsorted(query[order], changed)[:, None] + np.arange(depth)]
    place_QK[changed], score_QK[changed] = place[best], score[best]


def _lengths(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the length of each row; PipelineError if one is zero or not finite."""
    lengths = np.empty(len(embeddings))
    for rows in _slices(len(embeddings), _ROWS_AT_ONCE):
        lengths[rows] = np.linalg.norm(embeddings[rows].astype(np.float64), axis=1)
    for row in np.flatnonzero(~((lengths > 0) & (lengths < np.inf)))[:1]:
        raise PipelineError(f"embedding {row} has the length {lengths[row]} and no direction to compare")
    return lengths


def _unit(embeddings: NDArray[np.floating], lengths: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
    """Return some rows at length 1, in float64."""
    unit = embeddings[rows].astype(np.float64)
    unit /= lengths[rows, None]
    return unit
