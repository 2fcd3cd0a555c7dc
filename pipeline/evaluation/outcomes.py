"""The file `outcome.txt`, in which the stage `train` records how a training of the sweep ended (`--outcome`)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import PipelineError

FINISHED = "finished"


def read_divergence(path: Path) -> str | None:
    """Return the sentence that describes how a training diverged; None if it finished.

    Raises:
        PipelineError: the file is missing, empty or not text.
    """
    try:
        outcome = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); make it again with the stage train") from error
    if not outcome:
        raise PipelineError(f"{path}: is empty; make it again with the stage train")
    return None if outcome == FINISHED else outcome
