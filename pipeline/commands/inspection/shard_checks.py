"""Whether shards are, byte for byte, as their manifests say."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import soundfile
from tqdm import tqdm

from pipeline.commands.inspection.columns import batches, read_schema
from pipeline.commands.inspection.splits import check_manifest
from pipeline.data.addresses import copy_file, fetch
from pipeline.data.audio import BYTES_PER_FRAME, WAV_HEADER_BYTES, wav_header
from pipeline.data.catalogs import OK, SEGMENT_COLUMNS
from pipeline.data.shards.format import check_tars, read_published_summary, read_summary
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_json

_CHUNK_BYTES = 1 << 20
_NEEDED = ("data_offset", "data_size", "frames", "sample_rate_hz", "sha256")
"""Columns without which a usable clip cannot be read."""


def verify_shards(manifest: Path, *, quick: bool) -> str:
    """Check a split: its manifest against manifest.json, and every tar and member against both.

    Tars at an address are fetched one after another to a temporary file.

    quick: whether only the sizes of the tars are checked. Returns one line that says what was checked.

    Raises PipelineError, which counts what is damaged and names the first damaged shard and member.
    """
    folder = manifest.parent
    summary = check_summary(manifest)
    shards = summary["shards"]
    if quick and "address" in summary:
        check_tars(folder, summary)
        return _is_ok(summary["address"], summary, quick=True)
    rows_of = itertools.groupby(
        (row for batch in batches(manifest, read_schema(manifest).names) for row in batch.to_pylist()),
        key=lambda row: row["shard"],
    )
    first, damaged_shards, damaged_members = "", 0, 0
    for shard in tqdm(shards, unit="shard", disable=None, leave=False):
        rows = [] if quick else [row for row in next(rows_of)[1] if row["status"] == OK]
        with _local_tar(folder, summary, shard) as tar:
            problems = list(damages_of(tar, shard, rows, summary["format"], quick=quick))
        damaged_shards += bool(problems)
        members = [f"{member}: {problem}" for member, problem in problems if member is not None]
        damaged_members += len(members)
        if problems and not first:
            whole = [problem for member, problem in problems if member is None]
            first = f"{shard['tar']}: {'; '.join([*whole[:1], *members[:1]])}"
    if first:
        counted = "" if quick else f" and {damaged_members:,} of {2 * summary['clips']:,} members"
        advice = "delete the damaged shards and make them again with shard_audio"
        if "address" in summary:
            advice = "the files at that address were damaged or published again, ask the publisher"
        raise PipelineError(
            f"{summary.get('address', folder)}: {damaged_shards:,} of {len(shards):,} shards{counted} damaged; "
            f"the first: {first}; {advice}"
        )
    if strangers := sorted({path.name for path in folder.glob("*.tar")} - {shard["tar"] for shard in shards}):
        raise PipelineError(f"{folder}: {strangers[0]} is not in manifest.json; readers of *.tar take it in, delete it")
    return _is_ok(summary.get("address", folder), summary, quick=quick)


def _is_ok(place: object, summary: Mapping[str, Any], *, quick: bool) -> str:
    shards = summary["shards"]
    checked = "sizes alone" if quick else f"SHA-256 of all and of each of {summary['clips']:,} clips"
    return (
        f"{place}: ok: shards {len(shards):,}, {sum(shard['bytes'] for shard in shards):,} bytes ({checked}); "
        f"manifest {summary['rows']:,} rows, {summary['clips']:,} usable"
    )


@contextlib.contextmanager
def _local_tar(folder: Path, summary: Mapping[str, Any], shard: Mapping[str, Any]) -> Iterator[Path]:
    """A tar of a split as a local file; one at an address is fetched and removed afterwards."""
    if "address" not in summary:
        yield folder / shard["tar"]
        return
    with tempfile.TemporaryDirectory() as temporary:
        fetch(f"{summary['address']}/{shard['tar']}", Path(temporary) / shard["tar"])
        yield Path(temporary) / shard["tar"]


def verify_published(address: str, *, quick: bool) -> str:
    """Check the shards of a split at an address as `verify_shards` does."""
    address = address.rstrip("/")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        summary = read_published_summary(address)
        copy_file(f"{address}/manifest.parquet", folder / "manifest.parquet", summary["manifest_sha256"])
        write_json({**summary, "address": address}, folder / "manifest.json")
        try:
            return verify_shards(folder / "manifest.parquet", quick=quick)
        except PipelineError as error:
            raise PipelineError(str(error).replace(temporary, address)) from error


def check_summary(manifest: Path) -> dict[str, Any]:
    """The manifest.json next to a manifest, after a check that the two agree."""
    path = manifest.with_name("manifest.json")
    summary = read_summary(path)
    check_manifest(manifest)
    if (digest := sha256_of(manifest)) != summary["manifest_sha256"]:
        raise PipelineError(
            f"{manifest}: SHA-256 {digest}, {path.name} says {summary['manifest_sha256']}; one of them was changed, "
            "make both again with index_shards"
        )
    frames, last_key = 0, ""
    rates: set[int] = set()
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    clips_of: dict[str, int] = {}
    order: list[str] = []
    for batch in batches(manifest, ["key", "shard", "status", "reason", *_NEEDED]):
        keys, shards = batch["key"].to_pylist(), batch["shard"].to_pylist()
        for earlier, later in itertools.pairwise([last_key, *keys]):
            if later <= earlier:
                raise PipelineError(f"{manifest}: {later} does not follow {earlier}; make it again with index_shards")
        last_key = keys[-1]
        order += [shard for shard, _ in itertools.groupby(shards) if not (order and order[-1] == shard)]
        statuses.update(batch["status"].to_pylist())
        reasons.update(batch["reason"].drop_null().to_pylist())
        usable = batch.filter(pc.equal(batch["status"], OK))
        for name in _NEEDED:
            if usable[name].null_count:
                raise PipelineError(f"{manifest}: usable clips have no {name}; make their shards again")
        rates.update(usable["sample_rate_hz"].unique().to_pylist())
        frames += pc.sum(usable["frames"]).as_py() or 0
        for shard, count in Counter(usable["shard"].to_pylist()).items():
            clips_of[shard] = clips_of.get(shard, 0) + count
    found = {
        "rows": statuses.total(),
        "clips": statuses[OK],
        "status": dict(statuses),
        "reason": dict(reasons),
        "sample_rate_hz": rates.pop() if len(rates) == 1 else sorted(rates),
        "shards": [(shard, clips_of.get(shard, 0)) for shard in order],
    }
    if isinstance(rate := found["sample_rate_hz"], int):
        found["duration_s"] = round(frames / rate, 3)
    expected = {name: summary[name] for name in found} | {
        "shards": [(shard["shard"], shard["clips"]) for shard in summary["shards"]]
    }
    for name, value in found.items():
        if value != expected[name]:
            raise PipelineError(
                f"{path}: {name} is {_short(expected[name])}, {manifest.name} has {_short(value)}; make both again "
                "with index_shards"
            )
    return summary


def damages_of(
    path: Path, shard: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], audio_format: str, *, quick: bool
) -> Iterator[tuple[str | None, str]]:
    """Yield the damages of a tar: the member, or None for the whole tar, and how it differs from the manifest."""
    if not path.is_file():
        yield None, "not found"
        yield from (
            (name, "not found") for row in rows for name in (f"{row['key']}.{audio_format}", f"{row['key']}.json")
        )
        return
    size = path.stat().st_size
    if size != shard["bytes"]:
        yield None, f"{size:,} bytes, manifest.json says {shard['bytes']:,}"
    if quick:
        return
    damaged = False
    with path.open("rb", buffering=0) as file:
        tar = _Tar(file.fileno(), size)
        end: int | None = 0
        for row in rows:
            audio, text = f"{row['key']}.{audio_format}", f"{row['key']}.json"
            audio_problem = tar.audio_problem(audio, row, end, audio_format)
            text_problem, end = tar.json_problem(text, row)
            for member, problem in ((audio, audio_problem), (text, text_problem)):
                if problem is not None:
                    damaged = True
                    yield member, problem
        if end is not None and not damaged and tar.has_more(end):
            yield None, f"more members than the manifest has, from byte {end:,} on"
    if size == shard["bytes"] and (digest := sha256_of(path)) != shard["sha256"]:
        where = "" if damaged else ", though every member is as the manifest says"
        yield None, f"SHA-256 {digest}, manifest.json says {shard['sha256']}{where}"


@dataclass(frozen=True, slots=True)
class _Tar:
    """An open tar, whose members are compared with the rows of the manifest."""

    descriptor: int
    size: int

    def header_problem(self, name: str, offset: int) -> tuple[str | None, int]:
        """The fault of the header before the data at `offset`, or None, and the size that the header gives."""
        if offset > self.size:
            return f"lies at byte {offset:,}, beyond the end", 0
        block = os.pread(self.descriptor, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return f"no header before byte {offset:,} ({error})", 0
        if header.name != name:
            return f"byte {offset:,} belongs to {header.name}", header.size
        if offset + header.size > self.size:
            return f"cut, {self.size - offset:,} of {header.size:,} bytes are left", header.size
        return None, header.size

    def audio_problem(self, name: str, row: Mapping[str, Any], end: int | None, audio_format: str) -> str | None:
        """How the audio member of a row differs from it; `end` is where the member before ends, if that is known."""
        offset, size = row["data_offset"], row["data_size"]
        problem, found = self.header_problem(name, offset)
        if problem is not None:
            return problem
        if end is not None and offset - tarfile.BLOCKSIZE != end:
            return f"begins at byte {offset - tarfile.BLOCKSIZE:,}, the member before ends at {end:,}"
        if found != size:
            return f"{found:,} bytes, the manifest says {size:,}"
        digest = hashlib.sha256()
        for start in range(offset, offset + size, _CHUNK_BYTES):
            digest.update(os.pread(self.descriptor, min(_CHUNK_BYTES, offset + size - start), start))
        if digest.hexdigest() != row["sha256"]:
            return f"SHA-256 {digest.hexdigest()}, the manifest says {row['sha256']}"
        frames, rate = row["frames"], row["sample_rate_hz"]
        if audio_format == "wav":
            fits = size == WAV_HEADER_BYTES + frames * BYTES_PER_FRAME
            fits &= row["pcm_offset"] == offset + WAV_HEADER_BYTES
            header = os.pread(self.descriptor, WAV_HEADER_BYTES, offset)
            if not fits or header != wav_header(frames, rate):
                return f"is not a WAV file of {frames:,} frames at {rate} Hz from byte {row['pcm_offset']} on"
            return None
        try:
            audio = soundfile.info(io.BytesIO(os.pread(self.descriptor, size, offset)))
        except soundfile.SoundFileError as error:
            return f"cannot be decoded ({error})"
        if (audio.frames, audio.samplerate, audio.channels) != (frames, rate, 1):
            return f"{audio.frames:,} frames at {audio.samplerate} Hz, the manifest says {frames:,} at {rate}"
        return None

    def json_problem(self, name: str, row: Mapping[str, Any]) -> tuple[str | None, int | None]:
        """How the JSON member of a row differs from it, and where the member ends, None if that cannot be known."""
        offset = _padded(row["data_offset"] + row["data_size"]) + tarfile.BLOCKSIZE
        problem, size = self.header_problem(name, offset)
        if problem is not None:
            return problem, None
        end = _padded(offset + size)
        expected = {
            **{item: row[item] for item in ("captions", "dataset", "split", "source_name", "frames", "sample_rate_hz")},
            "source_id": row["source_id"] or "",
            "start_s": -1.0 if row["start_s"] is None else row["start_s"],
            **{name: -1.0 if row[name] is None else row[name] for name in SEGMENT_COLUMNS if name in row},
        }
        try:
            found = json.loads(os.pread(self.descriptor, size, offset))
        except ValueError as error:
            return f"is not JSON ({error})", end
        if not isinstance(found, dict):
            return f"holds a JSON {type(found).__name__}", end
        if found != expected:
            differing = sorted(item for item in expected.keys() | found.keys() if expected.get(item) != found.get(item))
            return f"differs from the manifest in {', '.join(differing)}", end
        return None, end

    def has_more(self, end: int) -> bool:
        """Whether anything but the zeros of a tar's end follows."""
        starts = range(end, self.size, _CHUNK_BYTES)
        return any(os.pread(self.descriptor, _CHUNK_BYTES, start).strip(b"\0") for start in starts)


def _padded(offset: int) -> int:
    return -(-offset // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
