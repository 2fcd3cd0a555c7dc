"""Read whole files or byte ranges at addresses that fsspec supports (https, s3, a local path, ...)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import write_atomically

_CHUNK_BYTES = 1 << 22
_CONNECTIONS = 16


def _found(address: str) -> tuple[Any, str]:
    """Return the filesystem of an address and the path in it; fsspec keeps one filesystem per process."""
    import fsspec  # takes half a second to import, which local shards save

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise PipelineError(f"{address}: {error} in the environment of the pipeline (pip install)") from error
    except ValueError as error:
        raise PipelineError(f"{address}: {error}; give https://..., s3://... or a path") from error


@contextlib.contextmanager
def _named(address: str) -> Iterator[None]:
    """Turn every error of a filesystem into a PipelineError that names the address."""
    try:
        yield
    except PipelineError:
        raise
    except FileNotFoundError:
        raise PipelineError(f"{address}: not found") from None
    except Exception as error:  # every protocol has its own exceptions
        raise PipelineError(
            f"{address}: cannot be read ({type(error).__name__}: {error}); check the address and the server, and "
            "try again"
        ) from error


def read_file(address: str) -> bytes:
    """Return the bytes of a small file; PipelineError if it cannot be read."""
    filesystem, path = _found(address)
    with _named(address):
        return filesystem.cat_file(path)


def read_range(address: str, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on; PipelineError if the server sends fewer or more."""
    filesystem, path = _found(address)
    with _named(address):
        data = filesystem.cat_file(path, start=offset, end=offset + size)
    if len(data) != size:
        raise PipelineError(
            f"{address}: asked for {size} bytes at {offset}, the server sent {len(data)}; check the file, "
            "or copy the shards if the server does not support byte ranges (tars: copy)"
        )
    return data


def check_size(address: str, size: int) -> None:
    """Raise PipelineError unless a file exists and has this size."""
    filesystem, path = _found(address)
    with _named(address):
        found = filesystem.info(path)["size"]
    if found != size:
        raise PipelineError(f"{address}: {found} bytes, {size} expected; the file was cut or replaced")


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise PipelineError unless the files at these addresses exist and have these sizes; checks run in parallel."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(check_size, sizes, sizes.values()):
            pass


def check_ranges(address: str, size: int) -> None:
    """Raise PipelineError unless a file has this size and its server supports byte ranges."""
    check_size(address, size)
    filesystem, path = _found(address)
    with _named(address), filesystem.open(path, "rb", block_size=512, cache_type="none") as file:
        try:
            file.seek(512)  # a server without ranges would answer a range from 0 with the whole file
            file.read(512)
        except ValueError as error:
            raise PipelineError(
                f"{address}: the server does not support byte ranges ({error}); copy the shards instead (tars: copy)"
            ) from error


def fetch(address: str, path: Path) -> str:
    """Write a file to a path and return its hex SHA-256; PipelineError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(address):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _chunks(address: str) -> Iterator[bytes]:
    filesystem, path = _found(address)
    with _named(address), filesystem.open(path, "rb", block_size=0) as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def copy_file(address: str, path: Path, sha256: str) -> None:
    """Copy a file atomically; PipelineError unless it has this SHA-256."""
    with write_atomically(path) as temporary:
        if (digest := fetch(address, temporary)) != sha256:
            raise PipelineError(
                f"{address}: SHA-256 {digest}, its manifest says {sha256}; the file is damaged or was replaced "
                "meanwhile, so try again, then ask its publisher"
            )
