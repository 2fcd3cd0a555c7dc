"""How the paper writes datasets, methods and what a training set gave."""

from __future__ import annotations

from dataclasses import dataclass

DATASETS = {"clotho": "Clotho", "audiocaps": "AudioCaps", "audioset": "AudioSet"}
"""The datasets of the paper; others are written as they are named."""
CELLS = {"A+T": "A+T", "A": "Audio", "-": "-"}
"""What a training set gave: pairs, audio only, nothing; and how it is written."""
GROUPS = ("", "Proposed method", "(Scenario where all paired data is available)")
"""Parts of a block of the table, by their headings; the first has none."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How LaTeX writes a method: its label, the heading above it, and its footnote."""

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
    """A dataset as the paper writes it, in plain text."""
    return DATASETS.get(dataset, dataset)
