"""The windows of a test clip for a model of fixed window length: the same every time."""

from __future__ import annotations

import numpy as np

BATCH_SIZE = 64
"""Windows, or captions, that are embedded at once."""

WINDOWS = ("mean", "first", "center")
"""Ways to take windows from a clip that is longer than one; `window_starts` says what each does."""


def window_starts(frames: int, window_frames: int, windows: str) -> list[int]:
    """First frames of the windows of a clip of `frames` frames, in order.

    `first` takes the clip's beginning and `center` its middle. `mean` covers all of it: as few windows as reach from
    the first frame to the last, evenly spaced, so neighbours overlap where the clip is no multiple of the window.
    A clip no longer than a window has the one window that starts at 0; `fit_window` fills it.
    """
    if windows not in WINDOWS:
        raise ValueError(f"windows {windows!r}; one of {', '.join(WINDOWS)} was expected")
    spare = max(0, frames - window_frames)
    if windows == "first":
        return [0]
    if windows == "center":
        return [spare // 2]
    count = max(1, -(-frames // window_frames))
    return np.linspace(0, spare, count).round().astype(int).tolist()
