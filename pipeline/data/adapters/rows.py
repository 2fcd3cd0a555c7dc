"""The row that every adapter yields, and how its captions and times are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import PipelineError

CAPTION_COLUMN = re.compile(r"caption_(\d+)")
"""Matches the numbered columns of captions, in lists and in Parquet files."""
CAPTION_COLUMNS = ("captions", "caption", "text")
"""Columns of captions where none is numbered; of several the first counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One clip as its publisher lists it."""

    source_name: str
    """The publisher's name of the clip; unique in a split, a repeated name is a duplicate."""
    path: str | None = None
    """The audio file found for it, or the file that it is a member of."""
    member: str | None = None
    """Where in that file its bytes lie, as `pipeline.data.containers` writes it; None if the clip is a whole file."""
    reason: str | None = None
    """Why it cannot be used: `missing_file`, `ambiguous_file`, `duplicate` or `bad_stretch`."""
    source_id: str | None = None
    """Identity of the recording it was cut from: YouTube or Freesound id."""
    start_s: float | None = None
    """Where in that recording the clip begins."""
    captions: tuple[str, ...] = ()
    """Without empty ones, in the publisher's order."""
    stretch_s: tuple[float, float] | None = None
    """Where in the file the clip begins and ends, to the millisecond; None for the whole file."""
    row: int | None = None
    """Line of the publisher's list, the header being line 1."""


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions that are not empty, white space collapsed."""
    return tuple(text for text in (" ".join(caption.split()) for caption in captions) if text)


def seconds(text: str, place: str, what: str = "start time") -> float:
    """A time as a number; PipelineError names the place where it stands."""
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise PipelineError(f'{place}: {what} "{text}" is not a number of seconds')
