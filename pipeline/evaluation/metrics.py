"""Figures of audio-text retrieval under named protocols, exact under ties.

Candidates that score the same are in no order, so every figure is its expectation over all orders of the tied ones:
a model whose similarities are all equal scores as chance (R@k = k / N), never 100 %. The expectation is taken of the
figure, not of the rank: a collapsed model's expected rank is (N + 1) / 2, whose R@10 would be 0 instead of 10 / N.

A relevant candidate with `ahead` strictly better candidates and `tied` equal ones, itself included, stands on each of
the places ahead + 1 .. ahead + tied with probability 1 / tied. If `relevant_tied` of the tied ones are relevant and
`relevant_ahead` relevant ones are ahead, their places are a draw without replacement, which gives

    P(place <= k)            = s / tied,  s = the group's places within k
    P(any relevant place <= k) = 1 - C(tied - relevant_tied, s) / C(tied, s)      for the best-scored group
    E[i / place; place <= k] = sum over p = ahead + 1 .. ahead + s of
                               (1 + relevant_ahead + (p - 1 - ahead) (relevant_tied - 1) / (tied - 1)) / p / tied

where i counts the relevant candidates down to this one. The tests compare them with an enumeration of all orders.

Protocols, which differ in audio -> text only (text -> audio has one relevant clip a text, all M texts ask):

    paper      every clip asks once, for its first caption among the first captions of all clips; mAP@10 = MRR@10
    best-of-5  every clip asks among all M texts: R@k is whether any of its captions is within k;
               mAP@10 = sum(i / place_i over places <= 10) / C          (WavCaps, GLAP, LAION-CLAP)
    dcase      every clip asks among all M texts: R@k = captions within k / C; mAP@10 as above (DCASE 2022, 2023)

with C the clip's own number of captions: 5 in Clotho and AudioCaps, any number elsewhere.
"""

# M = texts, N = clips, D = joint width, C = captions of the clip that has most, Q = queries, G = gallery, F = figures,
# S = bootstrap samples, K = first places, m, n = texts and clips of a tile

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

PROTOCOLS = ("paper", "best-of-5", "dcase")
CUTOFFS = (1, 5, 10)
DEPTH = 10
"""Places that count for mAP@10, and candidates listed for each query."""
FIGURES = tuple(f"{direction}_{name}" for direction in ("t2a", "a2t") for name in ("R1", "R5", "R10", "mAP10"))

Tiles = Callable[[slice], Callable[[slice], tuple[NDArray[np.floating], float]]]
"""For a slice of the texts, the scores of a slice of the clips, and how far they may be off."""
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


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where relevant candidates stand in their queries' lists: each of ahead + 1 .. ahead + tied equally likely."""

    ahead: NDArray[np.int64]
    """Candidates that score strictly higher."""
    tied: NDArray[np.int64]
    """Candidates that score the same, itself included."""
    relevant_ahead: NDArray[np.int64]
    """Relevant ones among `ahead`."""
    relevant_tied: NDArray[np.int64]
    """Relevant ones among `tied`, itself included."""

    def __getitem__(self, index: Any) -> Places:
        return Places(
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
    """Where every relevant candidate stands, in both directions, whatever the protocol."""

    audio_of_text_M: NDArray[np.int64]
    text_of_audio_NC: NDArray[np.int64]
    """The texts of each clip in order; a clip with fewer than C starts over."""
    captions_N: NDArray[np.int64]
    """How many captions each clip has."""
    t2a_M: Places
    """Of each text's clip among all clips."""
    a2t_M: Places
    """Of each text among all texts, when its clip asks."""
    a2t_CN: Places
    """Of caption c of each clip among the captions c of all clips, when the clip asks."""
    t2a_top: Top
    """Of each text among all clips."""
    a2t_top: Top
    """Of each clip among all texts."""

    def best_a2t_N(self) -> Places:
        """Of the highest-scored caption of each clip among all texts."""
        ahead_NC = self.a2t_M.ahead[self.text_of_audio_NC]
        best_N = np.take_along_axis(self.text_of_audio_NC, ahead_NC.argmin(axis=1)[:, None], axis=1)[:, 0]
        return self.a2t_M[best_N]


def retrieval_metrics(
    similarity: NDArray[np.floating], audio_of_text: NDArray[np.integer], protocol: str
) -> dict[str, float]:
    """The eight figures of a similarity matrix, in percent.

    Args:
        similarity: (M, N), higher is closer.
        audio_of_text: (M,), the clip that each text describes; the first text of a clip is its caption 1.
        protocol: one of `PROTOCOLS`.

    Raises:
        PipelineError: no texts or clips, a score that is no finite number, a text of an unknown clip, a clip without
            a text, or an unknown protocol.
    """
    return figures(rank_matrix(similarity, audio_of_text), protocol)


def rank_matrix(similarity: NDArray[np.floating], audio_of_text: NDArray[np.integer]) -> Retrieval:
    """Where every relevant candidate stands by a similarity matrix (M, N); see `retrieval_metrics`."""
    if similarity.ndim != 2:
        raise PipelineError(f"similarities have the shape {similarity.shape}; texts x clips was expected")
    n_text, n_audio = similarity.shape
    audio_of_text_M = _checked(n_text, n_audio, audio_of_text)
    own_M = similarity[np.arange(n_text), audio_of_text_M]
    return _rank(n_audio, audio_of_text_M, own_M, lambda rows: lambda columns: (similarity[rows, columns], 0.0))


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
    own_CN = own_M[_texts_by_clip(audio_of_text_M, np.bincount(audio_of_text_M)).T]

    def tiles(rows: slice) -> Callable[[slice], tuple[NDArray[np.floating], float]]:
        unit_text_mD = _unit(text, length_M, rows)
        rough_text_mD = unit_text_mD.astype(np.float32)
        owner_m = audio_of_text_M[rows]

        def tile(columns: slice) -> tuple[NDArray[np.floating], float]:
            scores_mn = rough_text_mD @ unit_audio_ND[columns].T
            near = _near(scores_mn, own_M[rows], own_CN[:, columns], margin)
            is_full = len(near) > scores_mn.size // _MOST_NEAR
            if is_full:
                scores_mn = (unit_text_mD @ _unit(audio, length_N, columns).T).astype(np.float32)
            else:
                texts, clips = np.divmod(near, scores_mn.shape[1])
                scores_mn[texts, clips] = exact(rows.start + texts, columns.start + clips)
            inside = np.flatnonzero((owner_m >= columns.start) & (owner_m < columns.stop))
            scores_mn[inside, owner_m[inside] - columns.start] = own_M[rows][inside]  # the same to the last bit
            return scores_mn, 0.0 if is_full else margin

        return tile

    return _rank(len(audio), audio_of_text_M, own_M, tiles, scores_per_tile, exact)


def figures(retrieval: Retrieval, protocol: str) -> dict[str, float]:
    """The eight figures under a protocol, in percent."""
    t2a_MF, a2t_NF = _of_queries(retrieval, protocol)
    means = np.concatenate([t2a_MF.mean(axis=0), a2t_NF.mean(axis=0)])
    return dict(zip(FIGURES, (100.0 * means).tolist(), strict=True))


def mean_over_captions(retrieval: Retrieval) -> dict[str, float]:
    """The audio -> text figures under `paper`, averaged over which caption of each clip is used, in percent.

    Choice c takes caption c of every clip; a clip with fewer captions starts over.
    """
    choices_CF = np.stack(
        [_one_relevant(retrieval.a2t_CN[choice]).mean(axis=0) for choice in range(retrieval.text_of_audio_NC.shape[1])]
    )
    return dict(zip(FIGURES[4:], (100.0 * choices_CF.mean(axis=0)).tolist(), strict=True))


def contributions(retrieval: Retrieval, protocol: str) -> NDArray[np.float64]:
    """What each clip adds to the figures (N, F): from text to audio the sum over its captions, from audio to text one.

    The figures are the sums of the columns divided by the number of captions and by that of clips; see `resampled`.
    """
    t2a_MF, a2t_NF = _of_queries(retrieval, protocol)
    t2a_NF = np.zeros((len(a2t_NF), t2a_MF.shape[1]))
    np.add.at(t2a_NF, retrieval.audio_of_text_M, t2a_MF)
    return np.concatenate([t2a_NF, a2t_NF], axis=1)


def resampled(
    contributions_NF: NDArray[np.float64], captions_N: NDArray[np.integer], seed: int = 0, samples: int = 1000
) -> NDArray[np.float64]:
    """The figures, between 0 and 1, of bootstrap samples of the clips with all their captions (S, F).

    Clips are drawn, not texts, because the captions of a clip succeed and fail together. The gallery stays whole, so
    this is the spread over queries, not over galleries or over seeds of training. Arrays (..., N, F) give (..., S, F)
    of the same draws; a difference of `contributions` gives the differences of the figures.
    """
    n_audio = len(captions_N)
    generator = np.random.default_rng(seed)
    directions = contributions_NF[..., : len(FIGURES) // 2], contributions_NF[..., len(FIGURES) // 2 :]
    t2a_NF, a2t_NF = map(np.ascontiguousarray, directions)
    blocks = []
    step = max(1, _DRAWS_PER_BLOCK // n_audio)
    for first in range(0, samples, step):
        size = min(step, samples - first)
        draws_SN = generator.multinomial(n_audio, np.full(n_audio, 1 / n_audio), size=size)
        t2a_SF = draws_SN @ t2a_NF / (draws_SN @ captions_N)[:, None]
        a2t_SF = draws_SN @ a2t_NF / n_audio
        blocks.append(np.concatenate([t2a_SF, a2t_SF], axis=-1))
    return np.concatenate(blocks, axis=-2)


_DRAWS_PER_BLOCK = 1 << 22


def intervals(
    retrieval: Retrieval, protocol: str, seed: int = 0, samples: int = 1000
) -> dict[str, tuple[float, float]]:
    """The central 95 % of each figure, in percent, over the bootstrap samples of `resampled`."""
    samples_SF = resampled(contributions(retrieval, protocol), retrieval.captions_N, seed, samples)
    low, high = 100.0 * np.percentile(samples_SF, [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(FIGURES)}


def _of_queries(retrieval: Retrieval, protocol: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each text (M, 4) and each clip (N, 4) adds to R@1, R@5, R@10 and mAP@10, between 0 and 1."""
    if protocol not in PROTOCOLS:
        raise PipelineError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    t2a_MF = _one_relevant(retrieval.t2a_M)
    if protocol == "paper":
        return t2a_MF, _one_relevant(retrieval.a2t_CN[0])
    of_captions_MF = _one_relevant(retrieval.a2t_M)
    a2t_NF = np.zeros((len(retrieval.captions_N), of_captions_MF.shape[1]))
    np.add.at(a2t_NF, retrieval.audio_of_text_M, of_captions_MF)
    a2t_NF /= retrieval.captions_N[:, None]
    if protocol == "best-of-5":
        best_N = retrieval.best_a2t_N()
        a2t_NF[:, : len(CUTOFFS)] = np.stack([best_N.any_within(k) for k in CUTOFFS], axis=1)
    return t2a_MF, a2t_NF


def _one_relevant(places: Places) -> NDArray[np.float64]:
    """(Q, 4): what a candidate adds to R@1, R@5, R@10 and mAP@10 if it is the one that counts."""
    return np.stack([*(places.within(k) for k in CUTOFFS), places.precision()], axis=1)


def _rank(
    n_audio: int,
    audio_of_text_M: NDArray[np.int64],
    own_M: NDArray[np.floating],
    tiles: Tiles,
    scores_per_tile: int = SCORES_PER_TILE,
    exact: Exact | None = None,
) -> Retrieval:
    """Count, tile by tile, what scores above and like each text's own clip (`own_M`), in both directions.

    Scores must compare with `own_M` as exact ones do; where others may be off, `exact` orders the first places.
    """
    n_text = len(audio_of_text_M)
    captions_N = np.bincount(audio_of_text_M, minlength=n_audio)
    text_of_audio_NC = _texts_by_clip(audio_of_text_M, captions_N)
    n_choices = text_of_audio_NC.shape[1]
    own_CN = own_M[text_of_audio_NC.T]
    texts_of_choice = np.sort(text_of_audio_NC.T, axis=1)  # (C, N)

    t2a_M = _single(np.zeros(n_text, np.int64), np.zeros(n_text, np.int64))
    a2t_CN = _single(np.zeros(own_CN.shape, np.int64), np.zeros(own_CN.shape, np.int64))
    ahead_CN, tied_CN = np.zeros(own_CN.shape, np.int64), np.zeros(own_CN.shape, np.int64)
    t2a_top, a2t_top = (
        _no_top(n_queries, n_gallery, np.result_type(own_M, np.float32))
        for n_queries, n_gallery in ((n_text, n_audio), (n_audio, n_text))
    )
    width = min(n_audio, max(1, math.isqrt(scores_per_tile)))
    for rows in _slices(n_text, max(1, scores_per_tile // width)):
        tile = tiles(rows)
        for columns in _slices(n_audio, width):
            scores_mn, margin = tile(columns)
            _check_finite(scores_mn, rows, columns)
            ahead, tied = _count_rows(scores_mn, own_M[rows])
            t2a_M.ahead[rows] += ahead
            t2a_M.tied[rows] += tied
            _take_better(t2a_top, rows, scores_mn, columns.start, margin, exact)
            _take_better(a2t_top, columns, scores_mn.T, rows.start, margin, exact and _turned(exact))
            ahead, tied = _count_columns(scores_mn, own_CN[:, columns])
            ahead_CN[:, columns] += ahead
            tied_CN[:, columns] += tied
            for choice, texts in enumerate(texts_of_choice):
                first, last = np.searchsorted(texts, [rows.start, rows.stop])
                ahead, tied = _count_columns(scores_mn[texts[first:last] - rows.start], own_CN[choice, None, columns])
                a2t_CN.ahead[choice, columns] += ahead[0]
                a2t_CN.tied[choice, columns] += tied[0]

    relevant_ahead_CN, relevant_tied_CN = np.zeros(own_CN.shape, np.int64), np.zeros(own_CN.shape, np.int64)
    for other in range(n_choices):
        is_caption_N = other < captions_N  # not one that starts over
        relevant_ahead_CN += (own_CN[other] > own_CN) & is_caption_N
        relevant_tied_CN += (own_CN[other] == own_CN) & is_caption_N

    def by_text(counts_CN: NDArray[np.int64]) -> NDArray[np.int64]:
        counts_M = np.empty(n_text, np.int64)
        counts_M[text_of_audio_NC.T] = counts_CN  # a text that stands for more than one choice has one count
        return counts_M

    return Retrieval(
        audio_of_text_M=audio_of_text_M,
        text_of_audio_NC=text_of_audio_NC,
        captions_N=captions_N,
        t2a_M=t2a_M,
        a2t_M=Places(
            ahead=by_text(ahead_CN),
            tied=by_text(tied_CN),
            relevant_ahead=by_text(relevant_ahead_CN),
            relevant_tied=by_text(relevant_tied_CN),
        ),
        a2t_CN=a2t_CN,
        t2a_top=Top(place=t2a_top.place, score=t2a_top.score.astype(np.float32)),
        a2t_top=Top(place=a2t_top.place, score=a2t_top.score.astype(np.float32)),
    )


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


_FEW = 32
"""Where fewer than one score in so many comes up to a query's own, as of a trained model, they are counted singly."""

# Of a tile of 2048 x 2048 float32, a nanosecond a score is 4 ms: numpy's sum of a comparison takes 3.6 ns a score along
# rows, a count row by row 0.6; along columns it takes 0.7, and added up as bytes 0.4.


def _count_rows(
    scores_mn: NDArray[np.floating], own_m: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of each row are greater than, and equal to, the row's own score."""
    within_mn = scores_mn >= own_m[:, None]
    if np.count_nonzero(within_mn) < scores_mn.size // _FEW:
        places = np.flatnonzero(within_mn)
        rows = places // scores_mn.shape[1]
        is_tied = scores_mn.ravel()[places] == own_m[rows]
        return np.bincount(rows[~is_tied], minlength=len(own_m)), np.bincount(rows[is_tied], minlength=len(own_m))
    ahead_mn, tied_mn = scores_mn > own_m[:, None], scores_mn == own_m[:, None]
    ahead, tied = (np.fromiter(map(np.count_nonzero, mask), np.int64, len(mask)) for mask in (ahead_mn, tied_mn))
    return ahead, tied


def _count_columns(
    scores_mn: NDArray[np.floating], own_Cn: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of each column are greater than, and equal to, each of the column's own scores (C, n)."""
    ahead_Cn, tied_Cn = np.zeros(own_Cn.shape, np.int64), np.zeros(own_Cn.shape, np.int64)
    within_mn = scores_mn >= own_Cn.min(axis=0)
    if np.count_nonzero(within_mn) < scores_mn.size // _FEW:
        rows, columns = np.divmod(np.flatnonzero(within_mn), scores_mn.shape[1])
        scores = scores_mn[rows, columns]
        for own_n, ahead_n, tied_n in zip(own_Cn, ahead_Cn, tied_Cn, strict=True):
            own = own_n[columns]
            ahead_n += np.bincount(columns[scores > own], minlength=len(own_n))
            tied_n += np.bincount(columns[scores == own], minlength=len(own_n))
        return ahead_Cn, tied_Cn
    for part in _slices(len(scores_mn), 255):  # as many as a byte counts
        for own_n, ahead_n, tied_n in zip(own_Cn, ahead_Cn, tied_Cn, strict=True):
            ahead_n += np.add.reduce((scores_mn[part] > own_n).view(np.uint8), axis=0, dtype=np.uint8)
            tied_n += np.add.reduce((scores_mn[part] == own_n).view(np.uint8), axis=0, dtype=np.uint8)
    return ahead_Cn, tied_Cn


def _single(ahead: NDArray[np.int64], tied: NDArray[np.int64]) -> Places:
    """Places of candidates that are their query's only relevant one."""
    return Places(ahead=ahead, tied=tied, relevant_ahead=np.zeros_like(ahead), relevant_tied=np.ones_like(tied))


def _no_top(n_queries: int, n_gallery: int, dtype: np.dtype) -> Top:
    """Places for the first candidates of each query, to be taken."""
    shape = n_queries, min(DEPTH, n_gallery)
    return Top(place=np.full(shape, n_gallery), score=np.full(shape, -np.inf, dtype))


def _near(
    scores_mn: NDArray[np.float32], own_m: NDArray[np.float32], own_Cn: NDArray[np.float32], margin: float
) -> NDArray[np.int64]:
    """Flat indices of the scores within `margin` of their row's own score or of one of their column's, some twice."""
    near_mn = scores_mn >= (own_m - margin)[:, None]
    if np.count_nonzero(near_mn) < scores_mn.size // _FEW:
        of_rows = np.flatnonzero(near_mn)
        of_rows = of_rows[scores_mn.ravel()[of_rows] <= (own_m + margin)[of_rows // scores_mn.shape[1]]]
    else:
        near_mn &= scores_mn <= (own_m + margin)[:, None]
        of_rows = np.flatnonzero(near_mn)
    np.greater_equal(scores_mn, own_Cn.min(axis=0) - margin, out=near_mn)
    if np.count_nonzero(near_mn) < scores_mn.size // _FEW:
        places = np.flatnonzero(near_mn)
        scores, columns = scores_mn.ravel()[places], places % scores_mn.shape[1]
        is_near = np.zeros(len(places), bool)
        for own_n in own_Cn:
            is_near |= np.abs(scores - own_n[columns]) <= margin
        return np.concatenate([of_rows, places[is_near]])
    near_mn[:] = False
    for own_n in own_Cn:
        within_mn = scores_mn >= own_n - margin
        within_mn &= scores_mn <= own_n + margin
        near_mn |= within_mn
    return np.concatenate([of_rows, np.flatnonzero(near_mn)])


def _turned(exact: Exact) -> Exact:
    """The same for clips that ask and texts that answer."""
    return lambda clips, texts: exact(texts, clips)


def _take_better(
    top: Top, queries: slice, scores_QG: NDArray[np.floating], first: int, margin: float, exact: Exact | None
) -> None:
    """Let the candidates from `first` on into the queries' first places, where they score higher than the last there.

    Candidates come in the order of the gallery, so one that ties with the last place comes after it.
    """
    place_QK, score_QK = top.place[queries], top.score[queries]  # views
    depth = place_QK.shape[1]
    if exact and not margin:  # a tile of exact scores meets places that were taken by others
        asked, taken = np.nonzero(np.isfinite(score_QK))
        score_QK[asked, taken] = exact(queries.start + asked, place_QK[asked, taken])
    # Both the last of the first ones and one that stands behind it may be off, in opposite directions.
    least_Q = score_QK[:, -1] - 2 * margin
    if np.isneginf(least_Q).any():
        few = min(depth, scores_QG.shape[1])
        better_QG = scores_QG >= np.partition(scores_QG, -few, axis=1)[:, -few, None] - 2 * margin
    else:
        better_QG = scores_QG > least_Q[:, None]
    if better_QG.flags.c_contiguous:  # a flat search takes a fraction of one along two axes
        rows, columns = np.divmod(np.flatnonzero(better_QG), better_QG.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(better_QG.T), better_QG.shape[0])
    changed = np.unique(rows)
    query = np.concatenate([np.repeat(changed, depth), rows])
    place = np.concatenate([place_QK[changed].ravel(), columns + first])
    score = np.concatenate([score_QK[changed].ravel(), scores_QG[rows, columns]])
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
