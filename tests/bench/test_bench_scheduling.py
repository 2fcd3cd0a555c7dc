"""The arithmetic of the scheduling benchmark's report."""

from bench.scheduling import seconds_by_layer


def test_every_second_counts_once_for_the_first_layer_that_covers_it():
    layers = {"commands": [(2.0, 4.0), (3.0, 5.0)], "jobs": [(1.0, 6.0)], "queue": [(0.5, 1.0), (5.5, 12.0)]}
    seconds = seconds_by_layer((0.0, 10.0), layers, "rest")
    assert seconds == {"commands": 3.0, "jobs": 2.0, "queue": 4.5, "rest": 0.5}
