"""The retrieval figures on the validation splits, computed while a model is trained.

Shapes: W = windows of all clips, M = captions, N = clips, D = joint width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import encode_captions, encode_windows
from pipeline.evaluation.metrics import figures
from pipeline.evaluation.ranking import rank_embeddings
from pipeline.evaluation.vectors import check_vectors
from pipeline.evaluation.windows import BATCH_SIZE, window_starts
from pipeline.models.clap import ClapModel
from pipeline.models.devices import send
from pipeline.stages.embed import retrievable_captions
from pipeline.training.distributed import Processes
from pipeline.training.failures import DivergedError
from pipeline.training.monitor import SELECTED_BY, VALIDATION
from pipeline.training.outputs import ValidationPlan


class Selection:
    """The best validation of a training so far, and where asked its weights."""

    def __init__(self) -> None:
        self.figure = -1.0
        """The highest figure; below any before the first validation."""
        self.step = 0
        """Steps taken before the best validation."""
        self.without_improvement = 0
        """Validations since then."""
        self.last_step = 0
        """Steps taken before the last validation."""
        self.weights: dict[str, Tensor] | None = None
        """A copy of the weights of the best validation, on the CPU."""

    def add(self, step: int, figure: float) -> bool:
        """Count a validation after `step` steps; return whether it is the best: above all earlier ones."""
        self.last_step = step
        if figure <= self.figure:
            self.without_improvement += 1
            return False
        self.figure, self.step, self.without_improvement = figure, step, 0
        return True

    def keep(self, model: ClapModel) -> None:
        """Copy the weights of the best validation."""
        self.weights = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        vars(self).update(state)


class Validation:
    """The validation splits of a training, and the figures of a model on them.

    The processes share the batches. The batches are the same on any number of processes, so equal weights give equal
    embeddings and figures. Nothing draws a random number.
    """

    def __init__(self, plan: ValidationPlan, model: ClapModel, processes: Processes, *, verify: bool = False) -> None:
        """Open the splits; PipelineError if one is damaged, has no clips or another rate, or a clip has no caption."""
        self.seconds = 0.0
        """Time of all validations so far."""
        self._plan, self._processes = plan, processes
        share = slice(processes.rank, None, processes.count)
        self._splits = [_Split.read(folder, plan.windows, model, verify, share) for folder in plan.folders]

    @torch.inference_mode()
    def figures(self, model: ClapModel) -> dict[str, float]:
        """Return the figures of every split in percent, by column of the log; the model must be in evaluation mode.

        Raises:
            DivergedError: An embedding is not finite or zero.
        """
        began = time.perf_counter()
        found: dict[str, float] = {}
        with torch.compiler.set_stance("force_eager"):  # no kernels for the sizes of these batches
            for split in self._splits:
                audio_ND, text_MD = self._embed_audio(model, split), self._embed_captions(model, split)
                if self._processes.is_first:
                    retrieval = rank_embeddings(text_MD, audio_ND, split.audio_of_text)
                    for name, value in figures(retrieval, self._plan.protocol).items():
                        found[f"{VALIDATION}{split.shards.dataset}_{name}"] = value
        selecting = [value for name, value in found.items() if name.endswith("mAP10")]
        found = self._same_on_all(found | {SELECTED_BY: float(np.mean(selecting)) if selecting else 0.0})
        self.seconds += time.perf_counter() - began
        return found

    def _embed_audio(self, model: ClapModel, split: _Split) -> NDArray[np.float32]:
        """Return the embeddings (N, D) of a split's clips, those of `pipeline.evaluation.embedding.embed_audio`."""
        device = model.logit_scale.device
        own_WD = torch.zeros(len(split.windows), model.embedding_dim, device=device)
        for batch in self._own_batches(len(split.windows)):
            keys = [(split.shards.keys[row], start) for row, start in split.windows[batch]]
            samples = [
                split.shards.read_window(key, start, model.window_frames, model.short_clips) for key, start in keys
            ]
            own_WD[batch] = F.normalize(encode_windows(model, torch.from_numpy(np.stack(samples))))
        all_WD = self._of_all(own_WD)
        row_W = torch.tensor([row for row, _ in split.windows])
        total_ND = torch.zeros(len(split.shards), model.embedding_dim, device=device)
        total_ND.index_add_(0, send(row_W, device), all_WD)
        windows_N = torch.bincount(row_W, minlength=len(split.shards))
        return _finite((total_ND.cpu() / windows_N[:, None]).numpy(), split)

    def _embed_captions(self, model: ClapModel, split: _Split) -> NDArray[np.float32]:
        """Return the embeddings (M, D) of a split's captions, those of `pipeline.evaluation.embedding.embed_texts`."""
        distinct = sorted(set(split.captions), key=lambda caption: (len(caption), caption))
        own_MD = torch.zeros(len(distinct), model.embedding_dim, device=model.logit_scale.device)
        for batch in self._own_batches(len(distinct)):
            own_MD[batch] = encode_captions(model, distinct[batch])
        place = {caption: row for row, caption in enumerate(distinct)}
        return _finite(self._of_all(own_MD).cpu().numpy()[[place[caption] for caption in split.captions]], split)

    def _own_batches(self, count: int) -> list[slice]:
        """Return this process's batches of `count` windows or captions."""
        firsts = range(0, count, BATCH_SIZE)[self._processes.rank :: self._processes.count]
        return [slice(first, first + BATCH_SIZE) for first in firsts]

    def _of_all(self, own: Tensor) -> Tensor:
        """Return the rows of all processes, each of which has zeros in the others' places; adding zeros is exact."""
        if self._processes.count > 1:
            dist.all_reduce(own)
        return own

    def _same_on_all(self, found: dict[str, float]) -> dict[str, float]:
        """Return the first process's figures, so that all decide the same."""
        shared = [found]
        if self._processes.count > 1:
            dist.broadcast_object_list(shared, device=self._processes.device)
        return shared[0]


@dataclass(frozen=True)
class _Split:
    """A validation split: its clips, their windows and captions."""

    shards: ShardReader
    windows: list[tuple[int, int]]
    """Row of the clip and first frame of every window, in order."""
    captions: list[str]
    audio_of_text: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, windows: str, model: ClapModel, verify: bool, share: slice) -> Self:
        shards = open_shards(folder, verify=verify, share=share)
        captions, audio_of_text = retrievable_captions(shards)
        if not len(shards):
            raise PipelineError(f"{folder}: the split has no clip to validate on; see the reasons in manifest.parquet")
        if shards.sample_rate_hz != model.sample_rate_hz:
            raise PipelineError(
                f"{folder}: shards are at {shards.sample_rate_hz} Hz, the model takes {model.sample_rate_hz} Hz; make "
                "the shards again at the model's rate"
            )
        places = [
            (row, start)
            for row, key in enumerate(shards.keys)
            for start in window_starts(shards.frames(key), model.window_frames, windows)
        ]
        return cls(shards=shards, windows=places, captions=captions, audio_of_text=audio_of_text)


def _finite(vectors: NDArray[np.float32], split: _Split) -> NDArray[np.float32]:
    """Return embeddings; DivergedError if one is not finite or zero."""
    try:
        check_vectors(vectors, lambda row: f"row {row} of {split.shards.folder}")
    except PipelineError as error:
        raise DivergedError(str(error)) from None
    return vectors
