"""Errors with a message for the user of the pipeline."""

from __future__ import annotations

import errno
import os
import re

_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit on open files (sysctl fs.file-max)",
    errno.ENOMEM: "give the command more memory",
    errno.EIO: "check that the disk is present and undamaged",
    errno.ENAMETOOLONG: "choose a shorter path",
}


_NO_MEMORY = re.compile(r"[Cc]annot allocate memory|can't allocate memory|bad_alloc|failed to map segment")
"""Texts in errors of libraries that ran out of memory. The last one is of a library that cannot be loaded."""


class PipelineError(Exception):
    """An error whose message says what is wrong, in which file and row, and what to do.

    Stages print it as one line and exit with status 1. Other errors are defects and keep their traceback.
    """


def printable(text: str) -> str:
    """Return the text with line breaks and control codes of terminals escaped; file names may contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_error_message(path: str | os.PathLike[str], error: OSError) -> str:
    """Return one line about a file that cannot be written: the reason and the remedy."""
    return f"{path}: cannot be written ({_reason(error)}); {_remedy(error)}"


def read_error_message(path: str | os.PathLike[str], error: Exception, advice: str) -> str:
    """Return one line about a file that cannot be read; `advice` is the remedy for a damaged file."""
    if isinstance(error, MemoryError):
        return f"{path}: {crash_message(error)}"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{path}: cannot be read ({_reason(error)}); {_remedy(error)}"
    return f"{path}: cannot be read ({(str(error) or type(error).__name__).splitlines()[0]}); {advice}"


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, which some libraries say in the words of an error alone."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):  # MemoryError is also pyarrow's and numpy's
            return True
        error = error.__cause__ or error.__context__
    return False


def crash_message(error: Exception) -> str | None:
    """Return one line for an error of the file system or of memory that no stage handled; None for other errors."""
    if lacks_memory(error):
        detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"out of memory{detail}; give the command more memory, then run it again"
    if isinstance(error, OSError) and (error.filename or error.errno in _REMEDIES):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{_reason(error)}; {_remedy(error)}"
    return None


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _remedy(error: OSError) -> str:
    return f"{_REMEDIES.get(error.errno or 0, 'check the path')}, then run the same command again"
