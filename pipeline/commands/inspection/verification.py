"""What `python -m pipeline verify` checks: that shards and pairs are to the byte what their manifests say."""

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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
from tqdm import tqdm

from pipeline.commands.inspection.targets import (
    PairedSplit,
    Target,
    batches,
    check_manifest,
    leaked_of,
    read_pairs_facts,
    splits_of,
)
from pipeline.data.addresses import copy_file, fetch
from pipeline.data.audio import BYTES_PER_FRAME, WAV_HEADER_BYTES, wav_header
from pipeline.data.catalogs import OK
from pipeline.data.leaks import leaked_path
from pipeline.data.pairs import NO_CAPTION
from pipeline.data.pairs import SCHEMA as PAIRS_SCHEMA
from pipeline.data.shards.format import MANIFEST_SCHEMA, check_tars, read_published_summary, read_summary
from pipeline.data.shards.reader import hashes_of
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_json
from pipeline.training.settings import PairingSettings

_CHUNK_BYTES = 1 << 20
_PLACE = ("data_offset", "data_size", "frames", "sample_rate_hz", "sha256")  # without which a clip cannot be read


def verify(target: Target, *, shards: Path | None, quick: bool) -> str:
    """One line that says what was found right; PipelineError names the first thing that is not."""
    if target.kind == "shards":
        return verify_shards(target.path, quick=quick)
    if target.kind == "pairs":
        return verify_pairs(target.path, shards, quick=quick)
    raise PipelineError(
        f"{target.path}: a {target.kind}, which has no checksums; give a folder of shards or a pairs file"
    )


# --- shards ----------------------------------------------------------------------------------------------------------


def verify_shards(manifest: Path, *, quick: bool) -> str:
    """Check a split: its manifest against manifest.json, and every tar and member against both.

    Tars at an address are fetched whole, one after another, to a temporary file.

    quick: of the tars only that they are there and how large they are.
    """
    folder = manifest.parent
    summary = check_summary(manifest)
    shards = summary["shards"]
    if quick and "address" in summary:
        check_tars(folder, summary)
        return _sound(summary["address"], summary, quick=True)
    rows_of = itertools.groupby(
        (row for batch in batches(manifest, MANIFEST_SCHEMA.names) for row in batch.to_pylist()),
        key=lambda row: row["shard"],
    )
    first, damaged_shards, damaged_members = "", 0, 0
    for shard in tqdm(shards, unit="shard", disable=None, leave=False):
        rows = [] if quick else [row for row in next(rows_of)[1] if row["status"] == OK]
        with _at_hand(folder, summary, shard) as tar:
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
            advice = "what lies at that address was damaged or published anew, ask its publisher"
        raise PipelineError(
            f"{summary.get('address', folder)}: {damaged_shards:,} of {len(shards):,} shards{counted} damaged; "
            f"the first: {first}; {advice}"
        )
    if strangers := sorted({path.name for path in folder.glob("*.tar")} - {shard["tar"] for shard in shards}):
        raise PipelineError(f"{folder}: {strangers[0]} is not in manifest.json; readers of *.tar take it in, delete it")
    return _sound(summary.get("address", folder), summary, quick=quick)


def _sound(place: object, summary: Mapping[str, Any], *, quick: bool) -> str:
    shards = summary["shards"]
    checked = "sizes alone" if quick else f"SHA-256 of all and of each of {summary['clips']:,} clips"
    return (
        f"{place}: ok: shards {len(shards):,}, {sum(shard['bytes'] for shard in shards):,} bytes ({checked}); "
        f"manifest {summary['rows']:,} rows, {summary['clips']:,} usable"
    )


@contextlib.contextmanager
def _at_hand(folder: Path, summary: Mapping[str, Any], shard: Mapping[str, Any]) -> Iterator[Path]:
    """A tar of a split as a file of this machine, for as long as it is looked at."""
    if "address" not in summary:
        yield folder / shard["tar"]
        return
    with tempfile.TemporaryDirectory() as temporary:
        fetch(f"{summary['address']}/{shard['tar']}", Path(temporary) / shard["tar"])
        yield Path(temporary) / shard["tar"]


def verify_published(address: str, *, quick: bool) -> str:
    """Check a split of shards at an address, of which nothing has been copied, as `verify_shards` does."""
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
    """The manifest.json beside a manifest, after a check that the two agree."""
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
    for batch in batches(manifest, ["key", "shard", "status", "reason", *_PLACE]):
        keys, shards = batch["key"].to_pylist(), batch["shard"].to_pylist()
        for earlier, later in itertools.pairwise([last_key, *keys]):
            if later <= earlier:
                raise PipelineError(f"{manifest}: {later} does not follow {earlier}; make it again with index_shards")
        last_key = keys[-1]
        order += [shard for shard, _ in itertools.groupby(shards) if not (order and order[-1] == shard)]
        statuses.update(batch["status"].to_pylist())
        reasons.update(batch["reason"].drop_null().to_pylist())
        usable = batch.filter(pc.equal(batch["status"], OK))
        for name in _PLACE:
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
    told = {name: summary[name] for name in found} | {
        "shards": [(shard["shard"], shard["clips"]) for shard in summary["shards"]]
    }
    for name, value in found.items():
        if value != told[name]:
            raise PipelineError(
                f"{path}: {name} is {_short(told[name])}, {manifest.name} has {_short(value)}; make both again with "
                "index_shards"
            )
    return summary


def damages_of(
    path: Path, shard: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], audio_format: str, *, quick: bool
) -> Iterator[tuple[str | None, str]]:
    """What is wrong with a tar: the member, or None for the whole, and how it differs from what is told."""
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
    descriptor: int
    size: int

    def header_problem(self, name: str, offset: int) -> tuple[str | None, int]:
        """What is wrong with the header before the data at `offset`, and the size that it gives."""
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
            return f"cut, {self.size - offset:,} of {header.size:,} bytes are there", header.size
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
            told = size == WAV_HEADER_BYTES + frames * BYTES_PER_FRAME, row["pcm_offset"] == offset + WAV_HEADER_BYTES
            header = os.pread(self.descriptor, WAV_HEADER_BYTES, offset)
            if not all(told) or header != wav_header(frames, rate):
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
        told = {
            **{item: row[item] for item in ("captions", "dataset", "split", "source_name", "frames", "sample_rate_hz")},
            "source_id": row["source_id"] or "",
            "start_s": -1.0 if row["start_s"] is None else row["start_s"],
        }
        try:
            found = json.loads(os.pread(self.descriptor, size, offset))
        except ValueError as error:
            return f"is not JSON ({error})", end
        if not isinstance(found, dict):
            return f"holds a JSON {type(found).__name__}", end
        if found != told:
            differing = sorted(item for item in told.keys() | found.keys() if told.get(item) != found.get(item))
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


# --- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clips:
    """What pairs may say of the clips of one role; 20 bytes a clip."""

    hashes: np.ndarray
    """Of the keys, ascending."""
    frames: np.ndarray
    captions: np.ndarray

    @staticmethod
    def read(folders: Sequence[Path]) -> _Clips:
        hashes, frames, captions = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for folder in folders:
            for batch in batches(folder / "manifest.parquet", ["key", "frames", "captions"], usable=True):
                hashes.append(hashes_of(batch["key"]))
                frames.append(batch["frames"].to_numpy())
                captions.append(pc.list_value_length(batch["captions"]).to_numpy())
        order = np.argsort(np.concatenate(hashes))
        return _Clips(*(np.concatenate(parts)[order] for parts in (hashes, frames, captions)))

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, keys: pa.Array) -> np.ndarray:
        """The place of every key, -1 if there is no such clip."""
        if len(self) == 0:
            return np.full(len(keys), -1)
        wanted = hashes_of(pc.fill_null(keys, ""))
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        return np.where(self.hashes[places] == wanted, places, -1)


def verify_pairs(path: Path, shards: Path | None, *, quick: bool) -> str:
    """Check a pairs file: every row is there, its clips, captions and windows exist, its manifests are unchanged.

    quick: the number of rows and the manifests alone.
    """
    facts = read_pairs_facts(path)
    splits = splits_of(path, facts, shards)
    check_splits(path, splits, facts["sample_rate_hz"])
    metadata = pq.read_metadata(path)
    epochs, rows_an_epoch = facts["epochs"], facts["steps_per_epoch"] * facts["batch_size"]
    if metadata.num_row_groups != epochs:
        raise PipelineError(f"{path}: {metadata.num_row_groups} epochs of the {epochs} that its footer tells of")
    for epoch in range(epochs):
        if (found := metadata.row_group(epoch).num_rows) != rows_an_epoch:
            raise PipelineError(f"{path}: epoch {epoch} has {found:,} rows, its footer tells of {rows_an_epoch:,}")
    state, leaked = leaked_of(path, facts)
    if state != "agrees":
        raise PipelineError(
            f"{leaked_path(path)}: {state}; {len(leaked)} clips are listed, the footer of the pairs says "
            f"{_short(facts['left_out_as_leaked'])}; make both again with pair_clips"
        )
    shape = f"{epochs} epochs of {facts['steps_per_epoch']} steps of {facts['batch_size']} pairs"
    names = ", ".join(split.name for split in splits)
    if quick:
        return f"{path}: ok: {shape}; manifests of {names} unchanged"

    labeled, unlabeled = (
        _Clips.read([split.folder for split in splits if split.role == role and split.folder is not None])
        for role in ("labeled", "unlabeled")
    )
    captions_per_clip = PairingSettings.of(facts).captions_per_clip
    first, wrong = "", 0
    for epoch in tqdm(range(epochs), unit="epoch", disable=None, leave=False):
        used = np.zeros(len(labeled) if captions_per_clip == "one" else int(labeled.captions.sum()), bool)
        row = 0
        for batch in batches(path, PAIRS_SCHEMA.names, [epoch]):
            expected = {
                "epoch": np.full(batch.num_rows, epoch),
                "step": np.arange(row, row + batch.num_rows) // facts["batch_size"],
                "slot": np.arange(row, row + batch.num_rows) % facts["batch_size"],
            }
            row += batch.num_rows
            problems = row_problems(batch, expected, labeled, unlabeled, used, facts)
            masks = np.array(list(problems.values()))
            wrong += int(masks.any(axis=0).sum())
            if masks.any() and not first:
                place = int(masks.any(axis=0).argmax())
                problem = list(problems)[int(masks[:, place].argmax())]
                where = ", ".join(f"{name} {values[place]}" for name, values in expected.items())
                values = {name: batch[name][place].as_py() for name in PAIRS_SCHEMA.names}
                first = f"{where}: {problem.format(**values)}"
    if first:
        raise PipelineError(
            f"{path}: {wrong:,} of {epochs * rows_an_epoch:,} rows are wrong; the first: {first}; "
            "make the pairs again with pair_clips"
        )
    return (
        f"{path}: ok: {shape}, {epochs * rows_an_epoch:,} rows; their keys, captions and windows are those of "
        f"{len(labeled):,} labeled and {len(unlabeled):,} unlabeled clips; manifests of {names} unchanged"
    )


def check_splits(path: Path, splits: Sequence[PairedSplit], sample_rate_hz: int) -> None:
    """Raise PipelineError unless every split is there, unchanged and at the pairs' rate."""
    for split in splits:
        state = split.state()
        if split.folder is None:
            raise PipelineError(
                f"{path}: draws from {split.name}, whose manifest was not found; pass --shards, the folder that holds "
                f"{split.name}"
            )
        if state == "has changed":
            raise PipelineError(
                f"{path}: was made from another {split.manifest} than there is now "
                f"(SHA-256 {split.manifest_sha256} then); make the pairs again with pair_clips"
            )
        rate = read_json(split.folder / "manifest.json").get("sample_rate_hz")
        if rate != sample_rate_hz:
            raise PipelineError(f"{path}: counts frames at {sample_rate_hz} Hz, {split.folder} is at {rate} Hz")


def row_problems(
    batch: pa.RecordBatch,
    expected: Mapping[str, np.ndarray],
    labeled: _Clips,
    unlabeled: _Clips,
    used: np.ndarray,
    facts: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Which rows of a batch have which problem.

    `used` marks the labeled clips of the epoch so far, or all their captions where each has a slot, and is updated.
    """
    values = {
        field.name: pc.fill_null(batch[field.name], -2).to_numpy()  # -2 is right nowhere
        for field in PAIRS_SCHEMA
        if pa.types.is_integer(field.type)
    }

    def outside(clips: _Clips, places: np.ndarray, starts: np.ndarray) -> np.ndarray:
        last = np.maximum(clips.frames[places] - facts["window_frames"], 0)
        return (places >= 0) & ((starts < 0) | (starts > last))

    def uncaptioned(clips: _Clips, places: np.ndarray, captions: np.ndarray) -> np.ndarray:
        return (places >= 0) & ((captions < 0) | (captions >= clips.captions[places]))

    places = labeled.find(batch["labeled_key"])
    miscaptioned = uncaptioned(labeled, places, values["caption"])
    told, slots = "labeled_key {labeled_key}", places
    if PairingSettings.of(facts).captions_per_clip == "all":
        told = "caption {caption} of labeled_key {labeled_key}"
        slots = (np.cumsum(labeled.captions) - labeled.captions)[places] + values["caption"]
        slots = np.where((places < 0) | miscaptioned, -1, slots)
    again = np.ones(len(slots), bool)
    again[np.unique(slots, return_index=True)[1]] = False
    again = (again | used[slots]) & (slots >= 0)
    used[slots[slots >= 0]] = True
    misplaced = np.any([values[name] != numbers for name, numbers in expected.items()], axis=0)
    problems = {
        "is in the file as epoch {epoch}, step {step}, slot {slot}": misplaced,
        "labeled_key {labeled_key} is no usable clip of the labeled splits": places < 0,
        f"{told} is in this epoch before": again,
        "labeled_key {labeled_key} has no caption {caption}": miscaptioned,
        "labeled_start {labeled_start} is outside {labeled_key}": outside(labeled, places, values["labeled_start"]),
    }
    partner_is_null = batch["partner_key"].is_null().to_numpy(zero_copy_only=False)
    if facts["unlabeled"] or not partner_is_null.all():
        role, clips = ("unlabeled", unlabeled) if facts["unlabeled"] else ("labeled", labeled)
        partners = clips.find(batch["partner_key"])
        if facts["unlabeled"]:
            partner_miscaptioned = values["partner_caption"] != NO_CAPTION
        else:
            partner_miscaptioned = uncaptioned(clips, partners, values["partner_caption"])
            same = pc.fill_null(pc.equal(batch["labeled_key"], batch["partner_key"]), False)
            problems["{labeled_key} is its own partner"] = same.to_numpy(zero_copy_only=False)
        problems |= {
            f"partner_key {{partner_key}} is no usable clip of the {role} splits": partners < 0,
            "partner_key {partner_key} has no caption {partner_caption}": partner_miscaptioned,
            "partner_start {partner_start} is outside {partner_key}": outside(clips, partners, values["partner_start"]),
        }
    return problems
