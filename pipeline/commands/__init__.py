"""Inspect, verify and hear what the stages made; search it and choose what to caption; fetch data, export a model."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.commands import classify, download, export, inspect, listen, search, suggest, verify
from pipeline.errors import PipelineError, crash_message, printable

COMMANDS = {
    "inspect": inspect,
    "verify": verify,
    "listen": listen,
    "search": search,
    "suggest": suggest,
    "classify": classify,
    "download": download,
    "export": export,
}
"""The module of each command: its docstring is the help, with `add_arguments` and `run`. None of them imports more than
argparse before it runs, so that help comes at once."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of all commands, each with its parser."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary, description = (module.__doc__ or "").split("\n\n", 1)
        command = commands.add_parser(name, help=summary.rstrip("."), description=description.strip())
        module.add_arguments(command)
    return parser


def main(argv: list[str], prog: str = "composed-text") -> None:
    """Run a command; raises PipelineError where it fails."""
    args = build_parser(prog).parse_args(argv)
    COMMANDS[args.command].run(args)


def run() -> None:
    """Run the command of `sys.argv`; a foreseen error, as in `pipeline.stages.run`, ends as one line and status 1."""
    name = Path(sys.argv[0]).name
    prog = "python -m pipeline" if name == "__main__.py" else name
    try:
        main(sys.argv[1:], prog)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, for example head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else crash_message(error)
        if message is None:
            raise
        sys.exit(f"{prog}: {printable(message)}")
