"""Moments in, R1 and mAP out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.moment_metrics import THRESHOLDS, average_precisions, moment_figures, overlaps, tied_orders
from pipeline.evaluation.moments import Moment


def answer(*moments: tuple[float, float, float]) -> list[Moment]:
    return [Moment(start_s=start, end_s=end, score=score) for start, end, score in moments]


def figures(moments: list[Moment], *true: tuple[float, float]) -> list[float]:
    return moment_figures(moments, np.array(true, float)).tolist()


def test_overlaps_by_hand():
    """[0, 10] and [5, 15] share 5 of 15 s; [0, 10] and [3, 10] share 7 of 10; [20, 21] touches nothing."""
    found = overlaps(np.array([[0.0, 10.0], [20.0, 21.0]]), np.array([[5.0, 15.0], [3.0, 10.0], [21.0, 22.0]]))
    assert found == pytest.approx(np.array([[1 / 3, 0.7, 0], [0, 0, 0]]))


def test_an_iou_of_seven_tenths_counts_at_any_time():
    for start in np.arange(0, 50, 0.3):
        assert overlaps(np.array([[start, start + 1.4]]), np.array([[start, start + 2.0]]))[0, 0] >= 0.7


def test_a_query_by_hand():
    """Two true moments. IoU of the answers: 0.6 with the first, nothing, 0.8 with the second, 0.8 with it again.

    At 0.5 the right ones are at places 1 and 3: (1 + 2/3) / 2. At 0.75 and 0.8 only the third: 1/3 / 2.
    At 0.55 and 0.6 as at 0.5, at 0.65 and 0.7 as at 0.75, from 0.85 on none.
    """
    moments = answer((0, 6, 0.9), (50, 60, 0.8), (20, 28, 0.7), (20, 28, 0.6))
    found = figures(moments, (0, 10), (20, 30))
    assert found == pytest.approx([1, 0, 5 / 6, 1 / 6, (3 * 5 / 6 + 4 / 6) / 10])


def test_one_moment_is_not_right_for_two_true_ones():
    assert figures(answer((0, 10, 1)), (0, 10), (0, 10))[2] == pytest.approx(0.5)


def test_precision_is_the_highest_at_this_or_a_higher_recall():
    """Right at places 2 and 3: the precisions 1/2 and 2/3 become 2/3 and 2/3."""
    moments = answer((50, 51, 0.9), (0, 10, 0.8), (20, 30, 0.7))
    assert figures(moments, (0, 10), (20, 30))[2] == pytest.approx(2 / 3)


def test_only_ten_moments_count_for_precision():
    wrong = answer(*((100 + n, 100.5 + n, 1 - n / 100) for n in range(10)))
    assert figures([*wrong, *answer((0, 10, 0.1))], (0, 10)) == [0] * 5
    assert figures([*wrong[:9], *answer((0, 10, 0.1))], (0, 10))[2] == pytest.approx(1 / 10)


def test_no_answer_scores_0():
    assert figures([], (0, 10)) == [0] * 5


def test_a_perfect_answer_scores_1():
    assert figures(answer((3, 4.5, 0.2), (10, 20, 0.1)), (10, 20), (3, 4.5)) == [1] * 5


def test_a_tie_gives_the_mean_over_both_orders():
    """The right one is first in half of the orders: R1 1/2, precision (1 + 1/2) / 2."""
    moments = answer((0, 10, 0.5), (40, 50, 0.5))
    assert figures(moments, (0, 10)) == pytest.approx([1 / 2, 1 / 2, 3 / 4, 3 / 4, 3 / 4])


def test_many_tied_moments_score_as_chance():
    """Twenty moments, one right: first with a chance of 1/20, and the mean of 1 / place within ten."""
    moments = answer(*((10 * n, 10 * n + 9, 0.5) for n in range(20)))
    found = figures(moments, (0, 9))
    assert found[0] == pytest.approx(1 / 20, abs=0.03)
    assert found[2] == pytest.approx(np.mean([1 / place if place <= 10 else 0 for place in range(1, 21)]), abs=0.03)
    assert figures(moments[::-1], (0, 9))[0] == pytest.approx(1 / 20, abs=0.03)


def test_orders_are_by_falling_score():
    orders = [tuple(order) for order in tied_orders(np.array([0.1, 0.5, 0.5, 0.9]))]
    assert orders == [(3, 1, 2, 0), (3, 2, 1, 0)]
    drawn = list(tied_orders(np.array([0.1, *[0.5] * 9])))
    assert len(drawn) == 500
    assert all(order[-1] == 0 and sorted(order) == list(range(10)) for order in drawn)


# --- against an implementation that counts single seconds -----------------------------------------------------------


def plain_iou(one: tuple[int, int], other: tuple[int, int]) -> float:
    seconds = [set(range(*span)) for span in (one, other)]
    return len(seconds[0] & seconds[1]) / len(seconds[0] | seconds[1])


def plain_precision(moments: list[tuple[int, int]], true: list[tuple[int, int]], threshold: float) -> float:
    """Area below the interpolated curve, at every recall that is reached."""
    left, hits, points = list(true), 0, []
    for place, moment in enumerate(moments[:10], start=1):
        near = max(left, key=lambda span: plain_iou(moment, span), default=None)
        if near is not None and plain_iou(moment, near) >= threshold:
            left.remove(near)
            hits += 1
        points.append((hits / len(true), hits / place))
    recalls = sorted({recall for recall, _ in points if recall > 0})
    steps = zip(recalls, [0.0, *recalls], strict=False)
    return sum((up - down) * max(p for recall, p in points if recall >= up) for up, down in steps)


def test_random_answers_match_the_plain_implementation():
    generator = np.random.default_rng(3)
    nonzero = 0
    for _ in range(300):
        starts = generator.integers(0, 30, 14)
        spans = [(int(start), int(start + length)) for start, length in np.c_[starts, generator.integers(1, 15, 14)]]
        moments, true = spans[: generator.integers(1, 13)], list(dict.fromkeys(spans[generator.integers(9, 13) :]))
        iou = overlaps(np.array(moments, float), np.array(true, float))[:10]
        found = average_precisions(iou)
        assert found == pytest.approx([plain_precision(moments, true, threshold) for threshold in THRESHOLDS])
        nonzero += found.any()
        scored = answer(*((*span, -place) for place, span in enumerate(moments)))
        best = max(plain_iou(moments[0], span) for span in true)
        assert figures(scored, *true)[:2] == [best >= 0.5, best >= 0.7]
    assert nonzero > 100
