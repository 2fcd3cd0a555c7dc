"""A record of the inputs of a job, so that a job that is run again with the same inputs keeps its outputs.

Snakemake plans a job when an input was written again, even with the same bytes, and deletes its outputs before it runs.
A stage that takes long therefore remembers its outputs: hard links in a hidden folder next to them, which take no room,
and a description of the inputs. When it starts with the same inputs, it links the outputs back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_json

logger = logging.getLogger(__name__)

KEPT = ".kept"
"""Folder next to the outputs; delete it to make a job compute again what it has."""

DESCRIPTION = "made_from.json"


def is_kept(outputs: Sequence[Path], made_from: Mapping[str, Any]) -> bool:
    """Return whether outputs that were made from exactly this are kept, whole.

    outputs: files of one folder.
    made_from: JSON values that decide the outputs: checksums of inputs, settings, the version of the stage.
    """
    kept = outputs[0].parent / KEPT
    try:
        found = read_json(kept / DESCRIPTION)
        if found["made_from"] != json.loads(json.dumps(made_from)):
            return False
        return {path.name: sha256_of(kept / path.name) for path in outputs} == found["sha256"]
    except (PipelineError, OSError, KeyError):
        return False


def restore(outputs: Sequence[Path], made_from: Mapping[str, Any]) -> bool:
    """Put back outputs that are kept (see `is_kept`), and return whether they are all there."""
    if not is_kept(outputs, made_from):
        return False
    kept = outputs[0].parent / KEPT
    try:
        for path in outputs:
            path.unlink(missing_ok=True)
            os.link(kept / path.name, path)
            os.utime(path)  # Snakemake compares times: the output is newer than its inputs
    except OSError:
        return False
    logger.info("%s: kept, made from the same inputs before; delete %s to make it again", outputs[0].parent, kept)
    return True


def remember(outputs: Sequence[Path], made_from: Mapping[str, Any]) -> None:
    """Keep outputs that are complete for a later `restore`; where the file system has no hard links, do nothing."""
    kept = outputs[0].parent / KEPT
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError):
        kept.mkdir()
        for path in outputs:
            os.link(path, kept / path.name)
        checksums = {path.name: sha256_of(path) for path in outputs}
        write_json({"made_from": made_from, "sha256": checksums}, kept / DESCRIPTION)
