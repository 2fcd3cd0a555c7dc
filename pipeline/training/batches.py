"""The global batches that a pairs file prescribes, read from the shards step by step.

Shapes: B = slots of this process, S = samples of a window.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pipeline.data.pairs import NO_CAPTION, read_epoch, read_facts
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.training.settings import PairingSettings


@dataclass
class Batch:
    """One process's slots of one step."""

    keys: list[str]
    """Key of each slot's labeled clip."""
    captions: list[str]
    """The caption drawn for each slot."""
    labeled_BS: Tensor
    """Windows of the labeled clips, int16."""
    partner_BS: Tensor | None
    """Windows of the partners, int16; None where the objective mixes nothing."""
    partner_captions: list[str | None] | None
    """Caption of each slot's partner, None for an unlabeled one; None where no partner of the epoch is labeled."""
    partner_keys: list[str] | None
    """Key of each slot's partner; None where the objective mixes nothing."""
    second_BS: Tensor | None = None
    """Windows of the second partners, int16; None without a term for text mixing next to unlabeled partners."""
    second_captions: list[str | None] | None = None
    """Caption of each slot's second partner, which is always labeled."""
    second_keys: list[str] | None = None
    """Key of each slot's second partner."""
    places: list[tuple[int, int, int]] | None = None
    """Seed of the pairs, step, and place in the global batch of each slot: what its noise depends on."""

    def pin_memory(self) -> Batch:
        """Move the batch to page-locked memory; the DataLoader calls it."""
        self.labeled_BS = self.labeled_BS.pin_memory()
        if self.partner_BS is not None:
            self.partner_BS = self.partner_BS.pin_memory()
        if self.second_BS is not None:
            self.second_BS = self.second_BS.pin_memory()
        return self


class PairedBatches(Dataset[Batch]):
    """Item i holds this process's slots of the global batch of step i, counted over all epochs.

    Rank r of R takes the slots [r * B/R, (r + 1) * B/R). So the global batches are those of the file for any R.
    """

    def __init__(self, pairs: Path, shards: Path, rank: int = 0, processes: int = 1, *, verify: bool = False) -> None:
        """Open the splits of the pairs file; missing, cut or changed shards raise here, before the first step.

        verify: shards with wrong bytes, too; each process looks at its part.
        """
        self.pairs = pairs
        self._share, self._verify = slice(rank, None, processes), verify
        self.facts = read_facts(pairs)
        self.drawing = PairingSettings.of(self.facts)
        batch_size = self.facts["batch_size"]
        if batch_size % processes:
            raise PipelineError(
                f"{pairs}: batches of {batch_size} cannot be divided equally among {processes} processes"
            )
        self.slots = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self.labeled, self.unlabeled = (
            _Splits(
                [self._open(shards, Path(folder), checksum) for folder, checksum in self.facts[role].items()],
                self.drawing.short_clips,
            )
            for role in ("labeled", "unlabeled")
        )
        self.channels = self.labeled.readers[0].channels  # of all, as pair_clips has checked
        self._epoch: tuple[int, _Slots] | None = None
        self._memory = _Memory((self.slots.stop - self.slots.start, self.facts["window_frames"]))

    def _open(self, shards: Path, folder: Path, checksum: str) -> ShardReader:
        place = shards / folder.parent.name / folder.name
        reader = open_shards(place, verify=self._verify, share=self._share)
        if reader.manifest_sha256 != checksum:
            raise PipelineError(
                f"{self.pairs}: was made from another version of {folder / 'manifest.parquet'}; "
                f"make the pairs again (python -m pipeline.stages.pair_clips)"
            )
        return reader

    def __len__(self) -> int:
        return self.facts["epochs"] * self.facts["steps_per_epoch"]

    def __getitem__(self, step: int) -> Batch:
        epoch, step_of_epoch = divmod(step, self.facts["steps_per_epoch"])
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # frees the memory of the previous epoch first
            self._epoch = (epoch, self._read_epoch(epoch))
        slots = self._epoch[1]
        count = self.slots.stop - self.slots.start
        here = slice(step_of_epoch * count, (step_of_epoch + 1) * count)
        return Batch(
            keys=slots.labeled.keys[here].to_pylist(),
            captions=cast("list[str]", slots.labeled.captions(here)),
            labeled_BS=slots.labeled.read(here, self._memory.tensor()),
            **self._columns("partner", slots.partner, here),
            **self._columns("second", slots.second, here),
            places=[(self.facts["seed"], step, slot) for slot in range(self.slots.start, self.slots.stop)],
        )

    def _columns(self, name: str, clips: _Clips | None, here: slice) -> dict[str, Any]:
        """Return windows, captions and keys of some slots' partners, by the names in `Batch`."""
        if clips is None:
            return {f"{name}_{column}": None for column in ("BS", "captions", "keys")}
        return {
            f"{name}_BS": clips.read(here, self._memory.tensor()),
            f"{name}_captions": clips.captions(here) if clips.has_captions else None,
            f"{name}_keys": clips.keys[here].to_pylist(),
        }

    def keys_of_all(self, step: int) -> list[str]:
        """Return the distinct keys of the clips in the global batch of a step: labeled clips, then partners."""
        epoch, step_of_epoch = divmod(step, self.facts["steps_per_epoch"])
        batch_size = self.facts["batch_size"]
        table = read_epoch(self.pairs, epoch).slice(step_of_epoch * batch_size, batch_size)
        columns = [table[name] for name in ("labeled_key", "partner_key", "second_key") if name in table.column_names]
        return list(dict.fromkeys(key for column in columns for key in column.drop_null().to_pylist()))

    def _read_epoch(self, epoch: int) -> _Slots:
        """Return this process's slots of all steps of an epoch."""
        table = read_epoch(self.pairs, epoch)
        batch_size = self.facts["batch_size"]
        slots = np.arange(table.num_rows).reshape(-1, batch_size)[:, self.slots].ravel()
        is_labeled = table["partner_caption"].to_numpy() != NO_CAPTION  # of the whole epoch, so on all processes
        table = table.take(slots).combine_chunks()
        partner = second = None
        if table["partner_key"].null_count == 0:
            readers = self.labeled.readers if is_labeled.any() else []
            readers = readers if is_labeled.all() else [*readers, *self.unlabeled.readers]
            splits = _Splits(readers, self.drawing.short_clips)
            partner = splits.find(table, "partner", has_captions=bool(is_labeled.any()))
        if "second_key" in table.column_names:
            second = self.labeled.find(table, "second")
        return _Slots(labeled=self.labeled.find(table, "labeled", caption="caption"), partner=partner, second=second)


class _Memory:
    """Tensors for int16 windows, whose memory is reused when the previous tensor is freed.

    The kernel maps and zeroes fresh memory page by page, which takes as long as reading the windows into it.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._free: list[NDArray[np.int16]] = []

    def tensor(self) -> Tensor:
        """Return a tensor with arbitrary values that nothing else refers to."""
        if get_worker_info() is not None:
            # Shared from the start: otherwise the loader process copies the tensor to send it. The copy here reads
            # untouched memory and takes a tenth of the time of filling it.
            return torch.empty(self._shape, dtype=torch.int16).share_memory_()
        windows_BS = self._free.pop() if self._free else np.empty(self._shape, np.int16)
        lent_BS = windows_BS[:]  # torch frees this view with the last tensor that uses its memory
        weakref.finalize(lent_BS, self._free.append, windows_BS)
        return torch.from_numpy(lent_BS)

    def __getstate__(self) -> dict[str, object]:
        return {"_shape": self._shape, "_free": []}


@dataclass(frozen=True)
class _Clips:
    """The clip of every slot of an epoch, in 24 bytes per slot and its key."""

    keys: pa.Array
    readers: list[ShardReader]
    reader: np.ndarray
    row: np.ndarray
    start: np.ndarray
    caption: np.ndarray
    has_captions: bool
    """Whether any clip of the epoch, on all processes, has a caption."""
    texts: pa.Array | None
    """The captions that are paraphrases; null where the caption is one of the clip's own."""
    short_clips: str

    def read(self, slots: slice, windows_BS: Tensor) -> Tensor:
        """Read the windows of some slots into a tensor and return it."""
        places = zip(self.reader[slots].tolist(), self.row[slots].tolist(), self.start[slots].tolist(), strict=True)
        for window_S, (reader, row, start) in zip(windows_BS.numpy(), places, strict=True):
            self.readers[reader].read_into(row, start, window_S, self.short_clips)
        return windows_BS

    def captions(self, slots: slice) -> list[str | None]:
        """Return the captions of some slots; None for clips that are used without captions."""
        readers, rows, numbers = self.reader[slots], self.row[slots], self.caption[slots]
        captions: list[str | None] = [None] * len(rows) if self.texts is None else self.texts[slots].to_pylist()
        is_own = np.array([caption is None for caption in captions]) & (numbers != NO_CAPTION)
        for number in np.unique(readers):
            places = np.flatnonzero((readers == number) & is_own)
            found = self.readers[number].captions_at(rows[places], numbers[places])
            for place, caption in zip(places, found, strict=True):
                captions[place] = caption
        return captions


@dataclass(frozen=True)
class _Slots:
    """The slots of one process in an epoch."""

    labeled: _Clips
    partner: _Clips | None
    second: _Clips | None


@dataclass(frozen=True)
class _Splits:
    """The splits that the clips of one role come from."""

    readers: list[ShardReader]
    short_clips: str
    """How windows of shorter clips are filled (`pipeline.data.audio.fit_window`)."""

    def find(self, table: pa.Table, name: str, *, caption: str = "", has_captions: bool = True) -> _Clips:
        """Return the clips that the columns `{name}_key`, `{name}_start` and `{name}_caption` of a pairs file name.

        caption: the column of captions, where it has another name.
        """
        keys = table[f"{name}_key"].combine_chunks()
        reader, row = np.full(len(keys), -1, np.int16), np.full(len(keys), -1)
        for number, split in enumerate(self.readers):
            found = split.rows_of(keys)
            reader[found >= 0] = number
            row = np.where(found >= 0, found, row)
        if len(missing := np.flatnonzero(reader < 0)):
            folders = ", ".join(str(split.folder) for split in self.readers)
            raise PipelineError(f"{keys[missing[0]]} is not a usable clip of {folders}; make the pairs again")
        columns = (f"{name}_start", caption or f"{name}_caption")
        text = f"{columns[1]}_text"
        starts, captions = (table[column].to_numpy().astype(np.int64) for column in columns)
        return _Clips(
            keys=keys,
            readers=self.readers,
            reader=reader,
            row=row,
            start=starts,
            caption=captions,
            has_captions=has_captions,
            texts=table[text].combine_chunks() if text in table.column_names else None,
            short_clips=self.short_clips,
        )
