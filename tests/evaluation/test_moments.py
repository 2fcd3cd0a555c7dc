"""Neighbouring windows merge into moments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.moments import merge_windows


def windows(count: int, length_s: float = 4.0, hop_s: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    starts = np.arange(count) * hop_s
    return starts, starts + length_s


def spans(moments) -> list[tuple[float, float]]:
    return [(moment.start_s, moment.end_s) for moment in moments]


def test_short_sound_in_two_windows_is_where_they_overlap():
    """Windows 0-4, 2-6, 4-8, ...: those from 4 and from 6 s contain 6-8 s."""
    first = merge_windows(*windows(8), [0, 0, 0.9, 0.8, 0, 0, 0, 0])[0]
    assert (first.start_s, first.end_s, first.score) == (6.0, 8.0, pytest.approx(0.9))


def test_sound_of_a_window_has_the_length_of_a_window():
    """The curve is 0.25, 0.75, 0.75, 0.25: 0.6 of its height is 0.45."""
    moments = merge_windows(*windows(8), [0, 0, 0.5, 1, 0.5, 0, 0, 0])
    assert spans(moments)[0] == (6.0, 10.0) and moments[0].score == 1


def test_long_sound_is_one_moment():
    moments = merge_windows(*windows(10), [0.1, 0, 0, 0.8, 0.9, 0.85, 0.8, 0, 0.1, 0], baseline=0)
    assert spans(moments)[0] == (8.0, 14.0)


def test_two_sounds_are_two_moments_best_first():
    scores = np.array([0, 0.5, 0.5, 0, 0, 0, 0, 0.9, 0.8, 0, 0, 0])
    moments = merge_windows(*windows(12), scores, may_begin_W=scores >= 0.5)
    assert spans(moments) == [(16.0, 18.0), (4.0, 6.0)]
    assert [moment.score for moment in moments] == [0.9, 0.5]


def test_a_gap_ends_a_moment():
    starts = np.array([0.0, 4.0, 20.0, 24.0])
    moments = merge_windows(starts, starts + 4, [1, 1, 1, 1], baseline=0)
    assert spans(moments) == [(0.0, 8.0), (20.0, 28.0)]


def test_one_window_is_one_moment():
    assert spans(merge_windows([0], [0.1], [0.3])) == [(0.0, 0.1)]


def test_no_windows_give_no_moment():
    assert merge_windows([], [], []) == []


def test_equal_scores_are_one_moment():
    assert spans(merge_windows(*windows(5), [0.2] * 5)) == [(0.0, 12.0)]


def test_times_that_differ_by_rounding_leave_no_sliver():
    starts = np.arange(40) * 0.1
    moments = merge_windows(starts, starts + 0.3, np.r_[np.zeros(20), 1, np.zeros(19)], baseline=0)
    assert min(moment.end_s - moment.start_s for moment in moments) > 0.09


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.floats(-1, 1)), min_size=1, max_size=30))
def test_moments_do_not_overlap_and_lie_inside_the_windows(drawn):
    starts, lengths, scores = (np.array(column, float) for column in zip(*drawn, strict=True))
    moments = merge_windows(starts, starts + lengths, scores)
    ordered = sorted(spans(moments))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))
    for start, end in ordered:
        times = np.arange(start, end) + 0.5
        assert all(((starts <= time) & (time <= starts + lengths)).any() for time in times)
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)
    assert moments[0].score == scores.max()
