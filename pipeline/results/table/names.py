"""The paper's names of datasets, methods and uses of a training set."""

from __future__ import annotations

from dataclasses import dataclass

DATASETS = {"clotho": "Clotho", "audiocaps": "AudioCaps", "audioset": "AudioSet"}
"""The paper's datasets; other datasets keep their own names."""
CELLS = {"A+T": "A+T", "A": "Audio", "-": "-"}
"""Uses of a training set (pairs, audio only, none) and their text in the table."""
GROUPS = ("", "Proposed method", "(Scenario where all paired data is available)")
"""Headings of the parts of a block of the table; the first has none."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method in LaTeX: its label, the heading above it, and its footnote."""

    label: str
    group: str
    mark: str = ""
    note: str = ""
    """`%s` stands for the datasets that gave pairs."""


METHODS = {
    "vanilla": Method(label="vanilla CLAP", group=GROUPS[0]),
    "finetune": Method(label="finetune", group=GROUPS[0]),
    "text_mixing": Method(
        label="text mixing",
        group=GROUPS[0],
        mark=r"$^{\S}$",
        note="Two clips of the target's pairs mixed while concatenating their texts: the control for composed.",
    ),
    "composed": Method(label="composed", group=GROUPS[1]),
    "finetune_all_pairs": Method(
        label="finetune",
        group=GROUPS[2],
        mark=r"$^{\dagger}$",
        note="Fine-tuned using paired audio-text data from %s.",
    ),
    "concatenate": Method(
        label="concatenate",
        group=GROUPS[2],
        mark=r"$^{\ddagger}$",
        note=(
            "Mixup-like data augmentation: composing two audio as the proposed method "
            "while concatenating their corresponding texts."
        ),
    ),
    "composed_all_pairs": Method(
        label="composed",
        group=GROUPS[2],
        mark=r"$^{\P}$",
        note="The proposed method on top of paired audio-text data from %s.",
    ),
}


def title(dataset: str) -> str:
    """Return a dataset's name in the paper, as plain text."""
    return DATASETS.get(dataset, dataset)
