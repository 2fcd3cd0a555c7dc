"""The members of a tar, each with the place of its bytes: links, sparse files and joined archives included."""

from __future__ import annotations

import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

from pipeline.data.containers import range_member, unreadable
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

TAR_ERRORS = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, LookupError, RecursionError)
"""The errors of tarfile for a file that is damaged, cut off or no tar at all."""
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""First bytes of compressed files, with the name of the format and the program that unpacks it."""
MULTI_VOLUME, VOLUME_LABEL = b"M", b"V"
"""Types of GNU tar: the rest of a file that began in another tar, and a name for the tar."""
MAX_SPARSE_BYTES = 1 << 32
"""A longer sparse member is no clip: most of it is zeros, which would fill the memory."""
_ZEROS_BYTES = 1 << 20


Archive = list[tuple[str, str | None]]
"""Name and place of every member in order, folders left out; the place is None for one without bytes in the archive."""


def read_archives(path: str) -> Iterator[Archive]:
    """The archives that a tar consists of: one, or several that were joined with `cat a.tar b.tar`.

    Hard and symbolic links stand for the member that they lead to. Raises PipelineError for a tar that is damaged,
    compressed or cut off, even between two members.
    """
    try:
        with open(path, "rb") as file:
            _check_uncompressed(path, file.read(6))
            start: int | None = 0
            count = 0
            while start is not None:
                file.seek(start)
                archive, end = _read_archive(path, file)
                yield archive
                count += 1
                start = _next_archive(path, file, end)
            if count > 1:
                logger.warning("%s: is %d archives that were joined; all are read", path, count)
    except TAR_ERRORS as error:
        raise unreadable(path, error) from error


def _check_uncompressed(path: str, head: bytes) -> None:
    for magic, (name, program) in COMPRESSED.items():
        if head.startswith(magic):
            raise PipelineError(
                f"{path}: is compressed with {name}, so that clips cannot be read where they lie; "
                f"unpack it: {program} < {path} > NEW.tar"
            )


def _read_archive(path: str, file: BinaryIO) -> tuple[Archive, int]:
    """The archive at a file's position, and the offset of its end mark."""
    archive: Archive = []
    links: dict[int, str] = {}
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # a tar of a million members would be kept in memory
            if member.isdir() or member.type == VOLUME_LABEL:
                continue
            place = _place(path, member)
            if member.islnk():
                links[len(archive)] = posixpath.normpath(member.linkname)
            elif member.issym():
                folder = posixpath.dirname(member.name)
                links[len(archive)] = posixpath.normpath(posixpath.join(folder, member.linkname))
            archive.append((member.name, place))
        end = tar.offset
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut for the end
        raise PipelineError(f"{path}: has no end mark after byte {end}; is it cut off? Fetch it again")
    if links:
        _resolve(archive, links)
    return archive, end


def _place(path: str, member: tarfile.TarInfo) -> str | None:
    """Where a member's bytes lie; None for links, devices, named pipes and parts of files."""
    if member.type == MULTI_VOLUME or (member.type in tarfile.SUPPORTED_TYPES and not member.isreg()):
        return None  # other types are read as files, as tar does
    if member.sparse is None:
        return range_member([(member.offset_data, member.size)])
    if member.size > MAX_SPARSE_BYTES:
        raise PipelineError(f"{path}: {member.name} is a sparse file of {member.size} bytes, which is no clip")
    pieces: list[tuple[int | None, int]] = []
    filled, offset = 0, member.offset_data
    stored: Sequence[tuple[int, int]] = cast(Any, member.sparse)
    for start, size in stored:  # what lies between the pieces is not in the tar
        if not size:
            continue
        if start < filled or start + size > member.size:
            raise PipelineError(f"{path}: {member.name} has a damaged map of its pieces; fetch the tar again")
        pieces += [(None, start - filled), (offset, size)]
        filled, offset = start + size, offset + size
    pieces.append((None, member.size - filled))
    return range_member([piece for piece in pieces if piece[1]] or [(member.offset_data, 0)])


def _resolve(archive: Archive, links: Mapping[int, str]) -> None:
    """Give links, by their number in the archive, the place of the member that they lead to, also through others."""
    places = {posixpath.normpath(name): place for name, place in archive if place is not None}
    targets = {posixpath.normpath(archive[number][0]): target for number, target in links.items()}
    for number, target in links.items():
        passed: set[str] = set()
        while target in targets and target not in passed:  # a circle of links ends
            passed.add(target)
            target = targets[target]
        archive[number] = archive[number][0], places.get(target)


def _next_archive(path: str, file: BinaryIO, end: int) -> int | None:
    """The offset of the archive after an end mark; None where nothing but zeros follows."""
    file.seek(end)
    offset = end
    while chunk := file.read(_ZEROS_BYTES):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            start = offset + zeros - (offset + zeros - end) % tarfile.BLOCKSIZE
            if _is_header(file, start):
                return start
            rest = os.path.getsize(path) - start
            logger.warning("%s: %d bytes after its end are no archive and are left out", path, rest)
            return None
        offset += len(chunk)
    return None


def _is_header(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
