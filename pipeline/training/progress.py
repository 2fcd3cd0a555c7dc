"""A progress bar in a log file."""

from __future__ import annotations

import io
import sys


class LinePerReport(io.TextIOBase):
    """A file for tqdm that writes each of its reports to stderr as a line: carriage returns fill one line of a log."""

    def write(self, text: str) -> int:
        report = text.strip()
        if report:
            sys.stderr.write(f"{report}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
