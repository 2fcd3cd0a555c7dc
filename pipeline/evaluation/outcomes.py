"""How a training of the sweep ended: the file `outcome.txt` that the stage `train` writes with `--outcome`."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import read_checked_text

FINISHED = "finished"


def read_divergence(path: Path) -> str | None:
    """The sentence that says how a training diverged; None for one that finished.

    Raises:
        PipelineError: the file is missing, empty or no text.
    """
    outcome = read_checked_text(path, "train").strip()
    if not outcome:
        raise PipelineError(f"{path}: is empty; make it again with the stage train")
    return None if outcome == FINISHED else outcome
