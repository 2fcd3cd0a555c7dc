"""A digest of what a split's catalog is made from, quick enough to compute whenever a study is planned."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.adapters.lists import LIST_EXTENSIONS
from pipeline.data.adapters.walking import AUDIO_EXTENSIONS, check_root, walk
from pipeline.errors import PipelineError

CONTAINER_EXTENSIONS = frozenset({".parquet", ".tar"})
MAX_READ_BYTES = 64 << 20
"""A longer list is known by its size and time, as containers are."""
MAX_READ_LISTS = 1000
"""More lists than these are texts next to each clip, and known by size and time: reading a million takes minutes."""


def listing_digest(root: Path, split: str, other_splits: Sequence[str]) -> str:
    """Return a SHA-256 over everything below `root` that can change the catalog of a split.

    These are relative path and size of audio files, path and content of lists, and path, size and modification time of
    Parquet files and tars. Hidden files, the lock files of office programs (`~$train.csv`) and files of other kinds do
    not count, nor do the times of folders, nor audio outside of `root` that a list names by absolute paths.

    A folder, list or container that is named after one of `other_splits` and not after this one is left out, so that
    new training clips leave the digest of the test split as it is. A name counts as a split's where it stands between
    `_`, `-` and `.`. The first component of a path that has one decides.

    Raises:
        PipelineError: `root` is no folder, or something below it cannot be read.
    """
    check_root(root)
    own, others = _token(split), [_token(other) for other in other_splits if other != split]

    def belongs(path: str) -> bool:
        for name in path.split("/"):
            if own.search(name):
                return True
            if any(other.search(name) for other in others):
                return False
        return True

    facts: list[str] = []  # a path has no NUL, so that NULs keep paths and their facts apart
    lists: list[str] = []
    for prefix, entries in walk(root, belongs):
        for entry in entries:
            name = entry.name
            extension = name[name.rfind(".") :].lower()
            if extension in AUDIO_EXTENSIONS:
                facts.append(f"{prefix}{name}\0{_size(entry)}\0")
            elif name.startswith("~$") or not belongs(prefix + name):
                continue
            elif extension in CONTAINER_EXTENSIONS:
                facts.append(f"{prefix}{name}\0{_size_and_time(entry.path)}\0")
            elif extension in LIST_EXTENSIONS:
                lists.append(prefix + name)
    for number, path in enumerate(sorted(lists)):
        facts.append(f"{path}\0{_content(os.path.join(root, path), number < MAX_READ_LISTS)}\0")
    facts.sort()
    return hashlib.sha256("".join(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _token(split: str) -> re.Pattern[str]:
    """Matches the name of a split between separators."""
    return re.compile(rf"(?:^|[-_.]){re.escape(split)}(?:[-_.]|$)")


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file; None for a link that leads nowhere, which is a row of the catalog, too."""
    try:
        return entry.stat().st_size
    except OSError:
        return None


def _size_and_time(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "none"
    return f"{status.st_size} {status.st_mtime_ns}"


def _content(path: str, is_read: bool) -> str:
    """The SHA-256 of a list, or its size and time where it is too long or is not to be read."""
    if not os.path.isfile(path):  # a link that leads nowhere, or a named pipe, which would never end
        return "none"
    if not is_read or os.path.getsize(path) > MAX_READ_BYTES:
        return _size_and_time(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from error
