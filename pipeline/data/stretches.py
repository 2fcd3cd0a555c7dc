"""Stretches of a recording of any length, decoded once from beginning to end, in the memory of a few of them.

A stretch has the samples of a file that holds the stretch alone, bit for bit: its frames of the recording are
resampled by themselves. So a stretch depends neither on the stretches around it nor on where decoding began.
"""

# S = samples of a block, C = channels

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.data.audio import Clip
from pipeline.data.decoding import AudioStream, Source, open_audio, source_name
from pipeline.data.unusable import UnusableAudio

logger = logging.getLogger(__name__)

_SEEK_FROM_S = 5.0  # a shorter gap is decoded: a block is about as long, and FLAC looks for the frame


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a recording."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a recording as the models take it."""

    start_s: float
    end_s: float
    """The recording's end, where it ends within the window."""
    samples_S: NDArray[np.int16]
    """One channel at the rate asked for."""


@dataclass(slots=True)
class Piece:
    """A stretch that was decoded, up to its end or to that of the recording."""

    stretch: Stretch
    clip: Clip
    first: int
    """Frame of the recording, as `end`."""
    end: int
    error: UnusableAudio | None = None
    """Why its samples cannot be used."""

    @property
    def missing(self) -> int:
        """Frames of the recording that are still to be added."""
        return self.end - self.first - self.clip.decoded

    def add(self, block_SC: NDArray[np.float32], position: int) -> None:
        """Append the part of a block that belongs to the piece. position: the block's first frame."""
        if self.error is None and self.missing > 0:
            part_SC = block_SC[max(0, self.first - position) : self.end - position]
            try:
                self.clip.add(part_SC)
                if self.missing == 0:
                    self.clip.end()
            except UnusableAudio as error:
                self.error = error


def grid(length_s: float, hop_s: float) -> Iterator[Stretch]:
    """Yield the stretches of one length that begin every `hop_s`, without end."""
    return (Stretch(number * hop_s, number * hop_s + length_s) for number in count())


def read_windows(
    source: Source, *, length_s: float, hop_s: float, sample_rate_hz: int, channels: str = "mean"
) -> Iterator[Window]:
    """Yield the windows of a recording that begin every `hop_s`; the last ones may be shorter than `length_s`.

    A window whose samples are not finite is left out with a warning. Raises as `read_stretches`.
    """
    stretches = grid(length_s, hop_s)
    for piece in read_stretches(source, stretches, sample_rate_hz=sample_rate_hz, channels=channels):
        if piece.error is not None:
            logger.warning("%s from %g s: %s", source_name(source), piece.stretch.start_s, piece.error)
            continue
        end_s = piece.stretch.end_s
        if piece.missing:
            end_s = piece.stretch.start_s + piece.clip.decoded / piece.clip.source_sample_rate_hz
        yield Window(piece.stretch.start_s, end_s, piece.clip.recording().samples_S)


def read_stretches(
    source: Source, stretches: Iterable[Stretch], *, sample_rate_hz: int, channels: str = "mean"
) -> Iterator[Piece]:
    """Yield stretches of a recording in their order, which is that of their starts; they may overlap.

    Stretches that begin after the recording's end are not yielded. Decoding seeks over gaps, where the format allows
    that, and stops after the last stretch. Memory holds the pieces that overlap.

    Raises UnusableAudio, as `decoding.open_audio`, once the pieces before the fault were yielded: a file that is cut
    off is read up to the break. Raises PipelineError where the disk fails.
    """
    with open_audio(source, up_to_break=True) as audio:
        upcoming = _pieces(audio, stretches, sample_rate_hz, channels)
        coming = next(upcoming, None)
        pieces: deque[Piece] = deque()
        position = 0  # of the next block
        least_gap = _SEEK_FROM_S * audio.sample_rate_hz
        while pieces or coming is not None:
            if not pieces and coming is not None and audio.seek is not None and coming.first - position > least_gap:
                position = audio.seek(coming.first)
            block_SC = next(audio.blocks, None)
            if block_SC is None:
                break
            while coming is not None and coming.first < position + len(block_SC):
                pieces.append(coming)
                coming = next(upcoming, None)
            for piece in pieces:
                piece.add(block_SC, position)
            position += len(block_SC)
            while pieces and (pieces[0].missing <= 0 or pieces[0].error is not None):
                yield pieces.popleft()
        for piece in pieces:  # the recording ends within them
            if piece.missing > 0 and piece.error is None:
                piece.clip.end()
            yield piece


def _pieces(audio: AudioStream, stretches: Iterable[Stretch], sample_rate_hz: int, channels: str) -> Iterator[Piece]:
    """The stretches, to be filled."""
    for stretch in stretches:
        first, end = (round(second * audio.sample_rate_hz) for second in (stretch.start_s, stretch.end_s))
        yield Piece(stretch, Clip(audio, sample_rate_hz, channels), first, end)
