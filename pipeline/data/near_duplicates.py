"""Find clips that share a stretch of sound by spectral fingerprints, even if it was re-encoded or cut.

After Haitsma and Kalker, "A highly robust audio fingerprinting system" (ISMIR 2002): 33 bands from 300 to 2,000 Hz,
frames of 0.37 s every 11.6 ms, one bit per pair of neighbouring bands. The bit is set if the energy of the
lower band minus that of the upper grew since the previous frame. Two stretches are the same if few bits differ.

Shapes: S = samples, F = frames, K = bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 5_512.5
FRAME, HOP = 2_048, 64  # samples at RATE_HZ: 0.37 s, 11.6 ms
HOP_S = HOP / RATE_HZ
BANDS = 33
LEAST_FRAMES = 128
"""Frames that both clips must share: 1.5 s, after the 0.37 s of the first frame."""
MOST_DIFFERING = 0.35
"""Share of differing bits up to which two stretches are the same; the threshold of the paper."""
COMMON = 64
"""Fingerprints of more held-out frames than this are skipped: they come from silence and steady tones."""
TRIED = 8
"""Alignments compared per clip, those with the most matching frames."""

_EDGES = np.searchsorted(np.fft.rfftfreq(FRAME, 1 / RATE_HZ), 300 * (2_000 / 300) ** (np.arange(BANDS + 1) / BANDS))


def fingerprint_of(samples_S: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.uint32]:
    """Return 32 bits per frame; empty for a sound shorter than two frames."""
    slow_S = soxr.resample(samples_S.astype(np.float32), sample_rate_hz, RATE_HZ, quality="HQ")
    frames = (len(slow_S) - FRAME) // HOP + 1
    if frames < 2:
        return np.empty(0, np.uint32)
    windows_FS = np.lib.stride_tricks.sliding_window_view(slow_S, FRAME)[::HOP]
    window_S = np.hanning(FRAME).astype(np.float32)
    energy_FK = np.empty((frames, BANDS), np.float32)
    for first in range(0, frames, 512):  # bounds the memory for hours of sound
        spectrum = np.fft.rfft(windows_FS[first : first + 512] * window_S)
        power = spectrum.real**2 + spectrum.imag**2
        energy_FK[first : first + 512] = np.add.reduceat(power, _EDGES[:-1], axis=1)[:, :BANDS]
    steps_FK = np.diff(np.diff(energy_FK, axis=1), axis=0) < 0
    return (steps_FK.astype(np.uint32) << np.arange(BANDS - 1, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Two clips that share a stretch of sound."""

    clip: int
    """Index of the clip in the FingerprintIndex."""
    differing: float
    """Share of bits that differ over the stretch: 0 for the same samples, 0.5 for unrelated sounds."""
    offset_s: float
    """Start of the indexed clip in the other one; negative if it begins earlier."""
    shared_s: float


class FingerprintIndex:
    """The fingerprints of some clips, searchable by any frame; it takes 12 bytes per frame, 1 kB per second."""

    def __init__(self, fingerprints: Iterable[NDArray[np.uint32]]) -> None:
        parts = list(fingerprints)
        self._frames = np.concatenate([np.empty(0, np.uint32), *parts])
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        self._order = np.argsort(self._frames, kind="stable").astype(np.int32)
        self._sorted = self._frames[self._order]

    def matches(self, frames: NDArray[np.uint32]) -> Iterator[Match]:
        """Yield the indexed clips that share a stretch with a clip, each with its best alignment."""
        first, end = (np.searchsorted(self._sorted, frames, side) for side in ("left", "right"))
        counts = np.where(end - first <= COMMON, end - first, 0)
        if not counts.any():
            return
        # Positions of all indexed frames that equal a frame of this clip: the runs first[i], first[i] + 1, ... joined.
        run = np.repeat(np.arange(len(frames)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self._order[first[run] + within].astype(np.int64)
        clips = np.searchsorted(self._starts, places, "right") - 1
        found, votes = np.unique(np.stack([clips, places - run]), axis=1, return_counts=True)
        best: dict[int, Match] = {}
        for clip, alignment in found[:, np.argsort(-votes, kind="stable")[:TRIED]].T.tolist():
            match = self._compare(frames, clip, alignment)
            if match is not None and (clip not in best or match.differing < best[clip].differing):
                best[clip] = match
        yield from best.values()

    def _compare(self, frames: NDArray[np.uint32], clip: int, alignment: int) -> Match | None:
        """Compare an indexed clip with a clip that begins at position `alignment` of the index; None if they differ."""
        first = max(int(self._starts[clip]), alignment)
        end = min(int(self._starts[clip + 1]), alignment + len(frames))
        if end - first < LEAST_FRAMES:
            return None
        differing = np.bitwise_count(self._frames[first:end] ^ frames[first - alignment : end - alignment])
        share = float(differing.mean()) / 32
        if share > MOST_DIFFERING:
            return None
        return Match(
            clip=clip,
            differing=round(share, 4),
            offset_s=round((int(self._starts[clip]) - alignment) * HOP_S, 2),
            shared_s=round((end - first) * HOP_S + FRAME / RATE_HZ, 2),
        )
