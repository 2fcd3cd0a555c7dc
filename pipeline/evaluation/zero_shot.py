"""Zero-shot classification of a folder of audio by a saved model."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.audio import UnusableAudio
from pipeline.errors import PipelineError
from pipeline.evaluation.classification import confusion, find_clips, prompts_of, wilson_interval
from pipeline.evaluation.embedding import embed_sounds
from pipeline.evaluation.model import load
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.files import write_atomically

logger = logging.getLogger(__name__)

WINDOWS = "mean"
"""How the windows of clips longer than the model's are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """How the clips of one class were classified."""

    name: str
    clips: int
    accuracy: float | None
    """In percent; None for a class without a usable clip."""
    taken_for: str | None
    """The other class that most of its clips went to; None where none did."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Zero-shot accuracy of a model on labeled clips, in percent."""

    root: Path
    run: Path
    prompt: str
    accuracy: float
    low: float
    high: float
    """The 95 % interval, `low` to `high`, by Wilson's score method."""
    clips: int
    """Usable clips."""
    left_out: dict[str, int]
    """Clips that cannot be used, by reason."""
    classes: list[ClassResult]
    confusion_KK: NDArray[np.float64]
    """How many clips of each class (rows) went to each class (columns)."""

    def as_json(self) -> dict[str, Any]:
        """The values that `composed-text classify` prints."""
        return {
            "kind": "classification",
            "path": str(self.root),
            "accuracy": {
                "accuracy": self.accuracy,
                "low": self.low,
                "high": self.high,
                "chance": 100 / len(self.classes),
                "clips": self.clips,
                "classes": len(self.classes),
                "run": str(self.run),
                "prompt": self.prompt,
            },
            **({"left_out": self.left_out} if self.left_out else {}),
            "classes": [
                {"class": found.name, "clips": found.clips, "accuracy": found.accuracy, "taken_for": found.taken_for}
                for found in self.classes
            ],
        }


def classify(run: Path, root: Path, template: str) -> Classification:
    """Return how well a saved model classifies the clips of a folder (`find_clips`).

    Clips that cannot be used are left out, counted and logged.

    Raises:
        PipelineError: no such run or folder, no usable clip, or an embedding without a direction.
    """
    clips = find_clips(root)
    prompts = prompts_of(clips.classes, template)
    model = load(run)
    prompt_KD = model.embed_text(prompts)
    unusable: dict[int, UnusableAudio] = {}
    audio_ND = embed_sounds(model.network, clips.paths, WINDOWS, BATCH_SIZE, model.network.channels, unusable)
    for row, error in unusable.items():
        logger.warning("%s: left out, %s (%s)", clips.paths[row], error.reason.replace("_", " "), error)
    if len(unusable) == len(clips.paths):
        raise PipelineError(f"{root}: none of its {len(clips.paths)} audio files can be used; the log says why")
    usable = [row for row in range(len(clips.paths)) if row not in unusable]
    audio_ND = audio_ND[usable]
    check_vectors(audio_ND, lambda row: str(clips.paths[usable[row]]))

    counts_KK = confusion(unit_rows(audio_ND), prompt_KD, clips.class_of_clip_N[usable])
    right = float(counts_KK.trace())
    low, high = wilson_interval(right, len(usable))
    return Classification(
        root=root,
        run=run,
        prompt=template,
        accuracy=100 * right / len(usable),
        low=100 * low,
        high=100 * high,
        clips=len(usable),
        left_out=dict(Counter(error.reason for error in unusable.values())),
        classes=[class_result(clips.classes, row, counts_K) for row, counts_K in enumerate(counts_KK)],
        confusion_KK=counts_KK,
    )


def class_result(classes: list[str], row: int, counts_K: NDArray[np.float64]) -> ClassResult:
    """One class, given the counts of the classes that its clips went to."""
    others_K = counts_K.copy()
    others_K[row] = 0
    total = float(counts_K.sum())
    return ClassResult(
        name=classes[row],
        clips=round(total),
        accuracy=100 * float(counts_K[row]) / total if total else None,
        taken_for=classes[int(others_K.argmax())] if others_K.any() else None,
    )


def write_confusion(result: Classification, path: Path) -> None:
    """Write the confusion as CSV: one row per class, one column per class that its clips went to."""
    classes = [found.name for found in result.classes]
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *classes])
        for name, counts_K in zip(classes, result.confusion_KK, strict=True):
            writer.writerow([name, *(f"{count:.10g}" for count in counts_K)])
