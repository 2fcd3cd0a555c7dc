"""Embed the recordings of a folder into its index: new and changed ones, decoded while the model computes."""

# W = windows of a batch, D = joint width

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pipeline.data.unusable import UnusableAudio
from pipeline.evaluation.embedding import encode_windows
from pipeline.evaluation.folders.index import FolderIndex, IndexedFile, IndexWriter
from pipeline.evaluation.folders.recordings import End, RecordingFile, Window, WindowForm, decode_ahead
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.models.clap import ClapModel

_MOST_BATCHES = 32
"""Embedded batches that stay on a GPU: a copy waits for the GPU, so that one per batch would slow it down."""
_COMMIT_S = 20.0
"""A kill loses the work of so many seconds, and the batches at hand."""
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsearched:
    """A recording that was not searched, or only up to a fault."""

    file: str
    reason: str
    """`unreadable`, `changed`, or a reason of `pipeline.data.catalogs.REASONS`."""
    detail: str
    searched_s: float
    """How much of it was searched, from its beginning."""


def update_index(
    index: FolderIndex, network: ClapModel, folder: Path, recordings: Mapping[str, RecordingFile], form: WindowForm
) -> list[Unsearched]:
    """Bring an index up to date with a folder; return the files that could not be read, or changed meanwhile.

    Embeds files that are new, have another size or time of modification, or were begun by a search that was killed.
    Forgets those that are gone. Files that cannot be decoded are kept in the index with the reason.

    Raises:
        PipelineError: The index cannot be written or is in use, or an embedding is not finite.
    """
    if is_current(index, recordings):
        return []
    with index.locked():
        index.forget_all_but(recordings)
        unread = _embed_files(index, network, folder, _outdated(index, recordings), form)
        if index.is_mostly_dead:
            index.compact()
    return unread


def is_current(index: FolderIndex, recordings: Mapping[str, RecordingFile]) -> bool:
    """Return whether an index needs no change; forget the files that are gone."""
    index.forget_all_but(recordings)
    return not _outdated(index, recordings) and not index.is_mostly_dead


def _outdated(index: FolderIndex, recordings: Mapping[str, RecordingFile]) -> list[RecordingFile]:
    """The files to embed; those that a killed search began come first."""
    begun, new = [], []
    for name, file in recordings.items():
        held = index.files.get(name)
        if held is None or not held.is_of(file):
            new.append(file)
        elif not held.is_complete:
            begun.append(file)
    return begun + new


def _embed_files(
    index: FolderIndex, network: ClapModel, folder: Path, files: Sequence[RecordingFile], form: WindowForm
) -> list[Unsearched]:
    unread: list[Unsearched] = []
    is_gpu = network.logit_scale.device.type == "cuda"
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0))) if is_gpu else 1  # a CPU computes with all its cores
    with index.writer() as writer, tqdm(desc="recordings", unit="file", total=len(files), disable=None) as progress:
        embedder = _Embedder(network, writer)
        committed_at = time.monotonic()
        wanted = ((file, _next_window(index, file)) for file in files)
        for file, item in decode_ahead(folder, wanted, form, threads):
            if isinstance(item, Window):
                embedder.add(writer.file(file), item)
            elif (unreadable := _unreadable(folder, file, item)) is None:
                embedder.end(writer.file(file), item)
            else:
                unread.append(unreadable)
                writer.abandon(writer.file(file))
            if isinstance(item, End):
                progress.update()
                progress.set_postfix(windows=embedder.windows, refresh=False)
            if time.monotonic() - committed_at > _COMMIT_S:
                embedder.commit()
                committed_at = time.monotonic()
        embedder.commit()
    return unread


def _next_window(index: FolderIndex, file: RecordingFile) -> int:
    """The number of the first window that is not in the index yet."""
    held = index.files.get(file.name)
    return held.next_window if held is not None and held.is_of(file) else 0


def _unreadable(folder: Path, file: RecordingFile, end: End) -> Unsearched | None:
    """Why a file cannot be searched now, or None: it may be gone or have changed since the folder was listed."""
    try:
        status = os.stat(folder / file.name)
    except OSError as error:
        return Unsearched(file=file.name, reason="unreadable", detail=error.strerror or "", searched_s=0)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        return Unsearched(file=file.name, reason="changed", detail="while it was read; search again", searched_s=0)
    if end.fault is None or isinstance(end.fault, UnusableAudio):
        return None
    return Unsearched(file=file.name, reason="unreadable", detail=str(end.fault), searched_s=0)


class _Embedder:
    """Embeds windows in batches, over the bounds of files, and appends them to the index."""

    def __init__(self, network: ClapModel, writer: IndexWriter) -> None:
        self._network, self._writer = network, writer
        self._batch: list[tuple[IndexedFile, Window]] = []
        self._embedded: list[tuple[list[tuple[IndexedFile, int]], Tensor]] = []
        """Files and numbers of the windows of each batch, and their vectors (W, D) on the model's device."""
        self._ended: list[tuple[IndexedFile, End]] = []
        self.windows = 0

    def add(self, file: IndexedFile, window: Window) -> None:
        """Embed a window, once there are enough for a batch."""
        self._batch.append((file, window))
        self.windows += 1
        if len(self._batch) == BATCH_SIZE:
            self._encode()

    def end(self, file: IndexedFile, end: End) -> None:
        """Make a file complete, once its windows are in the index."""
        self._ended.append((file, end))

    def commit(self) -> None:
        """Embed and append what was added, and make it last."""
        self._encode()
        self._append()
        for file, end in self._ended:
            file.is_complete, file.duration_s = True, end.duration_s
            if isinstance(end.fault, UnusableAudio):
                file.reason, file.detail = end.fault.reason, str(end.fault)
        self._ended.clear()
        self._writer.commit()

    @torch.inference_mode()
    def _encode(self) -> None:
        if not self._batch:
            return
        samples_WS = torch.from_numpy(np.stack([window.samples_S for _, window in self._batch]))
        places = [(file, window.number) for file, window in self._batch]
        self._embedded.append((places, F.normalize(encode_windows(self._network, samples_WS))))
        self._batch.clear()
        if len(self._embedded) == _MOST_BATCHES:
            self._append()

    def _append(self) -> None:
        for places, tensor_WD in self._embedded:
            vectors_WD = tensor_WD.cpu().numpy()
            check_vectors(vectors_WD, functools.partial(_name_of, places))
            unit_WD = unit_rows(vectors_WD)
            first = 0
            for _, windows in itertools.groupby(places, key=lambda place: place[0].name):
                group = list(windows)
                numbers_W = np.array([number for _, number in group], np.int64)
                self._writer.append(group[0][0], unit_WD[first : first + len(group)], numbers_W)
                first += len(group)
        self._embedded.clear()


def _name_of(places: Sequence[tuple[IndexedFile, int]], row: int) -> str:
    file, number = places[row]
    return f"{file.name}, window {number},"
