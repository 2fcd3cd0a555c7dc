"""The file `outcome.txt`, in which the stage `train` records how a training of the sweep ended (`--outcome`)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import read_checked_text

FINISHED = "finished"


def read_divergence(path: Path) -> str | None:
    """Return the sentence that describes how a training diverged; None if it finished.

    Raises:
        PipelineError: the file is missing, empty or not text.
    """
    outcome = read_checked_text(path, "train").strip()
    if not outcome:
        raise PipelineError(f"{path}: is empty; make it again with the stage train")
    return None if outcome == FINISHED else outcome
