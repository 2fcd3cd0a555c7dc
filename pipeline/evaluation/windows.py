"""The windows of a test clip for a model of fixed window length."""

from __future__ import annotations

import numpy as np

BATCH_SIZE = 64
"""Windows or captions per batch."""

WINDOWS = ("mean", "first", "center")
"""Ways to take windows from a longer clip; see `window_starts`."""


def window_starts(frames: int, window_frames: int, windows: str) -> list[int]:
    """Return the first frames of the windows of a clip of `frames` frames, in order.

    `first` takes the clip's beginning and `center` its middle. `mean` covers the whole clip with as few windows as
    possible, evenly spaced, so neighbours may overlap. A clip no longer than a window has one window that starts at 0;
    `fit_window` fills it.
    """
    if windows not in WINDOWS:
        raise ValueError(f"windows {windows!r}; choose one of {', '.join(WINDOWS)}")
    spare = max(0, frames - window_frames)
    if windows == "first":
        return [0]
    if windows == "center":
        return [spare // 2]
    count = max(1, -(-frames // window_frames))
    return np.linspace(0, spare, count).round().astype(int).tolist()
