"""The result of a search in recordings as lines for a terminal, and for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline.errors import printable
from pipeline.evaluation.folders.search import FolderSearch

_SHOWN = 20
"""Recordings that were not searched, and are named."""


def as_json(result: FolderSearch) -> dict[str, Any]:
    """Return the result as JSON values."""
    return asdict(result)


def render(result: FolderSearch) -> str:
    """Return a line per hit, what was searched, and the recordings that were not."""
    lines = [
        f"{hit.rank:4d}  {hit.score:6.3f}  {clock(hit.start_s)} - {clock(hit.end_s)}  {printable(hit.file)}"
        for hit in result.hits
    ]
    if not lines:
        lines = ["nothing stands out"]
    lines += ["", summary(result)]
    if result.unsearched:
        lines += ["", f"not searched, or not to the end: {reasons(result)}"]
        for found in result.unsearched[:_SHOWN]:
            part = f", searched up to {clock(found.searched_s)}" if found.searched_s else ""
            lines.append(f"  {printable(found.file)}: {printable(found.detail)}{part}")
        if len(result.unsearched) > _SHOWN:
            lines.append(f"  and {len(result.unsearched) - _SHOWN} more; --json lists all")
    return "\n".join(lines)


def summary(result: FolderSearch) -> str:
    """Return what was searched, in words."""
    files = f"{result.files:,} recording{'s' * (result.files != 1)}"
    return f"searched {files}, {result.duration_s / 3600:.2f} hours, {result.windows:,} windows"


def reasons(result: FolderSearch) -> str:
    """Return the number of recordings that were not searched, by reason."""
    counts = Counter(found.reason.replace("_", " ") for found in result.unsearched)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds with a tenth: `1:02:03.4`."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
