"""One module a rule of the workflow, each a command: `python -m pipeline.stages.NAME --help`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError, printable

VERSIONS = {"train": 1, "pretrain": 1}
"""Version of each stage; it rises when the same inputs give outputs of other bytes."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell reports it."""


class OneLine(logging.Formatter):
    """A record a line, whatever the names of files hold that it tells of; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def run(main: Callable[[list[str]], None]) -> None:
    """Run a stage as a command: log to stderr; a `PipelineError` or Ctrl-C gives one line and an exit status."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main(sys.argv[1:])
    except PipelineError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {printable(str(error))}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).stem}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
