"""Arrays in an npz file, whose zip archive has a checksum of every array."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError, read_error_message
from pipeline.files import write_atomically


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays atomically; equal arrays give equal bytes, because members carry no time of writing."""
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: Path, names: Iterable[str], made_by: str) -> dict[str, Any]:
    """Return some arrays of a file after a check of its checksums; `made_by` is the stage that makes it.

    Raises:
        PipelineError: the file is missing or damaged, or holds no array of a name.
    """
    advice = f"delete it and make it again with {made_by}"
    try:
        with zipfile.ZipFile(path) as archive:
            found = {Path(name).stem for name in archive.namelist()}
            damaged = archive.testzip()  # before numpy allocates what a damaged header asks for
        if damaged is not None:
            raise PipelineError(f"{path}: {damaged} is damaged; {advice}")
        if missing := sorted(set(names) - found):
            raise PipelineError(f"{path}: holds no {', '.join(missing)}; {advice}")
        with np.load(path) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; make it with {made_by}") from None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        raise PipelineError(read_error_message(path, error, advice)) from error
