"""One module a rule of the workflow, each a command: `python -m pipeline.stages.NAME --help`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError, crash_message, printable

SECONDS_TO_BE_ENDED = 5
"""torchrun looks at its processes ten times a second."""


class OneLine(logging.Formatter):
    """A record a line, whatever the names of files hold that it tells of; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def run(main: Callable[[list[str]], None]) -> None:
    """Run a stage as a command: log to stderr, and end a foreseen error as one line and exit status 1.

    Foreseen are `PipelineError` and errors of the file system and of memory; other errors keep their traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main(sys.argv[1:])
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else crash_message(error)
        if message is None:
            raise
        if os.environ.get("RANK", "0") != "0":
            # Under torchrun most errors are met by every process, and the first says it: torchrun then ends this one
            # while it waits. An error that this one alone meets is said here.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(SECONDS_TO_BE_ENDED)
        sys.exit(f"{Path(sys.argv[0]).stem}: {printable(message)}")
