"""Zero-shot classification: every clip goes to the class whose prompt is nearest, as in CLAP (Elizalde et al., 2022).

A clip that is equally near to several classes is shared out among them, so that a collapsed model scores as chance.
"""

# N = clips, K = classes, D = joint width

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.adapters.audio_files import find_audio, match_names
from pipeline.data.adapters.lists import read_table
from pipeline.errors import PipelineError

ESC50_LISTING = "meta/esc50.csv"
_Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class ClassifiedClips:
    """Audio files with their classes."""

    paths: list[Path]
    class_of_clip_N: NDArray[np.int64]
    """Rows of `classes`."""
    classes: list[str]
    """(K,), sorted, as the dataset writes them."""


def find_clips(root: Path) -> ClassifiedClips:
    """The clips of a folder: of ESC-50's layout where there is a meta/esc50.csv, else one subfolder per class.

    ESC-50 lists filename and category, and its files lie in audio/. PipelineError for files that are listed but
    missing, for audio outside of the class folders, and for fewer than two classes.
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
                raise PipelineError(f"{listing} row {row}: no category")
            pairs.append((path, fields["category"].strip()))
    else:
        files = find_audio([root])
        outside = [name for name in files.names if "/" not in name]
        if outside:
            raise PipelineError(
                f"{root}: {outside[0]} lies in no class folder ({len(outside)} such files); "
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
    """The template with each class in the place of {class}; underscores become spaces.

    Raises PipelineError for a template without {class}, and for classes that read the same.
    """
    if "{class}" not in template:
        raise PipelineError(f"the prompt {template!r} has no {{class}}, so every class would read the same")
    prompts = [template.replace("{class}", " ".join(name.replace("_", " ").split())) for name in classes]
    for row, prompt in enumerate(prompts):
        if (first := prompts.index(prompt)) < row:
            raise PipelineError(f"the classes {classes[first]} and {classes[row]} have the same prompt {prompt!r}")
    return prompts


def confusion(
    unit_audio_ND: NDArray[np.floating], unit_prompt_KD: NDArray[np.floating], class_of_clip_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """How many clips of each class (rows) went to each class (columns), (K, K)."""
    scores_NK = (unit_audio_ND.astype(np.float64) @ unit_prompt_KD.astype(np.float64).T).astype(np.float32)
    nearest_NK = scores_NK == scores_NK.max(axis=1, keepdims=True)
    shares_NK = nearest_NK / nearest_NK.sum(axis=1, keepdims=True)
    counts_KK = np.zeros((len(unit_prompt_KD), len(unit_prompt_KD)))
    np.add.at(counts_KK, class_of_clip_N, shares_NK)
    return counts_KK


def wilson_interval(hits: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score method (Journal of the American Statistical Association 22, 1927).

    It speaks of independent clips: those cut from one recording make it too narrow.
    """
    share, z2 = hits / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
