"""Zero-shot classification of a folder of audio by a saved model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.classification import confusion, find_clips, prompts_of, wilson_interval
from pipeline.evaluation.embedding import BATCH_SIZE, embed_files, embed_texts
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.files import write_atomically
from pipeline.models import load_model
from pipeline.models.devices import choose_device

WINDOWS = "mean"
"""How the windows of clips longer than the model's are taken."""


def classify(run: Path, root: Path, template: str) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Accuracy of a run on the clips of a folder (`find_clips`), of all and by class, in percent, and the confusion.

    Returns:
        The facts that `python -m pipeline classify` prints, and the counts (K, K) of classes by classes they went to.

    Raises:
        PipelineError: no such run or folder, a file that cannot be used, or an embedding without a direction.
    """
    clips = find_clips(root)
    prompts = prompts_of(clips.classes, template)
    model = load_model(run, device=str(choose_device(None)))
    prompt_KD = embed_texts(model, prompts, BATCH_SIZE)
    check_vectors(prompt_KD, lambda row: repr(prompts[row]))
    audio_ND = embed_files(model, clips.paths, WINDOWS, BATCH_SIZE, model.channels)
    check_vectors(audio_ND, lambda row: str(clips.paths[row]))

    counts_KK = confusion(unit_rows(audio_ND), unit_rows(prompt_KD), clips.class_of_clip_N)
    low, high = wilson_interval(float(counts_KK.trace()), len(clips.paths))
    facts = {
        "kind": "classification",
        "path": str(root),
        "accuracy": {
            "accuracy": 100 * float(counts_KK.trace()) / len(clips.paths),
            "low": 100 * low,
            "high": 100 * high,
            "chance": 100 / len(clips.classes),
            "clips": len(clips.paths),
            "classes": len(clips.classes),
            "run": str(run),
            "prompt": template,
        },
        "classes": [
            {
                "class": name,
                "clips": int(counts_K.sum().round()),
                "accuracy": 100 * float(counts_K[row] / counts_K.sum()),
                "taken_for": _taken_for(clips.classes, row, counts_K),
            }
            for row, (name, counts_K) in enumerate(zip(clips.classes, counts_KK, strict=True))
        ],
    }
    return facts, counts_KK


def _taken_for(classes: list[str], row: int, counts_K: NDArray[np.float64]) -> str | None:
    """The other class that most clips of a class went to; None where none did."""
    others_K = counts_K.copy()
    others_K[row] = 0
    return classes[int(others_K.argmax())] if others_K.any() else None


def write_confusion(facts: dict[str, Any], counts_KK: NDArray[np.float64], path: Path) -> None:
    """The confusion as CSV: a row a class, a column for each class that its clips went to."""
    classes = [row["class"] for row in facts["classes"]]
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *classes])
        for name, counts_K in zip(classes, counts_KK, strict=True):
            writer.writerow([name, *(f"{count:.10g}" for count in counts_K)])
