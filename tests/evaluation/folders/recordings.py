"""A folder of short recordings for the tests of the search in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
WINDOW_S, HOP_S = 2.56, 1.28
"""Of the mini."""


def tone(seconds: float, hertz: float = 440.0, seed: int = 0) -> np.ndarray:
    """A tone with noise."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return 0.3 * np.sin(2 * np.pi * hertz * times) + np.random.default_rng(seed).normal(0, 0.02, len(times))


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **options)
    return path


def field(folder: Path) -> Path:
    """Three recordings: 9 s of WAV, 6 s of FLAC in a subfolder, and 0.1 s."""
    write(folder / "a.wav", np.concatenate([tone(4, 300), tone(5, 2500, 1)]))
    write(folder / "sub" / "b.flac", tone(6, 900, 2))
    write(folder / "short.wav", tone(0.1, 700, 3))
    return folder
