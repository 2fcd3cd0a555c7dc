"""Retrieval figures against hand-computed numbers and a plain implementation that enumerates every order of ties."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import (
    FIGURES,
    PROTOCOLS,
    figures,
    intervals,
    mean_over_captions,
    retrieval_metrics,
)
from pipeline.evaluation.ranking import DEPTH, Top, _floor, _make_exact, _take_better, rank_embeddings, rank_matrix
from pipeline.evaluation.windows import window_starts

PAPER = Path(__file__).parents[2] / "data" / "paper_table1.csv"


# The plain implementation: a list of places for every order that the scores allow, then the definition of each figure.


def orders_of(scores: list[float]) -> list[list[int]]:
    """Every ranking by descending score, with ties in all orders."""
    groups = [
        [candidate for candidate, other in enumerate(scores) if other == score] for score in sorted(set(scores))[::-1]
    ]
    return [
        [candidate for group in order for candidate in group]
        for order in itertools.product(*(itertools.permutations(group) for group in groups))
    ]


def placings_of(scores: list[float], relevant: list[int]) -> list[tuple[float, list[int]]]:
    """The sorted places that the relevant candidates can take, each with its probability.

    A tie of many candidates is too long to permute; the places its relevant ones take are every subset, equally likely.
    """
    options = []
    for score in sorted({scores[candidate] for candidate in relevant}, reverse=True):
        better = sum(other > score for other in scores)
        tied = sum(other == score for other in scores)
        taken = sum(scores[candidate] == score for candidate in relevant)
        options.append(list(itertools.combinations(range(better + 1, better + tied + 1), taken)))
    count = math.prod(len(option) for option in options)
    return [(1 / count, sorted(itertools.chain(*choice))) for choice in itertools.product(*options)]


def recall_any(places: list[int], k: int) -> float:
    return float(min(places) <= k)


def recall_share(places: list[int], k: int) -> float:
    return sum(place <= k for place in places) / len(places)


def precision_at_10(places: list[int]) -> float:
    return sum(i / place for i, place in enumerate(places, start=1) if place <= 10) / len(places)


def expected(placings: list[tuple[float, list[int]]], recall) -> np.ndarray:
    values = [
        [recall(places, 1), recall(places, 5), recall(places, 10), precision_at_10(places)] for _, places in placings
    ]
    return np.array([p for p, _ in placings]) @ np.array(values)


def plain_metrics(similarity: np.ndarray, audio_of_text: list[int], protocol: str) -> dict[str, float]:
    n_audio = similarity.shape[1]
    texts_of = [[text for text, clip in enumerate(audio_of_text) if clip == audio] for audio in range(n_audio)]
    t2a = [
        expected(placings_of(row.tolist(), [clip]), recall_any)
        for row, clip in zip(similarity, audio_of_text, strict=True)
    ]
    a2t = []
    for audio in range(n_audio):
        scores = similarity[:, audio].tolist()
        if protocol == "paper":
            firsts = [texts[0] for texts in texts_of]
            a2t.append(expected(placings_of([scores[text] for text in firsts], [audio]), recall_any))
        else:
            recall = recall_any if protocol == "best-of-5" else recall_share
            a2t.append(expected(placings_of(scores, texts_of[audio]), recall))
    return dict(
        zip(FIGURES, (100 * np.concatenate([np.mean(t2a, axis=0), np.mean(a2t, axis=0)])).tolist(), strict=True)
    )


@st.composite
def matrices(draw, max_audio: int, max_texts: int, levels: int):
    """Similarities with many ties, and clips with one or more captions, in any order of texts."""
    n_audio = draw(st.integers(1, max_audio))
    extra = draw(st.lists(st.integers(0, n_audio - 1), max_size=max_texts - n_audio))
    audio_of_text = draw(st.permutations([*range(n_audio), *extra]))
    scores = draw(
        st.lists(
            st.integers(0, levels - 1), min_size=n_audio * len(audio_of_text), max_size=n_audio * len(audio_of_text)
        )
    )
    return np.array(scores, np.float32).reshape(len(audio_of_text), n_audio), audio_of_text


@given(scores=st.lists(st.integers(0, 2), min_size=1, max_size=6), relevant_mask=st.integers(1, 63))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_places_of_tied_candidates_are_those_of_all_permutations(scores, relevant_mask):
    relevant = [candidate for candidate in range(len(scores)) if relevant_mask >> candidate & 1] or [0]
    orders = orders_of(scores)
    permuted = [sorted(order.index(candidate) + 1 for candidate in relevant) for order in orders]
    placings = placings_of(scores, relevant)
    for places in map(list, {tuple(places) for places in permuted}):
        share = permuted.count(places) / len(permuted)
        assert share == pytest.approx(sum(p for p, other in placings if other == places))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(case=matrices(max_audio=5, max_texts=9, levels=3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_small_matrices_with_ties_match_the_plain_implementation(protocol, case):
    similarity, audio_of_text = case
    assert retrieval_metrics(similarity, np.array(audio_of_text), protocol) == pytest.approx(
        plain_metrics(similarity, audio_of_text, protocol), abs=1e-9
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(case=matrices(max_audio=14, max_texts=18, levels=12))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_galleries_beyond_the_cutoff_match_the_plain_implementation(protocol, case):
    similarity, audio_of_text = case
    assert retrieval_metrics(similarity, np.array(audio_of_text), protocol) == pytest.approx(
        plain_metrics(similarity, audio_of_text, protocol), abs=1e-9
    )


@given(case=matrices(max_audio=6, max_texts=12, levels=4))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_ranks_are_expected_places_of_the_clip_and_of_the_best_caption(case):
    similarity, audio_of_text = case
    retrieval = rank_matrix(similarity, np.array(audio_of_text))
    of_texts = [placings_of(row.tolist(), [clip]) for row, clip in zip(similarity, audio_of_text, strict=True)]
    of_clips = [
        placings_of(similarity[:, audio].tolist(), [text for text, clip in enumerate(audio_of_text) if clip == audio])
        for audio in range(similarity.shape[1])
    ]
    for found, placings in (
        (retrieval.t2a_M.rank(), of_texts),
        (retrieval.best_a2t_N().best_rank(), of_clips),
    ):
        assert found == pytest.approx([sum(p * min(places) for p, places in options) for options in placings])


def test_figures_by_hand_without_ties():
    """Two clips with two captions each; texts 0, 2 belong to clip 0 and texts 1, 3 to clip 1."""
    similarity = np.array(
        [
            [0.9, 0.1],  # text 0 of clip 0: place 1
            [0.8, 0.2],  # text 1 of clip 1: place 2
            [0.3, 0.7],  # text 2 of clip 0: place 2
            [0.4, 0.6],  # text 3 of clip 1: place 1
        ]
    )
    # Clip 0 ranks the texts 0, 1, 3, 2: its own on places 1 and 4. Clip 1 ranks 2, 3, 1, 0: on 2 and 3.
    # One caption a clip (texts 0 and 1): clip 0 ranks 0, 1; clip 1 ranks 1, 0: both on place 1.
    owners = np.array([0, 1, 0, 1])
    paper = retrieval_metrics(similarity, owners, "paper")
    assert [paper[name] for name in FIGURES] == pytest.approx([50, 100, 100, 75, 100, 100, 100, 100])
    best = retrieval_metrics(similarity, owners, "best-of-5")
    clip_0, clip_1 = (1 / 1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2
    assert [best[name] for name in FIGURES[4:]] == pytest.approx([50, 100, 100, 100 * (clip_0 + clip_1) / 2])
    dcase = retrieval_metrics(similarity, owners, "dcase")
    assert [dcase[name] for name in FIGURES[4:]] == pytest.approx([25, 100, 100, 100 * (clip_0 + clip_1) / 2])
    assert [paper[name] for name in FIGURES[:4]] == [best[name] for name in FIGURES[:4]]


def test_place_11_does_not_count():
    """Ten clips score higher than that of text 0; every other text finds its own first."""
    n = 11
    similarity = np.eye(n)
    similarity[0] = np.arange(n)  # text 0: its clip 0 scores lowest of 11
    metrics = retrieval_metrics(similarity, np.arange(n), "paper")
    assert metrics["t2a_R10"] == metrics["t2a_mAP10"] == pytest.approx(100 * 10 / 11)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfect_model_scores_100(protocol):
    owners = np.repeat(np.arange(30), 5)
    metrics = retrieval_metrics(np.eye(30)[owners], owners, protocol)
    # The five captions of a clip tie for its places 1 to 5; under dcase only one of them can be first.
    assert metrics == pytest.approx(dict.fromkeys(FIGURES, 100.0) | ({"a2t_R1": 20.0} if protocol == "dcase" else {}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_collapsed_model_scores_as_chance(protocol):
    n, captions = 40, 5
    metrics = retrieval_metrics(np.zeros((n * captions, n)), np.repeat(np.arange(n), captions), protocol)
    harmonic = sum(1 / place for place in range(1, 11))
    for k in (1, 5, 10):
        assert metrics[f"t2a_R{k}"] == pytest.approx(100 * k / n)
        texts = n * captions
        chance = {
            "paper": k / n,
            "best-of-5": 1 - math.comb(texts - captions, k) / math.comb(texts, k),
            "dcase": k / texts,
        }
        assert metrics[f"a2t_R{k}"] == pytest.approx(100 * chance[protocol])
    assert metrics["t2a_mAP10"] == pytest.approx(100 * harmonic / n)
    if protocol == "paper":
        assert metrics["a2t_mAP10"] == pytest.approx(100 * harmonic / n)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_collapsed_embeddings_score_as_chance(protocol):
    """Equal directions of different lengths tie exactly at any position in a tile."""
    generator = np.random.default_rng(0)
    n, captions = 101, 3
    direction = generator.standard_normal(96).astype(np.float32)
    audio = direction * generator.uniform(0.5, 2, (n, 1)).astype(np.float32)
    text = direction * generator.uniform(0.5, 2, (n * captions, 1)).astype(np.float32)
    owners = np.repeat(np.arange(n), captions)
    found = figures(rank_embeddings(text, audio, owners, scores_per_tile=1000), protocol)
    assert found == pytest.approx(retrieval_metrics(np.zeros((n * captions, n)), owners, protocol))


def test_any_tile_size_gives_the_figures_of_the_whole_matrix():
    generator = np.random.default_rng(1)
    owners = np.repeat(np.arange(23), 4)
    audio = generator.standard_normal((23, 16)).astype(np.float32)
    text = (audio[owners] + 2 * generator.standard_normal((92, 16))).astype(np.float32)
    cosine = (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (
        audio / np.linalg.norm(audio, axis=1, keepdims=True)
    ).T
    for protocol in PROTOCOLS:
        whole = retrieval_metrics(cosine, owners, protocol)
        assert 5 < whole["t2a_R1"] < 95
        for scores_per_tile in (1, 100, 10**6):
            blocks = rank_embeddings(text, audio, owners, scores_per_tile)
            assert figures(blocks, protocol) == pytest.approx(whole)
    at_once = rank_embeddings(text, audio, owners)
    for scores_per_tile in (1, 7, 100, 500):
        tiled = rank_embeddings(text, audio, owners, scores_per_tile)
        for found, expected in ((tiled.t2a_top, at_once.t2a_top), (tiled.a2t_top, at_once.a2t_top)):
            assert found.place.tolist() == expected.place.tolist()
            assert found.score == pytest.approx(expected.score, abs=1e-6)


@pytest.mark.parametrize("alike", [1, 20, 200], ids=["all differ", "some alike", "all alike"])
def test_products_in_float32_give_the_places_of_products_in_float64(alike):
    """Vectors that differ by less than float32 products resolve, copies of them at other lengths, and others."""
    generator = np.random.default_rng(6)
    n, captions, width = 200, 2, 64
    kinds = generator.standard_normal((n // alike, width))
    noise = np.where(np.arange(n) % 3, 1e-7, 0.0)[:, None] * generator.standard_normal((n, width))
    audio = (kinds[np.arange(n) // alike] + noise).astype(np.float32) * 2.0 ** generator.integers(-3, 4, (n, 1))
    owners = np.repeat(np.arange(n), captions)
    text = (audio[owners] + 1.5 * generator.standard_normal((n // alike, width))[owners // alike]).astype(np.float32)
    text = text.astype(float)
    unit_text, unit_audio = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (text, audio))
    rough, cosine = unit_text.astype(np.float32) @ unit_audio.astype(np.float32).T, (unit_text @ unit_audio.T)
    expected = rank_matrix(cosine.astype(np.float32), owners)
    if alike > 1:  # otherwise the case would show nothing
        assert (rank_matrix(rough, owners).t2a_M.ahead != expected.t2a_M.ahead).any()
    for scores_per_tile in (1000, 10**6):
        found = rank_embeddings(text.astype(np.float32), audio.astype(np.float32), owners, scores_per_tile)
        for name in ("t2a_M", "a2t_M", "a2t_CN"):
            for count in ("ahead", "tied", "relevant_ahead", "relevant_tied"):
                places = getattr(getattr(found, name), count), getattr(getattr(expected, name), count)
                np.testing.assert_array_equal(*places, err_msg=f"{name}.{count}")
        for name in ("t2a_top", "a2t_top"):
            np.testing.assert_array_equal(getattr(found, name).place, getattr(expected, name).place, err_msg=name)


@pytest.mark.parametrize("noise", [0.5, 20])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_counts_are_those_of_plain_comparisons_for_good_and_bad_models(noise, kind):
    """With a good model most blocks of scores are skipped, with a bad one none."""
    generator = np.random.default_rng(5)
    owners = np.repeat(np.arange(150), 3)
    similarity = (noise * generator.standard_normal((450, 150)) + 5 * np.eye(150)[owners]).round(1).astype(kind)
    retrieval = rank_matrix(similarity, owners)
    own = similarity[np.arange(450), owners]
    for text in range(450):
        row, column, firsts = similarity[text], similarity[:, owners[text]], similarity[text % 3 :: 3, owners[text]]
        assert retrieval.t2a_M.ahead[text] == np.sum(row > own[text])
        assert retrieval.t2a_M.tied[text] == np.sum(row == own[text])
        assert retrieval.a2t_M.ahead[text] == np.sum(column > own[text])
        assert retrieval.a2t_M.tied[text] == np.sum(column == own[text])
        assert retrieval.a2t_CN.ahead[text % 3, owners[text]] == np.sum(firsts > own[text])
        assert retrieval.a2t_CN.tied[text % 3, owners[text]] == np.sum(firsts == own[text])


def test_captions_of_a_clip_may_be_scattered_and_differ_in_number():
    """Text 0 is the first caption of clip 1, and texts 1, 2, 3 are those of clip 0."""
    retrieval = rank_matrix(np.array([[0.0, 1], [1, 0], [2, 3], [0, 4]]), np.array([1, 0, 0, 0]))
    assert retrieval.text_of_audio_NC.tolist() == [[1, 2, 3], [0, 0, 0]]
    # Clip 0 among captions c: scores 1 > 0, 2 > 0, and 0 = 0. Clip 1 with text 0 (1.0): 1 > 0, then 1 < 3, 1 < 4.
    assert mean_over_captions(retrieval)["a2t_R1"] == pytest.approx(100 * (2 / 2 + 1 / 2 + 0.5 / 2) / 3)
    assert figures(retrieval, "paper")["a2t_R1"] == 100


def test_mean_over_captions_is_the_mean_over_reorderings():
    """Choice c is the figure under `paper` when caption c comes first."""
    generator = np.random.default_rng(2)
    n, captions = 12, 3
    similarity = generator.integers(0, 5, (n * captions, n)).astype(np.float32)
    owners = np.repeat(np.arange(n), captions)
    by_choice = []
    for choice in range(captions):
        order = np.argsort((np.arange(n * captions) % captions != choice), kind="stable")
        by_choice.append(retrieval_metrics(similarity[order], owners[order], "paper"))
    found = mean_over_captions(rank_matrix(similarity, owners))
    assert found == pytest.approx({name: np.mean([m[name] for m in by_choice]) for name in FIGURES[4:]})


def test_top_10_is_best_first_and_ties_keep_the_order_of_the_gallery():
    similarity = np.zeros((1, 25))
    similarity[0, [7, 3]] = 1
    similarity[0, 20] = 2
    retrieval = rank_matrix(np.vstack([similarity, np.tile(similarity, (24, 1))]), np.arange(25))
    places, scores = retrieval.t2a_top.place[0], retrieval.t2a_top.score[0]
    assert places.tolist() == [20, 3, 7, 0, 1, 2, 4, 5, 6, 8]
    assert scores.tolist() == [2, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert retrieval.t2a_M.rank()[:4].tolist() == [14.5, 14.5, 14.5, 2.5]


@pytest.mark.parametrize("levels", [30, 3000])
def test_first_places_are_exact_for_tiles_that_are_off_by_their_margin(levels):
    """Tiles are exact or off by up to 0.01, in any order; errors of BLAS are much smaller."""
    generator = np.random.default_rng(7)
    scores_QG = generator.integers(0, levels, (400, 60)) / levels
    top = Top(place=np.full((400, DEPTH), 60), score=np.full((400, DEPTH), -np.inf))

    def exact(queries, places):
        return scores_QG[queries, places]

    queries = slice(0, 400)
    for first in range(0, 60, 12):
        margin = float(generator.choice([0.0, 0.01]))
        tile = scores_QG[:, first : first + 12] + generator.uniform(-margin, margin, (400, 12))
        if not margin:
            _make_exact(top, queries, exact)
        asks, places = np.nonzero(tile > _floor(top, queries, tile, 1, margin)[:, None])
        _take_better(top, queries, asks, first + places, tile[asks, places], margin, exact)
    assert top.place.tolist() == np.argsort(-scores_QG, axis=1, kind="stable")[:, :DEPTH].tolist()


def test_intervals_contain_the_figure_and_narrow_with_more_clips():
    generator = np.random.default_rng(3)
    widths = []
    for n in (50, 800):
        owners = np.repeat(np.arange(n), 2)
        similarity = generator.standard_normal((2 * n, n)) + 2.5 * np.eye(n)[owners]
        retrieval = rank_matrix(similarity, owners)
        for protocol in PROTOCOLS:
            found, values = intervals(retrieval, protocol), figures(retrieval, protocol)
            assert all(low <= values[name] <= high for name, (low, high) in found.items())
        assert intervals(retrieval, "paper") == intervals(retrieval, "paper")
        low, high = intervals(retrieval, "paper")["a2t_R10"]
        share = figures(retrieval, "paper")["a2t_R10"] / 100
        # One query a clip: the bootstrap of a share is the binomial one, 1.96 standard errors to each side.
        assert high - low == pytest.approx(2 * 196 * math.sqrt(share * (1 - share) / n), rel=0.15)
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_random_scores_of_clothos_size_are_near_chance():
    similarity = np.random.default_rng(4).standard_normal((5225, 1045), dtype=np.float32)
    found = retrieval_metrics(similarity, np.repeat(np.arange(1045), 5), "paper")
    assert found["t2a_R10"] == pytest.approx(100 * 10 / 1045, abs=0.5)


def test_published_figures_are_multiples_of_one_over_the_query_counts():
    """Audio -> text recalls of the paper's Table 1 are whole numbers of 1,045 (Clotho) and 883 (AudioCaps) queries.

    975 published AudioCaps clips do not fit: the reason why `paper` takes one caption a clip and 883 clips.
    """

    def fits(percent: float, queries: int) -> bool:
        nearest = round(percent * queries / 100)
        return any(abs(100 * hits / queries - percent) < 0.0101 for hits in (nearest - 1, nearest, nearest + 1))

    rows = list(csv.DictReader(PAPER.open()))
    recalls = {
        target: [float(row[f"a2t_R{k}"]) for row in rows if row["target"] == target for k in (1, 5, 10)]
        for target in ("clotho", "audiocaps")
    }
    assert all(fits(value, 1045) for value in recalls["clotho"])
    assert all(fits(value, 883) for value in recalls["audiocaps"])
    assert not all(fits(value, 975) for value in recalls["audiocaps"])


@pytest.mark.parametrize(
    ("similarity", "owners", "message"),
    [
        (np.array([[0.0, np.nan], [0, 0]]), [0, 1], "similarity of text 0 and clip 1 is nan"),
        (np.array([[0.0, 0], [np.inf, 0]]), [0, 1], "similarity of text 1 and clip 0 is inf"),
        (np.zeros((2, 2)), [0, 2], "text 1 belongs to clip 2, but the clips are 0 to 1"),
        (np.zeros((2, 2)), [0, -1], "text 1 belongs to clip -1"),
        (np.zeros((2, 3)), [0, 1], "clip 2 has no text"),
        (np.zeros((0, 3)), [], "0 texts and 3 clips"),
        (np.zeros((3, 0)), [0, 0, 0], "3 texts and 0 clips"),
        (np.zeros((3, 2)), [0, 1], "expected 3 indices of clips for 3 texts"),
        (np.zeros(3), [0, 1, 2], "expected texts x clips"),
    ],
)
def test_unusable_input_is_named(similarity, owners, message):
    with pytest.raises(PipelineError, match=message):
        retrieval_metrics(similarity, np.array(owners, int), "paper")


def test_unknown_protocol_is_named():
    with pytest.raises(PipelineError, match="'best' is unknown; choose one of paper, best-of-5, dcase"):
        retrieval_metrics(np.eye(2), np.arange(2), "best")


@pytest.mark.parametrize(
    ("frames", "windows", "starts"),
    [
        (100, "mean", [0]),
        (40, "center", [0]),
        (200, "mean", [0, 100]),
        (201, "mean", [0, 50, 101]),
        (450, "mean", [0, 88, 175, 262, 350]),
        (450, "first", [0]),
        (451, "center", [175]),
    ],
)
def test_windows_of_a_clip(frames, windows, starts):
    assert window_starts(frames, 100, windows) == starts


@given(frames=st.integers(1, 5000), window_frames=st.integers(1, 500))
@settings(deadline=None, derandomize=True)
def test_mean_windows_cover_every_frame_evenly(frames, window_frames):
    starts = window_starts(frames, window_frames, "mean")
    steps = np.diff(starts)
    assert starts[0] == 0
    assert max(starts) + window_frames >= frames
    assert all(0 < step <= window_frames for step in steps)
    assert steps.size == 0 or steps.max() - steps.min() <= 1
    assert starts[-1] == max(0, frames - window_frames)
