"""Whether the rows of a pairs file agree with its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.commands.inspection.columns import batches
from pipeline.commands.inspection.pairs import PairedSplit, leaked_of, read_footer, splits_of
from pipeline.data.leaks import leaked_path
from pipeline.data.pairs import NO_CAPTION
from pipeline.data.shards.format import read_summary
from pipeline.data.shards.reader import hashes_of
from pipeline.errors import PipelineError
from pipeline.training.settings import PairingSettings


@dataclass(frozen=True, slots=True)
class _Clips:
    """The clips of one role, as far as pairs refer to them; 20 bytes per clip."""

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
        """The row of every key, -1 if there is no such clip."""
        if len(self) == 0:
            return np.full(len(keys), -1)
        wanted = hashes_of(pc.fill_null(keys, ""))
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        return np.where(self.hashes[places] == wanted, places, -1)


def verify_pairs(path: Path, shards: Path | None, *, quick: bool) -> str:
    """Check a pairs file: every row is there, its clips, captions and windows exist, its manifests are unchanged.

    quick: whether only the number of rows and the manifests are checked. Returns one line that says what was checked.

    Raises PipelineError, which counts the wrong rows and names the first.
    """
    footer = read_footer(path)
    splits = splits_of(path, footer, shards)
    check_splits(path, splits, footer["sample_rate_hz"])
    epochs, rows_per_epoch = footer["epochs"], footer["steps_per_epoch"] * footer["batch_size"]
    check_row_counts(path, epochs, rows_per_epoch)
    state, leaked = leaked_of(path, footer)
    if state != "agrees":
        raise PipelineError(
            f"{leaked_path(path)}: {state}; {len(leaked)} clips are listed, the footer of the pairs says "
            f"{footer.get('left_out_as_leaked', {})}; make both again with pair_clips"
        )
    shape = f"{epochs} epochs of {footer['steps_per_epoch']} steps of {footer['batch_size']} pairs"
    names = ", ".join(split.name for split in splits)
    if quick:
        return f"{path}: ok: {shape}; manifests of {names} unchanged"

    labeled, unlabeled = (
        _Clips.read([split.folder for split in splits if split.role == role and split.folder is not None])
        for role in ("labeled", "unlabeled")
    )
    wrong, first = check_rows(path, footer, labeled, unlabeled)
    if wrong:
        raise PipelineError(
            f"{path}: {wrong:,} of {epochs * rows_per_epoch:,} rows are wrong; the first: {first}; "
            "make the pairs again with pair_clips"
        )
    return (
        f"{path}: ok: {shape}, {epochs * rows_per_epoch:,} rows; their keys, captions and windows are those of "
        f"{len(labeled):,} labeled and {len(unlabeled):,} unlabeled clips; manifests of {names} unchanged"
    )


def check_row_counts(path: Path, epochs: int, rows_per_epoch: int) -> None:
    """Raise PipelineError unless the file has one row group per epoch, of as many rows as its footer says."""
    metadata = pq.read_metadata(path)
    if metadata.num_row_groups != epochs:
        raise PipelineError(f"{path}: {metadata.num_row_groups} epochs of the {epochs} that its footer says")
    for epoch in range(epochs):
        if (found := metadata.row_group(epoch).num_rows) != rows_per_epoch:
            raise PipelineError(f"{path}: epoch {epoch} has {found:,} rows, its footer says {rows_per_epoch:,}")


def check_rows(path: Path, footer: Mapping[str, Any], labeled: _Clips, unlabeled: _Clips) -> tuple[int, str]:
    """The number of wrong rows of a pairs file, and the fault of the first one."""
    first, wrong = "", 0
    columns = pq.read_schema(path).names
    slots = len(labeled) if PairingSettings.of(footer).captions_per_clip == "one" else int(labeled.captions.sum())
    for epoch in tqdm(range(footer["epochs"]), unit="epoch", disable=None, leave=False):
        used, row = np.zeros(slots, bool), 0
        for batch in batches(path, columns, [epoch]):
            expected = {
                "epoch": np.full(batch.num_rows, epoch),
                "step": np.arange(row, row + batch.num_rows) // footer["batch_size"],
                "slot": np.arange(row, row + batch.num_rows) % footer["batch_size"],
            }
            row += batch.num_rows
            problems = row_problems(batch, expected, labeled, unlabeled, used, footer)
            masks = np.array(list(problems.values()))
            wrong += int(masks.any(axis=0).sum())
            if masks.any() and not first:
                place = int(masks.any(axis=0).argmax())
                problem = list(problems)[int(masks[:, place].argmax())]
                where = ", ".join(f"{name} {values[place]}" for name, values in expected.items())
                values = {name: batch[name][place].as_py() for name in columns}
                first = f"{where}: {problem.format(**values)}"
    return wrong, first


def check_splits(path: Path, splits: Sequence[PairedSplit], sample_rate_hz: int) -> None:
    """Raise PipelineError unless every split is there, unchanged and at the pairs' rate."""
    for split in splits:
        state = split.state()
        if split.folder is None:
            raise PipelineError(
                f"{path}: draws from {split.name}, whose manifest.parquet was not found; pass --shards, the folder "
                f"that holds {split.name}"
            )
        if state == "has changed":
            raise PipelineError(
                f"{path}: was made from another {split.manifest} than the present one "
                f"(SHA-256 {split.manifest_sha256} then); make the pairs again with pair_clips"
            )
        rate = read_summary(split.folder / "manifest.json")["sample_rate_hz"]
        if rate != sample_rate_hz:
            raise PipelineError(f"{path}: counts frames at {sample_rate_hz} Hz, {split.folder} is at {rate} Hz")


def outside(clips: _Clips, places: np.ndarray, starts: np.ndarray, window_frames: int) -> np.ndarray:
    """Whether each window reaches beyond its clip."""
    last = np.maximum(clips.frames[places] - window_frames, 0)
    return (places >= 0) & ((starts < 0) | (starts > last))


def uncaptioned(clips: _Clips, places: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether each clip lacks the caption of this number."""
    return (places >= 0) & ((captions < 0) | (captions >= clips.captions[places]))


def has_text(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """Whether each row's caption is a paraphrase, whose text the pairs hold."""
    if column not in batch.schema.names:
        return np.zeros(batch.num_rows, bool)
    return batch[column].is_valid().to_numpy(zero_copy_only=False)


def partner_problems(
    name: str,
    batch: pa.RecordBatch,
    values: Mapping[str, np.ndarray],
    labeled: _Clips,
    unlabeled: _Clips,
    footer: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The rows of a batch that have each problem in the columns of a partner; one with a caption is a labeled clip."""
    captions, starts, keys = values[f"{name}_caption"], values[f"{name}_start"], batch[f"{name}_key"]
    key = f"{name}_key {{{name}_key}}"
    if not footer["unlabeled"] or name == "second":
        is_labeled = np.ones(batch.num_rows, bool)
    elif PairingSettings.of(footer).labeled_partners:
        is_labeled = captions != NO_CAPTION
    else:
        is_labeled = np.zeros(batch.num_rows, bool)
    problems: dict[str, np.ndarray] = {}
    for role, clips, here in (("labeled", labeled, is_labeled), ("unlabeled", unlabeled, ~is_labeled)):
        if not here.any():
            continue
        places = clips.find(keys)
        wrong_captions = captions != NO_CAPTION
        if role == "labeled":
            wrong_captions = uncaptioned(clips, places, captions) & ~has_text(batch, f"{name}_caption_text")
        beyond = outside(clips, places, starts, footer["window_frames"])
        if role == "labeled":
            same = pc.fill_null(pc.equal(batch["labeled_key"], keys), False).to_numpy(zero_copy_only=False)
            word = "second partner" if name == "second" else "partner"
            problems[f"{{labeled_key}} is its own {word}"] = here & same
        problems[f"{key} is no usable clip of the {role} splits"] = here & (places < 0)
        for message, rows in (
            (f"{key} has no caption {{{name}_caption}}", wrong_captions),
            (f"{name}_start {{{name}_start}} is outside {{{name}_key}}", beyond),
        ):
            problems[message] = problems.get(message, False) | (here & rows)
    return problems


def row_problems(
    batch: pa.RecordBatch,
    expected: Mapping[str, np.ndarray],
    labeled: _Clips,
    unlabeled: _Clips,
    used: np.ndarray,
    footer: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The rows of a batch that have each problem, (rows,) booleans by message.

    `used` marks the labeled clips of the epoch so far, or all their captions where each has a slot, and is updated.
    """
    values = {
        field.name: pc.fill_null(batch[field.name], -2).to_numpy()  # -2 is right nowhere
        for field in batch.schema
        if pa.types.is_integer(field.type)
    }

    places = labeled.find(batch["labeled_key"])
    is_paraphrase = has_text(batch, "caption_text")
    miscaptioned = uncaptioned(labeled, places, values["caption"]) & ~is_paraphrase
    subject, slots = "labeled_key {labeled_key}", places
    if PairingSettings.of(footer).captions_per_clip == "all":
        subject = "caption {caption} of labeled_key {labeled_key}"
        slots = (np.cumsum(labeled.captions) - labeled.captions)[places] + values["caption"]
        slots = np.where((places < 0) | miscaptioned | is_paraphrase, -1, slots)
    again = np.ones(len(slots), bool)
    again[np.unique(slots, return_index=True)[1]] = False
    again = (again | used[slots]) & (slots >= 0)
    used[slots[slots >= 0]] = True
    misplaced = np.any([values[name] != numbers for name, numbers in expected.items()], axis=0)
    problems = {
        "is in the file as epoch {epoch}, step {step}, slot {slot}": misplaced,
        "labeled_key {labeled_key} is no usable clip of the labeled splits": places < 0,
        f"{subject} is in this epoch before": again,
        "labeled_key {labeled_key} has no caption {caption}": miscaptioned,
        "labeled_start {labeled_start} is outside {labeled_key}": outside(
            labeled, places, values["labeled_start"], footer["window_frames"]
        ),
    }
    if footer["unlabeled"] or batch["partner_key"].null_count < batch.num_rows:
        problems |= partner_problems("partner", batch, values, labeled, unlabeled, footer)
    if "second_key" in batch.schema.names:
        problems |= partner_problems("second", batch, values, labeled, unlabeled, footer)
    return problems
