"""Zero-shot classification: every clip goes to the class whose prompt is nearest, as in CLAP (Elizalde et al., 2022).

A clip that is equally near to several classes counts for each in equal shares, so that a collapsed model scores as
chance.
"""

# N = clips, K = classes, D = joint width

from __future__ import annotations

import csv
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.adapters.audio_files import find_audio, match_names
from pipeline.data.adapters.lists import read_table
from pipeline.data.audio import UnusableAudio
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import embed_sounds
from pipeline.evaluation.intervals import wilson_interval
from pipeline.evaluation.model import load
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.files import write_atomically

logger = logging.getLogger(__name__)

ESC50_LISTING = "meta/esc50.csv"
WINDOWS = "mean"
"""How windows are taken from clips longer than the model's window."""


@dataclass(frozen=True, kw_only=True)
class ClassifiedClips:
    """Audio files with their classes."""

    paths: list[Path]
    class_of_clip_N: NDArray[np.int64]
    """Index into `classes`."""
    classes: list[str]
    """(K,), sorted, spelled as in the dataset."""


def find_clips(root: Path) -> ClassifiedClips:
    """Return the clips of a folder in ESC-50's layout, if it has a meta/esc50.csv, or with one subfolder per class.

    ESC-50 lists filename and category; its files are in audio/.

    Raises:
        PipelineError: A listed file is missing, an audio file is outside the class folders, or there are fewer than two
            classes.
    """
    if not root.is_dir():
        raise PipelineError(
            f"{root}: {'is not a folder' if root.exists() else 'not found'}; give the folder of the clips"
        )
    listing = root / ESC50_LISTING
    if listing.exists():
        rows = list(read_table(listing, ("filename", "category"), "filename and category, as in ESC-50"))
        files = find_audio([root / "audio"])
        found = match_names((fields["filename"] for _, fields in rows), files)
        pairs = []
        for row, fields in rows:
            path, reason = found[fields["filename"]]
            if path is None:
                why = (reason or "missing_file").replace("_", " ")
                raise PipelineError(f"{listing} row {row}: {why} {fields['filename']} in {files.folder}")
            if not fields["category"].strip():
                raise PipelineError(f"{listing} row {row}: has no category; fill it in")
            pairs.append((path, fields["category"].strip()))
    else:
        files = find_audio([root])
        outside = [name for name in files.names if "/" not in name]
        if outside:
            raise PipelineError(
                f"{root}: {outside[0]} is in no class folder ({len(outside)} such files); "
                f"give a folder with one subfolder per class, or one with {ESC50_LISTING}"
            )
        pairs = [(files.path(name), name.split("/")[0]) for name in files.names]
    classes = sorted({name for _, name in pairs})
    if len(classes) < 2:
        raise PipelineError(f"{root}: {len(classes)} class ({', '.join(classes)}); classification needs at least two")
    row_of = {name: row for row, name in enumerate(classes)}
    return ClassifiedClips(
        paths=[Path(path) for path, _ in pairs],
        class_of_clip_N=np.array([row_of[name] for _, name in pairs], np.int64),
        classes=classes,
    )


def prompts_of(classes: list[str], template: str) -> list[str]:
    """Return one prompt per class: the template with {class} replaced; underscores become spaces.

    Raises:
        PipelineError: The template has no {class}, or two classes give the same prompt.
    """
    if "{class}" not in template:
        raise PipelineError(f"the prompt {template!r} has no {{class}}; put it where the name of the class belongs")
    prompts = [template.replace("{class}", " ".join(name.replace("_", " ").split())) for name in classes]
    for row, prompt in enumerate(prompts):
        if (first := prompts.index(prompt)) < row:
            raise PipelineError(f"the classes {classes[first]} and {classes[row]} have the same prompt {prompt!r}")
    return prompts


def confusion(
    unit_audio_ND: NDArray[np.floating], unit_prompt_KD: NDArray[np.floating], class_of_clip_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return how many clips of each class (rows) were assigned to each class (columns), (K, K)."""
    scores_NK = (unit_audio_ND.astype(np.float64) @ unit_prompt_KD.astype(np.float64).T).astype(np.float32)
    nearest_NK = scores_NK == scores_NK.max(axis=1, keepdims=True)
    shares_NK = nearest_NK / nearest_NK.sum(axis=1, keepdims=True)
    counts_KK = np.zeros((len(unit_prompt_KD), len(unit_prompt_KD)))
    np.add.at(counts_KK, class_of_clip_N, shares_NK)
    return counts_KK


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """How the clips of one class were classified."""

    name: str
    clips: int
    accuracy: float | None
    """In percent; None if the class has no usable clip."""
    taken_for: str | None
    """The other class that most of its clips were assigned to; None if there is none."""


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
    """Number of unusable clips by reason."""
    classes: list[ClassResult]
    confusion_KK: NDArray[np.float64]
    """How many clips of each class (rows) were assigned to each class (columns)."""

    def as_json(self) -> dict[str, Any]:
        """Return the values that `composed-text classify` prints."""
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

    Unusable clips are left out, counted and logged.

    Raises:
        PipelineError: The run or folder does not exist, no clip is usable, or an embedding is zero or not finite.
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
    """Return the result of one class from its row of the confusion matrix."""
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
    """Write the confusion matrix as CSV: one row per true class, one column per assigned class."""
    classes = [found.name for found in result.classes]
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *classes])
        for name, counts_K in zip(classes, result.confusion_KK, strict=True):
            writer.writerow([name, *(f"{count:.10g}" for count in counts_K)])
