"""Intervals of shares."""

from __future__ import annotations

import math

_Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def wilson_interval(hits: float, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score method (J. American Statistical Association 22, 1927).

    It assumes independent clips; it is too narrow for clips cut from one recording.
    """
    share, z2 = hits / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
