"""Read any window of any clip of a split by offset, without decoding or copying more than the window."""

from __future__ import annotations

import errno
import functools
import io
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
from numpy.typing import DTypeLike, NDArray

from pipeline.data.addresses import read_range
from pipeline.data.audio import BYTES_PER_FRAME, WAV_HEADER_BYTES, fit_window
from pipeline.data.shards.format import check_manifest, check_tar, check_tars, read_summary, usable_batches
from pipeline.errors import PipelineError, read_error_message


def most_open_tars() -> int:
    """Tars of a split that stay open: an eighth of the files that this process may open, 128 of the usual 1,024."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 128 if limit == resource.RLIM_INFINITY else max(1, min(128, limit // 8))


class _OpenTar:
    """A file descriptor that closes with its last reference, so that no thread loses it while reading."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = path

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on; PipelineError if the file ends before."""
        found = 0
        while found < len(buffer):  # a network file system may return fewer bytes than asked for
            more = os.preadv(self.descriptor, [buffer[found:]], offset + found)
            if more == 0:
                raise PipelineError(
                    f"{self.path}: asked for {len(buffer)} bytes at {offset}, found {found}; the file was cut, "
                    "make the shard again"
                )
            found += more

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class _RemoteTar:
    """A tar at an address, read by byte range."""

    address: str

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = read_range(self.address, offset, len(buffer))


class ShardReader:
    """The usable clips of one split, readable at any window.

    A clip is identified by its key or its row, its index among the usable clips in the order of the keys. Memory holds
    about 30 bytes and the captions per clip, so millions of clips fit, and forked processes share them. A reader may be
    shared by threads, forked and pickled: files are opened on first use and read at absolute offsets.
    """

    def __init__(self, folder: Path, summary: Mapping[str, Any]) -> None:
        self.folder = folder
        self.dataset: str = summary["dataset"]
        self.split: str = summary["split"]
        self.format: str = summary["format"]
        self.sample_rate_hz: int = summary["sample_rate_hz"]
        self.channels: str = summary["channels"]
        self.manifest_sha256: str = summary["manifest_sha256"]
        self._is_remote = "address" in summary
        self._place = summary.get("address", str(folder))
        self._shards = np.array([shard["shard"] for shard in summary["shards"]])
        self._sha256 = np.array([shard["sha256"] for shard in summary["shards"]], "S64")
        self._tar_bytes = np.array([shard["bytes"] for shard in summary["shards"]], np.int64)
        self._read_manifest(self._tar_bytes)
        self._open = self._opener()

    def _read_manifest(self, tar_bytes: NDArray[np.int64]) -> None:
        """Load the columns that reading needs, in batches of rows; PipelineError for rows that the tars cannot hold."""
        number_of = {shard: number for number, shard in enumerate(self._shards.tolist())}
        place = "pcm_offset" if self.format == "wav" else "data_offset"
        columns = ["key", "shard", "frames", "data_offset", "data_size", place, "captions"]
        hashes, tars, frames, offsets, sizes, counts, texts = ([] for _ in range(7))
        for batch in usable_batches(self.folder / "manifest.parquet", columns):
            hashes.append(hashes_of(batch["key"]))
            shards = batch["shard"].dictionary_encode()
            numbers = np.array([number_of.get(shard, -1) for shard in shards.dictionary.to_pylist()], np.int32)
            tars.append(numbers[shards.indices.to_numpy()])
            self._check_places(batch, tars[-1], tar_bytes)
            frames.append(batch["frames"].to_numpy())
            offsets.append(batch[place].to_numpy())
            if self.format != "wav":
                sizes.append(batch["data_size"].to_numpy())
            counts.append(pc.list_value_length(batch["captions"]).to_numpy())
            texts.append(batch["captions"].flatten().cast(pa.large_string()))
        unordered = _joined(hashes, np.uint64)
        order = np.argsort(unordered, kind="stable")
        self._hashes, self._order = unordered[order], order.astype(np.int32)
        if len(twice := np.flatnonzero(self._hashes[1:] == self._hashes[:-1])):
            first, second = (self.keys[self._order[twice[0] + step]] for step in (0, 1))
            raise PipelineError(f"{self.folder}: {first} and {second} have the same hash; rename one of the clips")
        self._tar_of, self._frames = _joined(tars, np.int32), _joined(frames, np.int64)
        self._offset, self._size = _joined(offsets, np.int64), _joined(sizes, np.int64)
        self._texts = pa.concat_arrays([pa.array([], pa.large_string()), *texts])
        # Where the captions of a row begin; None for unlabeled audio, which has no captions.
        self._first_text = np.concatenate([[0], np.cumsum(_joined(counts, np.int64))]) if len(self._texts) else None

    def _check_places(self, batch: pa.RecordBatch, tars: NDArray[np.int32], tar_bytes: NDArray[np.int64]) -> None:
        """Raise PipelineError for a row whose tar is unknown, or whose audio lies outside its member or its tar."""
        asked = ["frames", "data_offset", "data_size", *(["pcm_offset"] if self.format == "wav" else [])]
        frames, offset, size, *pcm = (batch[name].fill_null(-1).to_numpy() for name in asked)
        fits = (tars >= 0) & (frames > 0) & (offset >= 0) & (size > 0) & (offset + size <= tar_bytes[tars])
        if pcm:
            fits &= (pcm[0] == offset + WAV_HEADER_BYTES) & (size == WAV_HEADER_BYTES + frames * BYTES_PER_FRAME)
        if len(wrong := np.flatnonzero(~fits)):
            row = batch.select(["key", "shard", *asked]).slice(wrong[0], 1).to_pylist()[0]
            values = ", ".join(f"{name} {value}" for name, value in row.items() if name != "key")
            raise PipelineError(
                f"{self.folder / 'manifest.parquet'}: {row['key']} cannot lie where the manifest says ({values}); make "
                "the manifest again with index_shards"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "keys")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = self._opener()

    def _opener(self) -> Callable[[str], _OpenTar | _RemoteTar]:
        tar: Callable[[str], _OpenTar | _RemoteTar] = _RemoteTar if self._is_remote else _OpenTar
        return functools.lru_cache(most_open_tars())(tar)

    def __len__(self) -> int:
        return len(self._hashes)

    @functools.cached_property
    def keys(self) -> list[str]:
        """The key of every row, read from the manifest on first use because keys take the most memory."""
        batches = usable_batches(self.folder / "manifest.parquet", ["key"])
        return [key for batch in batches for key in batch["key"].to_pylist()]

    def rows_of(self, keys: pa.Array) -> NDArray[np.int64]:
        """Return the row of every key, -1 if there is no such usable clip."""
        if len(self) == 0:
            return np.full(len(keys), -1)
        wanted = hashes_of(keys)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
        return np.where(self._hashes[places] == wanted, self._order[places], -1)

    def _row(self, key: str) -> int:
        row = int(self.rows_of(pa.array([key]))[0])
        if row < 0:
            raise PipelineError(
                f"{self.folder}: {key} is not among the {len(self)} usable clips; "
                "it was dropped (see its reason in the manifest) or belongs to another split"
            )
        return row

    def check_tar_of(self, key: str) -> None:
        """Raise PipelineError unless the tar of a clip has its checksum; tars at an address are not fetched for it."""
        tar = self._tar_of[self._row(key)]
        if not self._is_remote:
            check_tar(self.folder / f"{self._shards[tar]}.tar", int(self._tar_bytes[tar]), self._sha256[tar].decode())

    def frames(self, key: str) -> int:
        """Return the length of a clip in samples at `sample_rate_hz`."""
        return int(self._frames[self._row(key)])

    def read(self, key: str) -> NDArray[np.int16]:
        """Return all samples of a clip, mono, at `sample_rate_hz`."""
        return self.read_clip(self._row(key))

    def captions(self, key: str) -> list[str]:
        """Return the captions of a clip, in the publisher's order; empty for unlabeled audio."""
        row = self._row(key)
        if self._first_text is None:
            return []
        return self._texts[self._first_text[row] : self._first_text[row + 1]].to_pylist()

    def captions_at(self, rows: NDArray[np.int64], numbers: NDArray[np.integer]) -> list[str]:
        """Return one caption per row, by its number; PipelineError if a clip has fewer."""
        first = np.zeros(len(self) + 1, np.int64) if self._first_text is None else self._first_text
        places = first[rows] + numbers
        if len(missing := np.flatnonzero((numbers < 0) | (places >= first[rows + 1]))):
            row, number = rows[missing[0]], numbers[missing[0]]
            raise PipelineError(f"{self.folder}: {self._name_of(row)} has no caption {number}; make the pairs again")
        return self._texts.take(pa.array(places)).to_pylist()

    def read_window(self, key: str, start: int, frames: int, short_clips: str = "repeat") -> NDArray[np.int16]:
        """Return `frames` samples of a clip from `start` on; a shorter clip is repeated or padded (`fit_window`).

        Raises:
            PipelineError: The window reaches beyond a longer clip, the tar is cut or cannot be read, or its FLAC cannot
                be decoded. The message names tar and clip.
        """
        window = np.empty(frames, "<i2")
        self.read_into(self._row(key), start, window, short_clips)
        return window

    def read_into(self, row: int, start: int, window: NDArray[np.int16], short_clips: str = "repeat") -> None:
        """Fill an array with the samples of a row from `start` on, as `read_window` does."""
        frames, length = len(window), int(self._frames[row])
        if length < frames:
            clip = self.read_clip(row)
            from_start = np.roll(clip, -start) if short_clips == "repeat" else clip[start:]
            window[:] = fit_window(from_start, frames, short_clips)
        elif start < 0 or start + frames > length:
            raise PipelineError(
                f"{self.folder}: {self._name_of(row)} has {length} frames, asked for {start} to {start + frames}; "
                "the pairs were made from other shards, make them again"
            )
        else:
            self._read(row, start, window)

    def read_clip(self, row: int) -> NDArray[np.int16]:
        """Return all samples of a row."""
        clip = np.empty(self._frames[row], "<i2")
        self._read(row, 0, clip)
        return clip

    def _read(self, row: int, start: int, samples: NDArray[np.int16]) -> None:
        path = f"{self._place}/{self._shards[self._tar_of[row]]}.tar"
        try:
            self._read_from(self._open(path), row, start, samples)
        except OSError as error:  # the disk, or the network that it lies behind
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise PipelineError(read_error_message(path, error, "")) from error
            raise PipelineError(
                f"{path}: cannot be read any more ({error.strerror}), asked for {self._name_of(row)}; check the disk "
                "and the tar (python -m pipeline verify), then run the same command again: a training continues from "
                "its checkpoint"
            ) from error
        except soundfile.SoundFileError as error:
            raise PipelineError(
                f"{path}: {self._name_of(row)} cannot be decoded ({error}); find all damaged clips with "
                "python -m pipeline verify, and make their shards again"
            ) from error
        except PipelineError as error:
            raise PipelineError(f"{error} (asked for {self._name_of(row)})") from error

    def _read_from(self, tar: _OpenTar | _RemoteTar, row: int, start: int, samples: NDArray[np.int16]) -> None:
        offset = int(self._offset[row])
        if self.format == "wav":
            tar.read_into(samples.data.cast("B"), offset + start * BYTES_PER_FRAME)
            return
        data = bytearray(int(self._size[row]))
        tar.read_into(memoryview(data), offset)
        with soundfile.SoundFile(io.BytesIO(data)) as source:
            source.seek(start)
            if (found := len(source.read(out=samples))) < len(samples):
                raise soundfile.SoundFileError(f"{found} of {len(samples)} frames from {start} on")

    def _name_of(self, row: int) -> str:
        """Return the key of a row for messages, without loading all keys."""
        first = 0
        try:
            for batch in usable_batches(self.folder / "manifest.parquet", ["key"]):
                if row < first + batch.num_rows:
                    return batch["key"][row - first].as_py()
                first += batch.num_rows
        except PipelineError:  # the manifest may be on the disk that failed
            pass
        return f"clip {row}"


def _joined(parts: list[NDArray], dtype: DTypeLike) -> NDArray:
    return np.concatenate([np.empty(0, dtype), *parts], dtype=dtype)


def hashes_of(texts: pa.Array) -> NDArray[np.uint64]:
    """Return a 64-bit hash of every text; among 10 million, two collide with a probability of 1 in 370,000."""
    import pandas as pd  # takes a second to import, which other stages save

    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)


def open_shards(folder: Path, *, verify: bool = False, share: slice = slice(None)) -> ShardReader:
    """Return the reader of a split's folder after checking the sizes, or with `verify` the checksums, of its tars.

    share: the tars whose checksums this process checks, if several share the work. Tars at an address are checked by
    size only.

    Raises:
        PipelineError: The manifest or a tar is missing, cut or does not match manifest.json.
    """
    folder = Path(folder)
    summary = read_summary(folder / "manifest.json")
    check_manifest(folder / "manifest.parquet", summary)
    check_tars(folder, summary, verify=verify, share=share)
    return ShardReader(folder, summary)


def open_split(folder: str | Path, *, verify: bool = False) -> ShardReader:
    """Return the usable clips of a split: `keys`, and by key `read`, `read_window`, `frames` and `captions`.

    Args:
        folder: the split's shards.
        verify: whether to check the checksums of all tars, not only their sizes.

    Raises:
        PipelineError: The manifest or a tar is missing, cut or changed.

    Example:
        >>> import pipeline
        >>> split = pipeline.open_split("results/shards/clotho/evaluation")  # doctest: +SKIP
        >>> key = split.keys[0]  # doctest: +SKIP
        >>> split.captions(key), split.read(key)  # texts, and all samples, int16  # doctest: +SKIP
        >>> split.read_window(key, start=16_000, frames=112_000)  # 7 s from 1 s on, at 16 kHz  # doctest: +SKIP
    """
    return open_shards(Path(folder), verify=verify)
