"""Print the documentation page of every command, from the help of its parser: docs/command-line.md.

`make schema` writes it; a test fails when the page is not what this prints.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable

from pipeline import commands, stages

WIDTH = "100"


def help_of(main: Callable[[list[str]], object], program: str, *arguments: str) -> str:
    """The text that a command prints for --help."""
    shown = io.StringIO()
    saved, sys.argv = sys.argv, [program]
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        sys.argv = saved
    return shown.getvalue().rstrip()


def section(title: str, text: str) -> list[str]:
    return [f"### {title}", "", "```text", text, "```", ""]


def page() -> str:
    """The page, for terminals of `WIDTH` columns."""
    saved = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        lines = ["# Command line", "", "Generated from the parsers of the commands by `make schema`.", ""]
        lines += ["## Commands", "", "`composed-text` and `python -m pipeline` are the same program.", ""]
        for name in commands.COMMANDS:
            lines += section(name, help_of(commands.main, "composed-text", name))
        lines += ["## Stages", "", "Each rule of the workflow calls one stage. A job script can call it, too:", ""]
        lines += ["`snakemake -n --printshellcmds` prints the command of every job.", ""]
        for name in stages.VERSIONS:
            program = f"python -m pipeline.stages.{name}"
            lines += section(name, help_of(importlib.import_module(f"pipeline.stages.{name}").main, program))
        lines += ["## Launcher", "", "Starts a training with any number of processes, on one node or several.", ""]
        launch = importlib.import_module("pipeline.training.launch")
        lines += section("launch", help_of(launch.main, "python -m pipeline.training.launch"))
    finally:
        os.environ.pop("COLUMNS")
        if saved is not None:
            os.environ["COLUMNS"] = saved
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
