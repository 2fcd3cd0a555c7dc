"""Files that are either whole or absent: atomic writes, checksums, deterministic JSON."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, read_error_message, write_error_message

logger = logging.getLogger(__name__)

_SUFFIX = ".tmp"
CHECKSUM = "contents_sha256"
"""Entry of a JSON file: the checksum of the others, as they are written without it."""
_REMAKE = "delete it and make it again"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}
"""Errors of a write whose file the system does not name."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` once the block ends without an error.

    The data are synced before the rename, so that a crash leaves either the old file or the whole new one. Temporary
    files of killed processes are removed.

    Raises:
        PipelineError: The file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    with _temporary(path, is_folder=False) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors puts another file there, which a group could not read
        temporary.replace(path)


@contextlib.contextmanager
def make_folder_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, which replaces `path` once the block ends without an error.

    Raises:
        PipelineError: The folder or a file in it cannot be written.
    """
    path = Path(path)
    with _temporary(path, is_folder=True) as temporary:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)


@contextlib.contextmanager
def _temporary(path: Path, is_folder: bool) -> Iterator[Path]:
    """Yield a new hidden file or folder next to `path`, locked while the block runs and removed at its end."""
    temporary, lock = path, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary, lock = _create_locked(path, is_folder)
        yield temporary
    except Exception as error:
        if (cause := _cause(error, path, temporary)) is None:
            raise
        raise PipelineError(write_error_message(path, cause)) from error
    finally:
        if lock is not None:
            os.close(lock)
            _remove(temporary)


def _create_locked(path: Path, is_folder: bool) -> tuple[Path, int]:
    """Create a temporary file or folder, and return it with the descriptor that holds its lock.

    The kernel releases the lock when the process ends, so that `_remove_abandoned` of a later process can tell.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
        temporary.mkdir() if is_folder else temporary.touch(exist_ok=False)
        lock = os.open(temporary, os.O_RDONLY if is_folder else os.O_RDWR)
        with contextlib.suppress(OSError):  # a file system without locks: nothing there is taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)  # another process removed it before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders of `path` that no living process has locked."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(_SUFFIX)}")
    for name in filter(pattern.fullmatch, _temporaries_in(path.parent)):
        temporary = path.with_name(name)
        with contextlib.suppress(OSError):  # gone by now, in use, or on a file system without locks
            lock = os.open(temporary, os.O_RDONLY if temporary.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(temporary)
            finally:
                os.close(lock)


@functools.cache  # once per process: a folder may hold 100,000 tars, each written through here
def _temporaries_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]


def try_lock(file: int, path: Path) -> bool:
    """Take the lock of an open file for this process; returns False if another process has it.

    A lock of POSIX: child processes do not inherit it, NFS passes it on to other nodes, and the kernel releases it when
    the process ends.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return False
        logger.warning("%s: this file system has no locks; start no second process that writes here", path)
    return True


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _cause(error: Exception, path: Path, temporary: Path) -> OSError | None:
    """The error of the operating system that kept `path` from being written; None if it was something else."""
    if isinstance(error, PipelineError | MemoryError):
        return None
    if isinstance(error, OSError) and error.errno:
        if error.filename is None:
            return error if error.errno in _NO_ROOM else None
        name = str(error.filename)
        is_ours = path.is_relative_to(name) or name.startswith(str(path.with_name(f".{path.name}.")))
        return error if is_ours else None
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # of safetensors and tokenizers
        return OSError(int(found[1]), os.strerror(int(found[1])))
    # soundfile and torch hide the reason: see whether the file system takes another megabyte.
    try:
        with (temporary / "probe" if temporary.is_dir() else temporary).open("ab") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        return reason
    return None


def sha256_of(path: str | Path) -> str:
    """Return the hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, without its checksum; files of earlier versions have none.

    Raises:
        PipelineError: the file is missing or damaged, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(read_error_message(path, error, _REMAKE)) from error
    return parse_json(text, path)


def parse_json(text: str | bytes, source: object) -> dict[str, Any]:
    """Return the JSON object in a text that `write_json` wrote, without its checksum; `source` is for messages."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{source}: is not JSON ({error}); {_REMAKE}") from error
    if not isinstance(value, dict):
        raise PipelineError(f"{source}: holds a JSON {type(value).__name__}, not an object; {_REMAKE}")
    recorded = value.pop(CHECKSUM, None)
    if recorded is not None and recorded != _sha256_of_json(value):
        raise PipelineError(f"{source}: is damaged or was edited, its SHA-256 is not the recorded one; {_REMAKE}")
    return value


def write_json(value: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON object atomically, with sorted keys and its checksum: equal values give equal bytes."""
    value = json.loads(_json_text(value))  # as it will be read: names of entries become strings, for example
    with write_atomically(path) as temporary:
        temporary.write_text(_json_text({**value, CHECKSUM: _sha256_of_json(value)}), encoding="utf-8")


def write_checked_text(text: str, path: Path) -> None:
    """Write a text atomically, and its checksum into the hidden file .NAME.sha256 next to it."""
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    for file, content in ((_checksum_file(path), f"{digest}  {path.name}\n"), (path, text)):
        with write_atomically(file) as temporary:
            temporary.write_bytes(content.encode("utf-8"))


def read_checked_text(path: Path, made_by: str) -> str:
    """Return the text that `write_checked_text` wrote; that of an earlier version has no checksum.

    Raises:
        PipelineError: the file is missing or damaged; `made_by` is the stage that makes it.
    """
    checksum_file, advice = _checksum_file(path), f"delete it and make it again with {made_by}"
    try:
        content = path.read_bytes()
        recorded = checksum_file.read_bytes() if checksum_file.exists() else None
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; make it with {made_by}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(read_error_message(path, error, advice)) from error
    if recorded is not None and hashlib.sha256(content).hexdigest().encode() not in recorded:
        raise PipelineError(
            f"{path}: is damaged or was edited, its SHA-256 is not that in {checksum_file.name}; {advice}"
        )
    return text


def _checksum_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(_json_text(value).encode("utf-8", "surrogatepass")).hexdigest()
