"""One module per rule of the workflow. Each is a command: `python -m pipeline.stages.NAME --help`."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError, crash_message, printable
from pipeline.stages.processes import end_with_parent

VERSIONS = {
    "mix_soundscapes": 2,
    "index_audio": 1,
    "shard_audio": 1,
    "index_shards": 1,
    "stage_shards": 1,
    "pair_clips": 1,
    "find_near_duplicates": 1,
    "pretrain": 3,
    "import_weights": 1,
    "train": 2,
    "average_weights": 1,
    "embed": 2,
    "embed_split": 1,
    "describe_pool": 1,
    "evaluate": 1,
    "compare": 2,
    "tabulate": 1,
    "draw_curves": 2,
    "report": 3,
    "choose_settings": 1,
}
"""The version of each stage's output, a parameter of its rule.

Raise it when the bytes of an output change for the same input. Then the stage and all that depends on it run again in
every study. `tests/test_golden.py` fails when bytes change and the version does not.
"""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell reports it."""


class OneLine(logging.Formatter):
    """Formats each record as one line, even when file names contain line breaks. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers of at least `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
        return value

    number.__name__ = "whole number"  # argparse puts it into its message
    return number


def between(least: float, most: float) -> Callable[[str], float]:
    """Return a type for argparse: finite numbers from `least` to `most`; `most` may be infinite."""

    def number(text: str) -> float:
        value = float(text)
        if not (least <= value <= most and math.isfinite(value)):  # false for nan
            bounds = f"between {least:g} and {most:g}" if math.isfinite(most) else f"a number of at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text} must be {bounds}")
        return value

    return number


def run(main: Callable[[list[str]], None]) -> None:
    """Run a stage as a command: log to stderr, and report an expected error as one line with exit status 1.

    Foreseen are `PipelineError` and errors of the file system and of memory; other errors keep their traceback. A stage
    ends with the Snakemake that started it.
    """
    end_with_parent()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main(sys.argv[1:])
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else crash_message(error)
        if message is None:
            raise
        sys.exit(f"{Path(sys.argv[0]).stem}: {printable(message)}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).stem}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
