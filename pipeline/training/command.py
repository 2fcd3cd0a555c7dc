"""A training stage as a command: however it ends, all its processes end in seconds and the reason is the last line."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from pipeline.stages import run

logger = logging.getLogger(__name__)

LAUNCHED = "TRAINING_HAS_LAUNCHER"
"""Environment variable of trainings that a launcher started: they stop when it is gone."""

SECONDS_TO_BE_ENDED = {"first": 2, "others": 5}
"""torchrun looks at its processes ten times a second, and ends the others when one has failed."""


def run_training(main: Callable[[list[str]], None]) -> None:
    """Run a training stage as a command, alone or as one of torchrun's processes; see `pipeline.stages.run`.

    A training that fails leaves without Python's own end, which waits for loader processes, and without leaving the
    process group, which may wait for a process that is gone.
    """
    message = ""
    try:
        run(main)
        return
    except SystemExit as end:
        if end.code is None or end.code == 0:
            return
        status = end.code if isinstance(end.code, int) else 1
        message = end.code if isinstance(end.code, str) else ""
        is_known = True
    except BaseException:
        status, message, is_known = 1, traceback.format_exc().rstrip(), False
    if message:
        _leave_the_word_to_the_cause(is_known)
    for child in multiprocessing.active_children():
        child.kill()
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_the_word_to_the_cause(is_known: bool) -> None:
    """Wait under torchrun where another process may say why the training failed: torchrun ends this one meanwhile.

    Most errors of `PipelineError` are met by every process, and the first says them at once. Any other error may only
    follow from the end of another process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first and is_known:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SECONDS_TO_BE_ENDED["first" if is_first else "others"])
