"""One module a rule of the workflow, each a command: `python -m pipeline.stages.NAME --help`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError


def run(main: Callable[[list[str]], None]) -> None:
    """Run a stage as a command: log to stderr, and turn a `PipelineError` into one line and exit status 1."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        main(sys.argv[1:])
    except PipelineError as error:
        is_first = os.environ.get("RANK", "0") == "0"  # under torchrun every process meets the same error
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}" if is_first else 1)
