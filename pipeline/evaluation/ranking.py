"""Where every text's clip, and every clip's texts, stand among all candidates, counted tile by tile.

The scores of M texts and N clips are never whole in memory where they come from embeddings, and every rank is exact all
the same; see `rank_embeddings`.
"""

# M = texts, N = clips, D = joint width, C = captions of the clip that has most, Q = queries, G = gallery,
# K = first places, m, n = texts and clips of a tile

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.tallies import Tally, decide, tally

DEPTH = 10
"""Places that count for mAP@10, and candidates listed for each query."""

Tiles = Callable[[slice], Callable[[slice, bool], tuple[NDArray[np.floating], float]]]
"""For a slice of the texts, the scores of a slice of the clips, contiguous, and how far they may be off; exact scores
where the second argument asks for them."""
Exact = Callable[[NDArray[np.integer], NDArray[np.integer]], NDArray[np.float32]]
"""The scores of pairs of a text and a clip."""

SCORES_PER_TILE = 1 << 22
_ROUNDING = 2.0**-24
"""Of a float32 product or sum, at most, relative to it."""
_PAIRS_AT_ONCE = 128
"""Rows that are made float64 at once: a megabyte of width 1024, which stays in a core's cache."""
_MOST_NEAR = 64
"""A product of two gathered rows costs as much as this many of a matrix product, about: beyond a share of 1 / 64 the
whole tile is taken again."""
_MAXIMA = 64
"""The tenth highest of so many maxima bounds the first ten places from below, at a fraction of what a search takes."""


@dataclass(frozen=True, kw_only=True)
class TiedRanks:
    """Where relevant candidates stand in their queries' lists: each of ahead + 1 .. ahead + tied equally likely."""

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
        """The expected place, 1-based."""
        return self.ahead + (self.tied + 1) / 2

    def best_rank(self) -> NDArray[np.float64]:
        """The expected best place of the relevant candidates that tie with this one."""
        return self.ahead + (self.tied + 1) / (self.relevant_tied + 1)

    def within(self, k: int) -> NDArray[np.float64]:
        """The probability that this candidate is among the first k."""
        return np.clip(k - self.ahead, 0, self.tied) / self.tied

    def any_within(self, k: int) -> NDArray[np.float64]:
        """The probability that any of the relevant candidates that tie with this one is among the first k."""
        drawn = np.clip(k - self.ahead, 0, self.tied)
        none = np.ones(self.ahead.shape)
        for taken in range(min(k, int(drawn.max(initial=0)))):
            left = self.tied - taken
            none *= np.where(taken < drawn, (left - self.relevant_tied) / np.maximum(left, 1), 1.0)
        return 1.0 - none

    def precision(self) -> NDArray[np.float64]:
        """The expected i / place within `DEPTH`, 0 beyond it; i counts the relevant ones down to this one."""
        first = np.minimum(self.ahead, DEPTH)
        last = np.minimum(self.ahead + self.tied, DEPTH)
        slope = (self.relevant_tied - 1) / np.maximum(self.tied - 1, 1)
        base = 1 + self.relevant_ahead - (1 + self.ahead) * slope
        return (base * (_HARMONIC[last] - _HARMONIC[first]) + slope * (last - first)) / self.tied


_HARMONIC = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, DEPTH + 1))])


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
    """The texts of each clip in order; a clip with fewer than C starts over."""
    captions_N: NDArray[np.int64]
    """How many captions each clip has."""
    t2a_M: TiedRanks
    """Of each text's clip among all clips."""
    a2t_M: TiedRanks
    """Of each text among all texts, when its clip asks."""
    a2t_CN: TiedRanks
    """Of caption c of each clip among the captions c of all clips, when the clip asks."""
    t2a_top: Top
    """Of each text among all clips."""
    a2t_top: Top
    """Of each clip among all texts."""

    def best_a2t_N(self) -> TiedRanks:
        """Of the highest-scored caption of each clip among all texts."""
        ahead_NC = self.a2t_M.ahead[self.text_of_audio_NC]
        best_N = np.take_along_axis(self.text_of_audio_NC, ahead_NC.argmin(axis=1)[:, None], axis=1)[:, 0]
        return self.a2t_M[best_N]


def rank_matrix(similarity: NDArray[np.floating], audio_of_text: NDArray[np.integer]) -> Retrieval:
    """Where every relevant candidate stands by a similarity matrix (M, N).

    Args:
        similarity: (M, N), higher is closer; compared in float32 if that holds its type, in float64 else.
        audio_of_text: (M,), the clip that each text describes; the first text of a clip is its caption 1.

    Raises:
        PipelineError: no texts or clips, a score that is no finite number, a text of an unknown clip, or a clip without
            a text.
    """
    if similarity.ndim != 2:
        raise PipelineError(f"similarities have the shape {similarity.shape}; texts x clips was expected")
    n_text, n_audio = similarity.shape
    audio_of_text_M = _checked(n_text, n_audio, audio_of_text)
    kind: type[np.floating] = np.float32 if np.can_cast(similarity.dtype, np.float32) else np.float64
    own_M = similarity[np.arange(n_text), audio_of_text_M].astype(kind)

    def tiles(rows: slice) -> Callable[[slice, bool], tuple[NDArray[np.floating], float]]:
        def tile(columns: slice, is_exact: bool) -> tuple[NDArray[np.floating], float]:
            scores_mn = np.ascontiguousarray(similarity[rows, columns], kind)
            _check_finite(scores_mn, rows, columns)
            return scores_mn, 0.0

        return tile

    return _rank(n_audio, audio_of_text_M, own_M, tiles)


def rank_embeddings(
    text: NDArray[np.floating],
    audio: NDArray[np.floating],
    audio_of_text: NDArray[np.integer],
    scores_per_tile: int = SCORES_PER_TILE,
) -> Retrieval:
    """Where every relevant candidate stands by the cosine of embeddings (M, D) and (N, D), in bounded memory.

    The M x N matrix is never whole: tiles of about `scores_per_tile` scores are made, counted for both directions and
    dropped. Of `text`, which may be memory-mapped, only a tile's rows are held, of `audio` a copy in float32.

    What counts is the cosine in float64, rounded to float32: BLAS sums a row in another order at the edge of a tile,
    and float32 sums would tell equal embeddings apart by where they stand. Products are taken in float32 all the same,
    at half the time. A sum of D products is off by at most D + 2 roundings (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1; two for the inputs), so only scores that come as near as that to one they are compared with
    are taken again in float64, and a tile that is full of them, as of a collapsed model, as a whole.
    """
    if text.ndim != 2 or audio.ndim != 2 or text.shape[1] != audio.shape[1]:
        raise PipelineError(f"embeddings of texts {text.shape} and clips {audio.shape} do not share a width")
    audio_of_text_M = _checked(len(text), len(audio), audio_of_text)
    width = text.shape[1]
    margin = (width + 4) * _ROUNDING
    length_M, length_N = _lengths(text), _lengths(audio)
    unit_audio_ND = np.empty(audio.shape, np.float32)
    for rows in _slices(len(audio), _PAIRS_AT_ONCE):
        unit_audio_ND[rows] = _unit(audio, length_N, rows)

    def exact(texts: NDArray[np.integer], clips: NDArray[np.integer]) -> NDArray[np.float32]:
        scores = np.empty(len(texts), np.float32)
        for part in _slices(len(texts), _PAIRS_AT_ONCE):
            left, right = text[texts[part]].astype(np.float64), audio[clips[part]].astype(np.float64)
            scores[part] = np.einsum("md,md->m", left, right) / (length_M[texts[part]] * length_N[clips[part]])
        return scores

    own_M = exact(np.arange(len(text)), audio_of_text_M)

    def tiles(rows: slice) -> Callable[[slice, bool], tuple[NDArray[np.floating], float]]:
        unit_text_mD = _unit(text, length_M, rows)
        rough_text_mD = unit_text_mD.astype(np.float32)
        owner_m = audio_of_text_M[rows]

        def tile(columns: slice, is_exact: bool) -> tuple[NDArray[np.floating], float]:
            if not is_exact:
                return rough_text_mD @ unit_audio_ND[columns].T, margin
            scores_mn = (unit_text_mD @ _unit(audio, length_N, columns).T).astype(np.float32)
            inside = np.flatnonzero((owner_m >= columns.start) & (owner_m < columns.stop))
            scores_mn[inside, owner_m[inside] - columns.start] = own_M[rows][inside]  # the same to the last bit
            return scores_mn, 0.0

        return tile

    return _rank(len(audio), audio_of_text_M, own_M, tiles, scores_per_tile, exact)


def _rank(
    n_audio: int,
    audio_of_text_M: NDArray[np.int64],
    own_M: NDArray[np.floating],
    tiles: Tiles,
    scores_per_tile: int = SCORES_PER_TILE,
    exact: Exact | None = None,
) -> Retrieval:
    """Count, tile by tile, what scores above and like each text's own clip (`own_M`), in both directions.

    `exact` decides about scores that are off, where tiles have such.
    """
    n_text = len(audio_of_text_M)
    captions_N = np.bincount(audio_of_text_M, minlength=n_audio)
    text_of_audio_NC = _texts_by_clip(audio_of_text_M, captions_N)
    n_choices = text_of_audio_NC.shape[1]
    own_CN = own_M[text_of_audio_NC.T]
    is_choice_MC = np.zeros((n_text, n_choices), bool)
    is_choice_MC[text_of_audio_NC, np.arange(n_choices)] = True  # a text that starts over is more than one

    totals = _Totals.zeros(n_text, own_CN.shape)
    t2a_top, a2t_top = (
        _no_top(n_queries, n_gallery, own_M.dtype) for n_queries, n_gallery in ((n_text, n_audio), (n_audio, n_text))
    )
    width = min(n_audio, max(1, math.isqrt(scores_per_tile)))
    for rows in _slices(n_text, max(1, scores_per_tile // width)):
        tile = tiles(rows)
        for columns in _slices(n_audio, width):
            own_m, own_Cn = own_M[rows], np.ascontiguousarray(own_CN[:, columns])
            for is_exact in (False, True):
                scores_mn, margin = tile(columns, is_exact)
                if is_exact and exact:  # these scores meet places that were taken by others
                    _make_exact(t2a_top, rows, exact)
                    _make_exact(a2t_top, columns, _turned(exact))
                floors = _floor(t2a_top, rows, scores_mn, 1, margin), _floor(a2t_top, columns, scores_mn, 0, margin)
                margin_of_kind = scores_mn.dtype.type(margin)
                counts = tally(scores_mn, own_m, own_Cn, is_choice_MC[rows], *floors, margin_of_kind)
                if len(counts.near) <= scores_mn.size // _MOST_NEAR:
                    break
            if exact and len(counts.near):
                texts, clips = np.divmod(counts.near, scores_mn.shape[1])
                decided = exact(rows.start + texts, columns.start + clips)
                is_own = audio_of_text_M[rows][texts] == columns.start + clips
                decided[is_own] = own_m[texts[is_own]]  # the same to the last bit
                decide(counts, decided, scores_mn, own_m, own_Cn, is_choice_MC[rows], margin_of_kind)
            totals.add(rows, columns, counts)
            texts, clips = np.divmod(counts.for_text, scores_mn.shape[1])
            scores = scores_mn[texts, clips]
            _take_better(t2a_top, rows, texts, columns.start + clips, scores, margin, exact)
            texts, clips = np.divmod(counts.for_clip, scores_mn.shape[1])
            scores = scores_mn[texts, clips]
            _take_better(a2t_top, columns, clips, rows.start + texts, scores, margin, exact and _turned(exact))

    relevant_ahead_CN, relevant_tied_CN = _relevant_counts(own_CN, captions_N)

    def by_text(counts_CN: NDArray[np.int64]) -> NDArray[np.int64]:
        counts_M = np.empty(n_text, np.int64)
        counts_M[text_of_audio_NC.T] = counts_CN  # a text that stands for more than one choice has one count
        return counts_M

    return Retrieval(
        audio_of_text_M=audio_of_text_M,
        text_of_audio_NC=text_of_audio_NC,
        captions_N=captions_N,
        t2a_M=_single(totals.ahead_M, totals.tied_M),
        a2t_M=TiedRanks(
            ahead=by_text(totals.ahead_CN),
            tied=by_text(totals.tied_CN),
            relevant_ahead=by_text(relevant_ahead_CN),
            relevant_tied=by_text(relevant_tied_CN),
        ),
        a2t_CN=_single(totals.ahead_of_choice_CN, totals.tied_of_choice_CN),
        t2a_top=Top(place=t2a_top.place, score=t2a_top.score.astype(np.float32)),
        a2t_top=Top(place=a2t_top.place, score=a2t_top.score.astype(np.float32)),
    )


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """Scores above and like each text's own clip, summed over the tiles so far."""

    ahead_M: NDArray[np.int64]
    tied_M: NDArray[np.int64]
    """Among the clips, per text."""
    ahead_CN: NDArray[np.int64]
    tied_CN: NDArray[np.int64]
    """Among all texts, per caption of each clip."""
    ahead_of_choice_CN: NDArray[np.int64]
    tied_of_choice_CN: NDArray[np.int64]
    """Among the captions c of all clips, per caption c of each clip."""

    @staticmethod
    def zeros(n_text: int, shape_CN: tuple[int, ...]) -> _Totals:
        text, clip = ("ahead_M", "tied_M"), ("ahead_CN", "tied_CN", "ahead_of_choice_CN", "tied_of_choice_CN")
        of_texts = {name: np.zeros(n_text, np.int64) for name in text}
        return _Totals(**of_texts, **{name: np.zeros(shape_CN, np.int64) for name in clip})

    def add(self, rows: slice, columns: slice, counts: Tally) -> None:
        """Add the counts of a tile."""
        self.ahead_M[rows] += counts.ahead_m
        self.tied_M[rows] += counts.tied_m
        self.ahead_CN[:, columns] += counts.ahead_Cn
        self.tied_CN[:, columns] += counts.tied_Cn
        self.ahead_of_choice_CN[:, columns] += counts.ahead_of_choice_Cn
        self.tied_of_choice_CN[:, columns] += counts.tied_of_choice_Cn


def _relevant_counts(
    own_CN: NDArray[np.floating], captions_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per caption of each clip, the clip's captions that score higher, and those that score the same (C, N)."""
    ahead_CN, tied_CN = np.zeros(own_CN.shape, np.int64), np.zeros(own_CN.shape, np.int64)
    for other in range(len(own_CN)):
        is_caption_N = other < captions_N  # not one that starts over
        ahead_CN += (own_CN[other] > own_CN) & is_caption_N
        tied_CN += (own_CN[other] == own_CN) & is_caption_N
    return ahead_CN, tied_CN


def _checked(n_text: int, n_audio: int, audio_of_text: NDArray[np.integer]) -> NDArray[np.int64]:
    if n_text == 0 or n_audio == 0:
        raise PipelineError(f"nothing to retrieve: {n_text} texts and {n_audio} clips")
    audio_of_text = np.asarray(audio_of_text)
    if audio_of_text.shape != (n_text,) or not np.issubdtype(audio_of_text.dtype, np.integer):
        raise PipelineError(
            f"the clips of {n_text} texts were expected as {n_text} indices, "
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
    """(N, C): the texts of each clip in order, starting over where a clip has fewer than C."""
    texts_M = np.argsort(audio_of_text_M, kind="stable")
    first_N = np.cumsum(captions_N) - captions_N
    return texts_M[first_N[:, None] + np.arange(captions_N.max()) % captions_N[:, None]]


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _check_finite(scores_mn: NDArray[np.floating], rows: slice, columns: slice) -> None:
    if not np.isfinite(scores_mn).all():
        row, column = np.argwhere(~np.isfinite(scores_mn))[0]
        raise PipelineError(
            f"the similarity of text {rows.start + row} and clip {columns.start + column} is "
            f"{scores_mn[row, column]}; every score must be a finite number"
        )


def _single(ahead: NDArray[np.int64], tied: NDArray[np.int64]) -> TiedRanks:
    """Ranks of candidates that are their query's only relevant one."""
    return TiedRanks(ahead=ahead, tied=tied, relevant_ahead=np.zeros_like(ahead), relevant_tied=np.ones_like(tied))


def _no_top(n_queries: int, n_gallery: int, dtype: np.dtype) -> Top:
    """Places for the first candidates of each query, to be taken."""
    shape = n_queries, min(DEPTH, n_gallery)
    return Top(place=np.full(shape, n_gallery), score=np.full(shape, -np.inf, dtype))


def _floor(top: Top, queries: slice, scores_mn: NDArray[np.floating], axis: int, margin: float) -> NDArray[np.floating]:
    """What a score of a tile must exceed to take one of its query's first places.

    Candidates come in the order of the gallery, so one that ties with the last place comes after it.
    """
    last_Q = top.score[queries, -1].copy()
    is_open_Q = np.isneginf(last_Q)
    if is_open_Q.any():
        last_Q[is_open_Q] = np.nextafter(_reached(scores_mn, axis), -np.inf)[is_open_Q]
    # Both the last of the first ones and one that stands behind it may be off, in opposite directions.
    return last_Q - scores_mn.dtype.type(2 * margin)


def _reached(scores_mn: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """A score that `DEPTH` scores of each row (axis 1) or column (axis 0) reach, or all where there are fewer."""
    size = scores_mn.shape[axis]
    few, parts = min(DEPTH, size), size // _MAXIMA
    if parts and axis:
        scores_mn = scores_mn[:, : parts * _MAXIMA].reshape(len(scores_mn), parts, _MAXIMA).max(axis=1)
    elif parts:
        scores_mn = scores_mn[: parts * _MAXIMA].reshape(parts, _MAXIMA, -1).max(axis=0)
    return np.partition(scores_mn, -few, axis=axis).take(-few, axis=axis)


def _turned(exact: Exact) -> Exact:
    """The same for clips that ask and texts that answer."""
    return lambda clips, texts: exact(texts, clips)


def _make_exact(top: Top, queries: slice, exact: Exact) -> None:
    """Give the queries' first places their exact scores; `_take_better` puts them in order."""
    place_QK, score_QK = top.place[queries], top.score[queries]  # views
    asked, taken = np.nonzero(np.isfinite(score_QK))
    score_QK[asked, taken] = exact(queries.start + asked, place_QK[asked, taken])


def _take_better(
    top: Top,
    queries: slice,
    asks: NDArray[np.integer],
    places: NDArray[np.integer],
    scores: NDArray[np.floating],
    margin: float,
    exact: Exact | None,
) -> None:
    """Let candidates of a tile into the queries' first places, those above the floor at least.

    Args:
        asks: the query of each candidate, counted from `queries.start`.
        places: where it stands in the gallery.
        scores: off by up to `margin`, as are those of the places that are taken.
    """
    place_QK, score_QK = top.place[queries], top.score[queries]  # views
    depth = place_QK.shape[1]
    changed = np.unique(asks)
    query = np.concatenate([np.repeat(changed, depth), asks])
    place = np.concatenate([place_QK[changed].ravel(), places])
    score = np.concatenate([score_QK[changed].ravel(), scores])
    order = np.lexsort((place, -score, query))
    if exact and margin:  # neighbours that may stand the wrong way round
        is_near = np.zeros(len(order) + 1, bool)  # to the one before
        with np.errstate(invalid="ignore"):  # between two places that are still empty
            is_near[1:-1] = (np.diff(query[order]) == 0) & (-np.diff(score[order]) <= 2 * margin)
        near = order[is_near[1:] | is_near[:-1]]
        score[near] = exact(queries.start + query[near], place[near])
        order = np.lexsort((place, -score, query))
    best = order[np.searchsorted(query[order], changed)[:, None] + np.arange(depth)]
    place_QK[changed], score_QK[changed] = place[best], score[best]


def _lengths(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Length of each row; PipelineError for one that is zero or no number."""
    lengths = np.empty(len(embeddings))
    for rows in _slices(len(embeddings), _PAIRS_AT_ONCE):
        lengths[rows] = np.linalg.norm(embeddings[rows].astype(np.float64), axis=1)
    for row in np.flatnonzero(~((lengths > 0) & (lengths < np.inf)))[:1]:
        raise PipelineError(f"embedding {row} has the length {lengths[row]}: it has no direction to compare")
    return lengths


def _unit(embeddings: NDArray[np.floating], lengths: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
    """Some rows at length 1, in float64."""
    unit = embeddings[rows].astype(np.float64)
    unit /= lengths[rows, None]
    return unit
