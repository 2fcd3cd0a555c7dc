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

# M = texts, N = clips, D = joint width, C = captions of the clip that has most, Q = queries, G = gallery, F = figures

from __future__ import annotations

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

Scores = Callable[[slice], NDArray[np.floating]]
"""The scores of a slice of the queries against the whole gallery."""


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
    t2a_top: list[tuple[NDArray[np.int64], NDArray[np.float32]]]
    """The first `DEPTH` clips of each text and their scores; ties in the order of the gallery."""
    a2t_top: list[tuple[NDArray[np.int64], NDArray[np.float32]]]
    """The same of each clip among all texts."""

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
    return _rank(n_text, n_audio, audio_of_text, lambda rows: similarity[rows], lambda rows: similarity[:, rows].T)


def rank_embeddings(
    text: NDArray[np.floating],
    audio: NDArray[np.floating],
    audio_of_text: NDArray[np.integer],
    scores_per_block: int = 1 << 22,
) -> Retrieval:
    """Where every relevant candidate stands by the cosine of embeddings (M, D) and (N, D), in bounded memory.

    The M x N matrix is never whole: blocks of about `scores_per_block` scores are made, counted and dropped, once a
    direction. The product is taken in float64 and rounded to float32: BLAS sums a row in another order at the edge of
    a block, and float32 sums would tell equal embeddings apart by where they stand.
    """
    if text.ndim != 2 or audio.ndim != 2 or text.shape[1] != audio.shape[1]:
        raise PipelineError(f"embeddings of texts {text.shape} and clips {audio.shape} do not share a width")
    unit_text_MD, unit_audio_ND = _unit(text), _unit(audio)
    return _rank(
        len(text),
        len(audio),
        audio_of_text,
        lambda rows: (unit_text_MD[rows] @ unit_audio_ND.T).astype(np.float32),
        lambda rows: (unit_audio_ND[rows] @ unit_text_MD.T).astype(np.float32),
        scores_per_block,
    )


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


def intervals(
    retrieval: Retrieval, protocol: str, seed: int = 0, samples: int = 1000
) -> dict[str, tuple[float, float]]:
    """The central 95 % of each figure, in percent, over bootstrap samples of the clips with all their captions.

    Clips are drawn, not texts, because the captions of a clip succeed and fail together. The gallery stays whole, so
    this is the spread over queries, not over galleries or over seeds of training.
    """
    t2a_MF, a2t_NF = _of_queries(retrieval, protocol)
    n_audio = len(a2t_NF)
    t2a_NF = np.zeros((n_audio, t2a_MF.shape[1]))
    np.add.at(t2a_NF, retrieval.audio_of_text_M, t2a_MF)
    draws_SN = np.random.default_rng(seed).multinomial(n_audio, np.full(n_audio, 1 / n_audio), size=samples)
    t2a_SF = draws_SN @ t2a_NF / (draws_SN @ retrieval.captions_N)[:, None]
    a2t_SF = draws_SN @ a2t_NF / n_audio
    low, high = 100.0 * np.percentile(np.concatenate([t2a_SF, a2t_SF], axis=1), [2.5, 97.5], axis=0)
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
    n_text: int,
    n_audio: int,
    audio_of_text: NDArray[np.integer],
    scores_of_texts: Scores,
    scores_of_audio: Scores,
    scores_per_block: int = 1 << 22,
) -> Retrieval:
    audio_of_text_M = _checked(n_text, n_audio, audio_of_text)
    captions_N = np.bincount(audio_of_text_M, minlength=n_audio)
    text_of_audio_NC = _texts_by_clip(audio_of_text_M, captions_N)
    n_choices = text_of_audio_NC.shape[1]

    ahead_M, tied_M = np.zeros(n_text, np.int64), np.zeros(n_text, np.int64)
    t2a_top = []
    for rows in _blocks(n_text, n_audio, scores_per_block):
        scores_QG = _finite(scores_of_texts(rows), rows, "text", "clip")
        own_Q = np.take_along_axis(scores_QG, audio_of_text_M[rows, None], axis=1)
        ahead_M[rows], tied_M[rows] = _count(scores_QG, own_Q)
        t2a_top += _first(scores_QG)
    t2a_M = _single(ahead_M, tied_M)

    a2t_M = Places(
        ahead=np.zeros(n_text, np.int64),
        tied=np.zeros(n_text, np.int64),
        relevant_ahead=np.zeros(n_text, np.int64),
        relevant_tied=np.zeros(n_text, np.int64),
    )
    ahead_CN, tied_CN = np.zeros((n_choices, n_audio), np.int64), np.zeros((n_choices, n_audio), np.int64)
    a2t_top = []
    for rows in _blocks(n_audio, n_text, scores_per_block):
        scores_QG = _finite(scores_of_audio(rows), rows, "clip", "text")
        own_QC = np.take_along_axis(scores_QG, text_of_audio_NC[rows], axis=1)
        is_caption_QC = np.arange(n_choices) < captions_N[rows, None]  # not one that starts over
        for choice in range(n_choices):
            own_Q = own_QC[:, choice, None]
            texts_Q = text_of_audio_NC[rows, choice]
            a2t_M.ahead[texts_Q], a2t_M.tied[texts_Q] = _count(scores_QG, own_Q)
            a2t_M.relevant_ahead[texts_Q] = np.sum((own_QC > own_Q) & is_caption_QC, axis=1)
            a2t_M.relevant_tied[texts_Q] = np.sum((own_QC == own_Q) & is_caption_QC, axis=1)
            ahead_CN[choice, rows], tied_CN[choice, rows] = _count(scores_QG[:, text_of_audio_NC[:, choice]], own_Q)
        a2t_top += _first(scores_QG)

    return Retrieval(
        audio_of_text_M=audio_of_text_M,
        text_of_audio_NC=text_of_audio_NC,
        captions_N=captions_N,
        t2a_M=t2a_M,
        a2t_M=a2t_M,
        a2t_CN=_single(ahead_CN, tied_CN),
        t2a_top=t2a_top,
        a2t_top=a2t_top,
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


def _blocks(n_queries: int, n_gallery: int, scores_per_block: int) -> Iterator[slice]:
    step = max(1, scores_per_block // n_gallery)
    for start in range(0, n_queries, step):
        yield slice(start, min(start + step, n_queries))


def _finite(scores_QG: NDArray[np.floating], rows: slice, query: str, candidate: str) -> NDArray[np.floating]:
    if not np.isfinite(scores_QG).all():
        row, column = np.argwhere(~np.isfinite(scores_QG))[0]
        raise PipelineError(
            f"the similarity of {query} {rows.start + row} and {candidate} {column} is {scores_QG[row, column]}; "
            "every score must be a finite number"
        )
    return scores_QG


def _count(
    scores_QG: NDArray[np.floating], own_Q1: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of each row are greater than, and equal to, the row's own score (Q, 1)."""
    return np.sum(scores_QG > own_Q1, axis=1), np.sum(scores_QG == own_Q1, axis=1)


def _single(ahead: NDArray[np.int64], tied: NDArray[np.int64]) -> Places:
    """Places of candidates that are their query's only relevant one."""
    return Places(ahead=ahead, tied=tied, relevant_ahead=np.zeros_like(ahead), relevant_tied=np.ones_like(tied))


def _first(scores_QG: NDArray[np.floating]) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The first `DEPTH` candidates of each row and their scores, best first, ties in the order of the gallery."""
    depth = min(DEPTH, scores_QG.shape[1])
    least_Q1 = np.partition(scores_QG, -depth, axis=1)[:, -depth, None]
    rows, columns = np.nonzero(scores_QG >= least_Q1)  # more than `depth` a row where the last place is tied
    scores = scores_QG[rows, columns]
    order = np.lexsort((columns, -scores, rows))
    starts = np.searchsorted(rows, np.arange(len(scores_QG)))
    return [
        (columns[order[start : start + depth]], scores[order[start : start + depth]].astype(np.float32))
        for start in starts
    ]


def _unit(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1 in float64."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (lengths > 0).all():  # also of a length that is not a number
        row = int(np.flatnonzero(~(lengths[:, 0] > 0))[0])
        raise PipelineError(f"embedding {row} has the length {lengths[row, 0]}: it has no direction to compare")
    return wide / lengths
