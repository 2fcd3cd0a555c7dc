"""Hits as text files: CSV, label tracks of Audacity, selection tables of Raven.

Audacity and Raven open one recording at a time, so each recording with hits has one file, named after it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import printable
from pipeline.evaluation.folders.search import Hit
from pipeline.files import write_atomically

LABEL_TRACK, SELECTION_TABLE = ".labels.txt", ".selections.txt"
"""Endings of label tracks and selection tables, after the recording's name."""
_LONGEST_NAME = 200
"""Bytes of a file name: 255 are allowed, and a temporary name is longer than the last one."""
_RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "File Offset (s)", "Query", "Score"),
)
"""Raven needs the first seven; it finds the recording by `Begin Path`, and shows the last two as annotations."""


def write_csv(hits: Sequence[Hit], path: Path) -> None:
    """Write all hits as UTF-8 CSV; bytes of file names that are not UTF-8 become `\\udcXX`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "score", "file", "start_s", "end_s"])
    writer.writerows([hit.rank, f"{hit.score:.6f}", hit.file, f"{hit.start_s:.3f}", f"{hit.end_s:.3f}"] for hit in hits)
    _write(text.getvalue(), path)


def write_label_tracks(hits: Sequence[Hit], query: str, folder: Path) -> list[Path]:
    """Write a label track of Audacity per recording with hits; return their paths.

    A line is start, end and label, separated by tabs.
    """

    def track(found: Sequence[Hit]) -> str:
        label = printable(query)  # without tabs and line breaks, which would end the label
        lines = (f"{hit.start_s:.6f}\t{hit.end_s:.6f}\t{hit.score:.3f} {label}\n" for hit in found)
        return "".join(lines)

    return _write_per_recording(hits, folder, LABEL_TRACK, track)


def write_selection_tables(
    hits: Sequence[Hit], query: str, recordings: Path, highest_hz: float, folder: Path
) -> list[Path]:
    """Write a selection table of Raven per recording with hits; return their paths.

    Args:
        hits: moments of recordings.
        query: text or file that was searched.
        recordings: folder of the recordings.
        highest_hz: the highest frequency that the model gets, upper edge of the selections.
        folder: to write to.
    """

    def table(found: Sequence[Hit]) -> str:
        rows = [_RAVEN_COLUMNS]
        for number, hit in enumerate(found, start=1):
            path = printable(os.path.abspath(recordings / hit.file))
            times = (f"{hit.start_s:.6f}", f"{hit.end_s:.6f}")
            place = (str(number), "Spectrogram 1", "1", *times, "0.0", f"{highest_hz:.1f}", path, times[0])
            rows.append((*place, printable(query), f"{hit.score:.4f}"))
        return "".join("\t".join(row) + "\n" for row in rows)

    return _write_per_recording(hits, folder, SELECTION_TABLE, table)


def _write_per_recording(
    hits: Sequence[Hit], folder: Path, ending: str, text_of: Callable[[Sequence[Hit]], str]
) -> list[Path]:
    """Write a file for each recording, whose hits are ordered by time."""
    by_file: dict[str, list[Hit]] = {}
    for hit in hits:
        by_file.setdefault(hit.file, []).append(hit)
    paths = []
    for name, found in by_file.items():
        *parents, last = name.split("/")
        path = folder.joinpath(*parents, _shortened(last) + ending)
        _write(text_of(sorted(found, key=lambda hit: hit.start_s)), path)
        paths.append(path)
    return paths


def _shortened(name: str) -> str:
    """The name if it leaves room for an ending, otherwise its beginning and a digest of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return os.fsdecode(encoded[: _LONGEST_NAME - len(digest) - 1]) + "~" + digest


def _write(text: str, path: Path) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
