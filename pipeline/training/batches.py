"""The global batches that a pairs file prescribes, read from the shards one step at a time.

Shapes: B = slots of this process, S = samples of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import PipelineError
from pipeline.pairs import read_epoch, read_facts
from pipeline.shards import ShardReader, open_shards


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
    partner_captions: list[str] | None
    """Captions of the partners where they are labeled."""

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the DataLoader)."""
        self.labeled_BS = self.labeled_BS.pin_memory()
        if self.partner_BS is not None:
            self.partner_BS = self.partner_BS.pin_memory()
        return self


class PairedBatches(Dataset[Batch]):
    """Item i is step i of the whole training, counted over all epochs: this process's slots of its global batch.

    Rank r of R takes the slots [r * B/R, (r + 1) * B/R), so that the global batches are those of the file for any R.
    """

    def __init__(self, pairs: Path, shards: Path, rank: int = 0, processes: int = 1) -> None:
        """Open the splits that the pairs name; damaged or changed shards are found here, before the first step."""
        self.pairs = pairs
        self.facts = read_facts(pairs)
        batch_size = self.facts["batch_size"]
        if batch_size % processes:
            raise PipelineError(f"{pairs}: batches of {batch_size} cannot be shared by {processes} processes equally")
        self.slots = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self.readers = [
            self._open(shards, Path(folder), checksum)
            for folder, checksum in {**self.facts["labeled"], **self.facts["unlabeled"]}.items()
        ]
        self.reader_of = {key: reader for reader in self.readers for key in reader.keys}
        self._epoch: tuple[int, dict[str, list]] | None = None

    def _open(self, shards: Path, folder: Path, checksum: str) -> ShardReader:
        reader = open_shards(shards / folder.parent.name / folder.name)
        if reader.manifest_sha256 != checksum:
            raise PipelineError(
                f"{self.pairs}: was made from another manifest than {folder / 'manifest.parquet'} is now; "
                f"make the pairs again (python -m pipeline.stages.pair_clips)"
            )
        return reader

    def __len__(self) -> int:
        return self.facts["epochs"] * self.facts["steps_per_epoch"]

    def __getitem__(self, step: int) -> Batch:
        epoch, step_of_epoch = divmod(step, self.facts["steps_per_epoch"])
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, read_epoch(self.pairs, epoch).to_pydict())
        first = step_of_epoch * self.facts["batch_size"]
        rows = {
            name: values[first + self.slots.start : first + self.slots.stop] for name, values in self._epoch[1].items()
        }
        mixes = rows["partner_key"][0] is not None
        labeled_partners = mixes and rows["partner_caption"][0] >= 0
        return Batch(
            keys=rows["labeled_key"],
            captions=self._captions(rows["labeled_key"], rows["caption"]),
            labeled_BS=self._windows(rows["labeled_key"], rows["labeled_start"]),
            partner_BS=self._windows(rows["partner_key"], rows["partner_start"]) if mixes else None,
            partner_captions=self._captions(rows["partner_key"], rows["partner_caption"]) if labeled_partners else None,
        )

    def _windows(self, keys: Sequence[str], starts: Sequence[int]) -> Tensor:
        frames = self.facts["window_frames"]
        windows = np.empty((len(keys), frames), np.int16)
        for row, (key, start) in enumerate(zip(keys, starts, strict=True)):
            windows[row] = self.reader_of[key].read_window(key, start, frames)
        return torch.from_numpy(windows)

    def _captions(self, keys: Sequence[str], indices: Sequence[int]) -> list[str]:
        return [self.reader_of[key].captions(key)[index] for key, index in zip(keys, indices, strict=True)]
