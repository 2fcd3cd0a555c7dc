"""Shards: WebDataset tars of mono 16-bit audio, the manifest that tells where every clip lies, and their reader."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
from numpy.typing import NDArray

from pipeline.audio import BYTES_PER_FRAME
from pipeline.catalogs import OK, read_table
from pipeline.errors import PipelineError
from pipeline.files import sha256_of

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        # The rest is null unless status is ok. Offsets count from the start of the tar.
        pa.field("data_offset", pa.int64()),
        pa.field("data_size", pa.int64()),
        pa.field("pcm_offset", pa.int64()),  # null for FLAC
        pa.field("frames", pa.int64()),  # at sample_rate_hz
        pa.field("sample_rate_hz", pa.int32()),
        pa.field("source_sample_rate_hz", pa.int32()),
        pa.field("source_channels", pa.int32()),
        pa.field("peak_dbfs", pa.float32()),
        pa.field("rms_dbfs", pa.float32()),
        pa.field("sha256", pa.string()),  # of the audio member's bytes
    ]
)
"""Columns of the manifest and of a shard's row file."""

OPEN_TARS = 256  # of the 1,024 files that a process may open by default


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFacts:
    """What a row file's footer tells about the tar beside it."""

    shard: str
    format: str
    sample_rate_hz: int
    clips: int
    bytes: int
    sha256: str


FACTS_KEY = b"shard"


def shard_name(index: int) -> str:
    """`00000`, `00001`, ..."""
    return f"{index:05d}"


# --- writing ---------------------------------------------------------------------------------------------------------


def add_sample(tar: tarfile.TarFile, key: str, extension: str, audio: bytes, facts: Mapping[str, Any]) -> int:
    """Append `KEY.wav` or `KEY.flac`, then `KEY.json`, to a USTAR archive and return the offset of the audio in it.

    The bytes are those of webdataset's TarWriter with mtime 0. It is not TarWriter, because importing webdataset
    imports torch: 2.6 s in a job that takes two.
    """
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    for name, data in ((f"{key}.{extension}", audio), (f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o444
        member.uname = member.gname = "bigdata"
        tar.addfile(member, io.BytesIO(data))
    return offset


# --- reading ---------------------------------------------------------------------------------------------------------


class _OpenTar:
    """A file descriptor that is closed with its last reference, so that no thread loses one that it is reading from."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PipelineError(f"{path}: cannot be opened any more ({error.strerror})") from error
        self.path = path

    def read(self, offset: int, size: int) -> bytearray:
        """`size` bytes from `offset` on; PipelineError if the file has become shorter."""
        buffer = bytearray(size)
        found = os.preadv(self.descriptor, [buffer], offset)
        if found != size:
            raise PipelineError(
                f"{self.path}: asked for {size} bytes at {offset}, found {found}; the file was cut after opening, "
                "make the shard again"
            )
        return buffer

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardReader:
    """The usable clips of one split, at any window, without decoding or copying more than the window.

    May be shared by threads, forked and pickled: files are opened on first use and read at absolute offsets.
    """

    def __init__(self, folder: Path, summary: Mapping[str, Any], rows: pa.Table) -> None:
        self.folder = folder
        self.dataset: str = summary["dataset"]
        self.split: str = summary["split"]
        self.format: str = summary["format"]
        self.sample_rate_hz: int = summary["sample_rate_hz"]
        self.manifest_sha256: str = summary["manifest_sha256"]
        self.keys: list[str] = rows["key"].to_pylist()
        self._row_of = {key: row for row, key in enumerate(self.keys)}
        self._captions = rows["captions"].combine_chunks()
        self._frames = rows["frames"].to_numpy()
        self._offset = rows["pcm_offset" if self.format == "wav" else "data_offset"].to_numpy()
        self._size = rows["data_size"].to_numpy()
        self._tars = [folder / shard["tar"] for shard in summary["shards"]]
        number_of = {shard["shard"]: number for number, shard in enumerate(summary["shards"])}
        self._tar_of = np.array([number_of[shard] for shard in rows["shard"].to_pylist()], np.int32)
        self._open = functools.lru_cache(OPEN_TARS)(_OpenTar)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = functools.lru_cache(OPEN_TARS)(_OpenTar)

    def __len__(self) -> int:
        return len(self.keys)

    def _row(self, key: str) -> int:
        try:
            return self._row_of[key]
        except KeyError:
            raise PipelineError(
                f"{self.folder}: no usable clip {key}; the manifest has {len(self.keys)} usable clips, "
                f"so either {key} was dropped (see its reason there) or it belongs to another split"
            ) from None

    def frames(self, key: str) -> int:
        """Length of a clip at `sample_rate_hz`."""
        return int(self._frames[self._row(key)])

    def captions(self, key: str) -> list[str]:
        """The captions of a clip, in the publisher's order; empty for unlabeled audio."""
        return self._captions[self._row(key)].as_py()

    def read_window(self, key: str, start: int, frames: int) -> NDArray[np.int16]:
        """`frames` samples of a clip from `start` on; a clip shorter than that is repeated.

        Raises PipelineError for a window that reaches beyond a longer clip, and for a tar that has become shorter.
        """
        row = self._row(key)
        length = int(self._frames[row])
        if length < frames:
            clip = self._read(row, 0, length)
            return np.resize(np.roll(clip, -start), frames)
        if start < 0 or start + frames > length:
            raise PipelineError(
                f"{self.folder}: {key} has {length} frames, asked for {start} to {start + frames}; "
                "the pairs belong to other shards, make them again"
            )
        return self._read(row, start, frames)

    def _read(self, row: int, start: int, frames: int) -> NDArray[np.int16]:
        tar, offset = self._open(self._tars[self._tar_of[row]]), int(self._offset[row])
        if self.format == "wav":
            return np.frombuffer(tar.read(offset + start * BYTES_PER_FRAME, frames * BYTES_PER_FRAME), np.dtype("<i2"))
        with soundfile.SoundFile(io.BytesIO(tar.read(offset, int(self._size[row])))) as source:
            source.seek(start)
            return source.read(frames, dtype="int16")


def open_shards(folder: Path, *, verify: bool = False) -> ShardReader:
    """The reader of a split's folder, after a check of the sizes, or with `verify` the checksums, of its tars.

    Raises PipelineError for a manifest or tar that is missing, cut or another than manifest.json tells of.
    """
    folder = Path(folder)
    summary_path, manifest_path = folder / "manifest.json", folder / "manifest.parquet"
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{summary_path}: not found; make it with python -m pipeline.stages.index_shards") from None
    except ValueError as error:
        raise PipelineError(f"{summary_path}: is not JSON ({error}); make it again with index_shards") from error
    manifest = read_manifest(manifest_path)
    if sha256_of(manifest_path) != summary["manifest_sha256"]:
        raise PipelineError(
            f"{manifest_path}: is not the manifest that {summary_path} tells of; run index_shards again"
        )
    for shard in summary["shards"]:
        check_tar(folder / shard["tar"], shard["bytes"], shard["sha256"] if verify else None)
    usable = manifest.filter(pc.equal(manifest["status"], OK))
    return ShardReader(folder, summary, usable)


def read_manifest(path: Path) -> pa.Table:
    """A split's manifest as written by index_shards, unusable clips included."""
    return read_table(path, MANIFEST_SCHEMA, "index_shards")


def check_tar(path: Path, size: int, sha256: str | None) -> None:
    """Raise PipelineError unless the tar is there, has that size and, where given, that checksum."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; make the shard again with shard_audio") from None
    if found != size:
        raise PipelineError(f"{path}: {found} bytes, {size} expected; delete it and make the shard again")
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        raise PipelineError(f"{path}: SHA-256 {digest}, {sha256} expected; delete it and make the shard again")


def read_rows(path: Path) -> tuple[pa.Table, ShardFacts]:
    """A shard's row file and what its footer tells about the tar."""
    table = read_table(path, MANIFEST_SCHEMA, "shard_audio")
    footer = (table.schema.metadata or {}).get(FACTS_KEY)
    if footer is None:
        raise PipelineError(f"{path}: is not a shard's row file, its footer tells of no tar; make it with shard_audio")
    return table, ShardFacts(**json.loads(footer))


def rows_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of a manifest as a table; what a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=MANIFEST_SCHEMA)
