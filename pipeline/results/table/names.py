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

PROTOCOL_NOTES = {
    "paper": (
        "every caption ranks all clips; every clip ranks one caption a clip, the first; "
        "mAP@10 is the mean of 1/rank within 10."
    ),
    "best-of-5": (
        "every caption ranks all clips; every clip ranks all captions, and its best-placed one counts for R@k; "
        "mAP@10 is the sum of i/rank over its captions within 10, i counting them, divided by their number."
    ),
    "dcase": (
        "every caption ranks all clips; every clip ranks all captions, and R@k is the share of its captions within k; "
        "mAP@10 is the sum of i/rank over its captions within 10, i counting them, divided by their number."
    ),
    "dcase2025": (
        "every caption ranks all clips, and its own clip counts for R@k and mAP@10; mAP@16 goes over the captions of "
        "the relevance file, as the sum of i/rank over their relevant clips within 16, i counting them, divided by the "
        "number of relevant clips."
    ),
    "moments": (
        "every caption ranks the moments of its recording; R1@u is the share of captions whose first moment overlaps "
        "a true one with an IoU of at least u; mAP@u is the mean average precision of the first ten moments, and mAP "
        "its mean over u = 0.5, 0.55, ..., 0.95."
    ),
}
"""How each protocol computes its figures, after its name."""


def title(dataset: str) -> str:
    """Return a dataset's name in the paper, as plain text."""
    return DATASETS.get(dataset, dataset)
