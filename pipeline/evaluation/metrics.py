"""Figures of audio-text retrieval under named protocols, exact under ties.

Candidates with equal scores have no order, so every figure is its expectation over all orders of the tied candidates.
A model whose similarities are all equal scores as chance (R@k = k / N), never 100 %. The expectation is that of the
figure, not of the rank: a collapsed model's expected rank is (N + 1) / 2, whose R@10 would be 0 instead of 10 / N.

A relevant candidate with `ahead` better candidates and `tied` equal ones, itself included, has each of the places
ahead + 1 .. ahead + tied with probability 1 / tied. If `relevant_tied` of the tied candidates are relevant, and
`relevant_ahead` of the better ones, their places are a draw without replacement, which gives

    P(place <= k)            = s / tied,  s = the group's places within k
    P(any relevant place <= k) = 1 - C(tied - relevant_tied, s) / C(tied, s)      for the best-scored group
    E[i / place; place <= k] = sum over p = ahead + 1 .. ahead + s of
                               (1 + relevant_ahead + (p - 1 - ahead) (relevant_tied - 1) / (tied - 1)) / p / tied

where the candidate is the i-th relevant one. The tests compare these with an enumeration of all orders.

The protocols differ in audio -> text only. In text -> audio every one of the M texts is a query with one relevant clip.

    paper      every clip is a query for its first caption among the first captions of all clips; mAP@10 = MRR@10
    best-of-5  every clip is a query among all M texts: R@k is whether any of its captions is within k;
               mAP@10 = sum(i / place_i over places <= 10) / C          (WavCaps, GLAP, LAION-CLAP)
    dcase      every clip is a query among all M texts: R@k = captions within k / C; mAP@10 as above (DCASE 2022, 2023)

C is the clip's number of captions: 5 in Clotho and AudioCaps, any number elsewhere. `protocols.py` lists the protocols
that need more than the scores.
"""

# M = texts, N = clips, C = captions of the clip that has most, F = figures, S = bootstrap samples

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.ranking import Retrieval, TiedRanks, rank_matrix

PROTOCOLS = ("paper", "best-of-5", "dcase")
CUTOFFS = (1, 5, 10)
FIGURES = tuple(f"{direction}_{name}" for direction in ("t2a", "a2t") for name in ("R1", "R5", "R10", "mAP10"))


def retrieval_metrics(
    similarity: NDArray[np.floating], audio_of_text: NDArray[np.integer], protocol: str
) -> dict[str, float]:
    """Return the eight figures of a similarity matrix, in percent.

    Args:
        similarity: (M, N), higher is closer.
        audio_of_text: (M,), the clip that each text describes; the first text of a clip is its caption 1.
        protocol: one of `PROTOCOLS`.

    Raises:
        PipelineError: no texts or clips, a score that is not finite, a text of an unknown clip, a clip without a text,
            or an unknown protocol.

    Example:
        Two clips with one text each; the second text is nearer to the first clip than to its own:

        >>> import numpy as np
        >>> found = retrieval_metrics(np.array([[0.9, 0.1], [0.8, 0.5]]), np.array([0, 1]), "paper")
        >>> found["t2a_R1"], found["t2a_mAP10"], found["a2t_R1"]
        (50.0, 75.0, 100.0)
    """
    return figures(rank_matrix(similarity, audio_of_text), protocol)


def figures(retrieval: Retrieval, protocol: str) -> dict[str, float]:
    """Return the eight figures under a protocol, in percent."""
    t2a_MF, a2t_NF = _of_queries(retrieval, protocol)
    means = np.concatenate([t2a_MF.mean(axis=0), a2t_NF.mean(axis=0)])
    return dict(zip(FIGURES, (100.0 * means).tolist(), strict=True))


def mean_over_captions(retrieval: Retrieval) -> dict[str, float]:
    """Return the audio -> text figures under `paper`, in percent, averaged over the choices of a caption.

    Choice c takes caption c of every clip; a clip with fewer captions repeats them.
    """
    choices_CF = np.stack(
        [_one_relevant(retrieval.a2t_CN[choice]).mean(axis=0) for choice in range(retrieval.text_of_audio_NC.shape[1])]
    )
    return dict(zip(FIGURES[4:], (100.0 * choices_CF.mean(axis=0)).tolist(), strict=True))


def contributions(retrieval: Retrieval, protocol: str) -> NDArray[np.float64]:
    """Return each clip's contribution to the figures (N, F); for text -> audio the sum over its captions.

    A figure is the sum of its column, divided by the number of captions (text -> audio) or clips (audio -> text).
    """
    t2a_MF, a2t_NF = _of_queries(retrieval, protocol)
    t2a_NF = np.zeros((len(a2t_NF), t2a_MF.shape[1]))
    np.add.at(t2a_NF, retrieval.audio_of_text_M, t2a_MF)
    return np.concatenate([t2a_NF, a2t_NF], axis=1)


QueryCounts = Sequence[tuple[int, NDArray[np.integer]]]
"""Groups of neighbouring figures: how many they are, and over how many queries of each clip they go (N,)."""


def resampled(
    contributions_NF: NDArray[np.float64], queries: QueryCounts, seed: int = 0, samples: int = 1000
) -> NDArray[np.float64]:
    """Return the figures, between 0 and 1, of bootstrap samples of the clips with all their queries (S, F).

    Clips are drawn instead of texts, because the results of a clip's captions are correlated. The gallery stays whole,
    so this is the spread over queries, not over galleries or training seeds. Arrays (..., N, F) give (..., S, F) from
    the same draws. A difference of `contributions` gives the differences of the figures. A sample without any query of
    a group gives 0.
    """
    clips = len(queries[0][1])
    generator = np.random.default_rng(seed)
    ends = np.cumsum([width for width, _ in queries])[:-1]
    groups = [np.ascontiguousarray(part) for part in np.split(contributions_NF, ends, axis=-1)]
    blocks = []
    step = max(1, _DRAWS_PER_BLOCK // clips)
    for first in range(0, samples, step):
        size = min(step, samples - first)
        draws_SN = generator.multinomial(clips, np.full(clips, 1 / clips), size=size)
        means = [
            draws_SN @ group_NF / np.maximum(draws_SN @ queries_N, 1)[:, None]
            for group_NF, (_, queries_N) in zip(groups, queries, strict=True)
        ]
        blocks.append(np.concatenate(means, axis=-1))
    return np.concatenate(blocks, axis=-2)


def totals(queries: QueryCounts) -> NDArray[np.int64]:
    """Return the number of queries of each figure (F,)."""
    return np.repeat([int(queries_N.sum()) for _, queries_N in queries], [width for width, _ in queries])


_DRAWS_PER_BLOCK = 1 << 22


def intervals(retrieval: Retrieval, protocol: str) -> dict[str, tuple[float, float]]:
    """Return the central 95 % of each figure, in percent, over the bootstrap samples of `resampled`."""
    queries = (len(FIGURES) // 2, retrieval.captions_N), (len(FIGURES) // 2, np.ones_like(retrieval.captions_N))
    return central_95(contributions(retrieval, protocol), queries, FIGURES)


def central_95(
    contributions_NF: NDArray[np.float64], queries: QueryCounts, names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return the central 95 % of each figure, in percent, over the bootstrap samples of `resampled`."""
    low, high = 100.0 * np.percentile(resampled(contributions_NF, queries), [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def _of_queries(retrieval: Retrieval, protocol: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return R@1, R@5, R@10 and mAP@10 of each text (M, 4) and of each clip (N, 4) as query, between 0 and 1."""
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


def _one_relevant(places: TiedRanks) -> NDArray[np.float64]:
    """Return R@1, R@5, R@10 and mAP@10 of queries with one relevant candidate (Q, 4)."""
    return np.stack([*(places.within(k) for k in CUTOFFS), places.precision()], axis=1)
