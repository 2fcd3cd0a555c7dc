"""The four datasets of the small study: the style of their clips, their splits, and which mixtures each may hold.

All use the same recordings, each in the style of the dataset it is named after: `clotho` is long and steady,
`audiocaps` short and eventful, `audioset` broader than both, `general` mostly single sounds. A held-out split tests
combinations of recordings that occur nowhere else in the study (`part_of_set`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRAINING = "training"
HELD_OUT_SHARE = 0.1  # of all sets of recordings, for each held-out split: 86 recordings make about 370 pairs in each
HELD_OUT_PARTS = ("clotho/validation", "clotho/evaluation", "audiocaps/val", "audiocaps/test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The size of a split, and the number of events and captions of its clips."""

    clips: int
    captions: int
    """Per clip."""
    event_shares: tuple[float, float, float]
    """Shares of clips with one, two and three events."""
    part: str = TRAINING
    """The part of all sets of recordings that its mixtures come from (`part_of_set`)."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Properties that all clips of a dataset share."""

    family_weights: Mapping[str, float]
    """Relative frequency of a family's recordings; 1 for families not listed."""
    rates_hz: tuple[int, ...]
    stereo_share: float
    duration_s: tuple[float, float]
    short_share: float
    """Share of clips that are shorter than a window, at least 1.5 s."""
    events_recur: bool
    """True if events repeat until the clip ends, as in a field recording."""
    sequence_share: float
    """Share of the two-event clips in which one sound follows the other."""
    noise_exponent: float
    """Power of the background noise falls as 1 / f ** this: 0 white, 1 pink, 2 brown."""
    final: str
    """The last character of a caption."""
    phrases: Mapping[str, tuple[str, ...]]
    """Caption templates by situation; c0 is the clause of the first event, n0 its noun phrase."""
    splits: Mapping[str, Split]
    all_recordings: bool = True
    """False excludes the recordings of `withheld_from_general`."""


CLOTHO_PHRASES = {
    "alone": (
        "{c0}", "{n0}", "{n0} can be heard all along", "{c0} throughout the recording", "{n0} and nothing else",
        "{c0} with no other sound",
    ),
    "two": (
        "{c0} while {c1}", "{c0} as {c1}", "{n0} together with {n1}", "{c0} and at the same time {c1}",
        "{n0} mixed with {n1}", "{n0} can be heard while {c1}",
    ),
    "two, one quiet": ("{c0} with {n1} in the background", "{n1} can be heard in the distance while {c0}"),
    "three": (
        "{c0} while {c1} and {c2}", "{n0} together with {n1} and {n2}", "{c0} as {c1}, along with {n2}",
        "{n0} mixed with {n1} while {c2}", "{c0} and {c1} and at the same time {c2}",
    ),
    "three, one quiet": (
        "{c0} and {c1} with {n2} in the background", "{n2} can be heard in the distance while {c0} and {c1}",
    ),
}  # fmt: skip
AUDIOCAPS_PHRASES = {
    "alone": ("{c0}", "{n0}", "{n0} alone", "only {n0}", "{c0} and nothing else", "{n0} with some noise"),
    "two": ("{c0} and {c1}", "{c0} with {n1}", "{n0} and {n1}", "{c0}, and {c1}", "{n0} as {c1}"),
    "two, one quiet": ("{c0} with {n1} in the background", "{c0} over {n1}"),
    "sequence": (
        "{c0} followed by {n1}", "{c0} and then {c1}", "{n0} followed by {n1}", "{c0}, then {c1}", "{c0} before {c1}",
        "{n1} after {n0}",
    ),
    "three": (
        "{c0} and {c1} with {n2}", "{c0}, {c1} and {c2}", "{n0}, {n1} and {n2}", "{n0} and {n1} as {c2}",
        "{c0} with {n1} and {n2}",
    ),
    "three, one quiet": ("{c0} and {c1} with {n2} in the background", "{n0} and {n1} over {n2}"),
}  # fmt: skip
GENERAL_PHRASES = {"alone": ("{c0}", "{n0}"), "two": ("{c0} and {c1}", "{n0} and {n1}")}

# The study needs few captioned clips and more unlabeled audio. The test splits have about the size of the published
# ones (Clotho 1,045 clips, AudioCaps 975), so the intervals are as narrow. The published training splits are larger:
# Clotho's 20 times, AudioCaps' 156 times, AudioSet's 20 times.
STYLES: dict[str, Style] = {
    "clotho": Style(
        family_weights={"water": 2.0, "home": 1.8, "animals": 1.3, "people": 0.7, "music": 0.6, "vehicles": 0.7},
        rates_hz=(44_100,),
        stereo_share=0.15,
        duration_s=(4.0, 6.0),
        short_share=0.0,
        events_recur=True,
        sequence_share=0.0,
        noise_exponent=2.0,
        final=".",
        phrases=CLOTHO_PHRASES,
        splits={
            "development": Split(clips=192, captions=5, event_shares=(0.2, 0.45, 0.35)),
            "validation": Split(clips=128, captions=5, event_shares=(0.05, 0.5, 0.45), part="clotho/validation"),
            "evaluation": Split(clips=1000, captions=5, event_shares=(0.05, 0.5, 0.45), part="clotho/evaluation"),
        },
    ),
    "audiocaps": Style(
        family_weights={"people": 2.0, "vehicles": 2.0, "animals": 1.3, "music": 0.6, "water": 0.8, "home": 0.7},
        rates_hz=(32_000, 48_000),
        stereo_share=0.5,
        duration_s=(2.5, 3.5),
        short_share=0.08,
        events_recur=False,
        sequence_share=0.4,
        noise_exponent=1.0,
        final="",
        phrases=AUDIOCAPS_PHRASES,
        splits={
            "train": Split(clips=320, captions=1, event_shares=(0.3, 0.5, 0.2)),
            "val": Split(clips=128, captions=5, event_shares=(0.1, 0.6, 0.3), part="audiocaps/val"),
            "test": Split(clips=1000, captions=5, event_shares=(0.1, 0.6, 0.3), part="audiocaps/test"),
        },
    ),
    "audioset": Style(
        family_weights={"music": 1.5},
        rates_hz=(44_100, 48_000),
        stereo_share=0.3,
        duration_s=(2.6, 3.5),
        short_share=0.02,  # 345 of AudioSet's 22,160 segments are shorter than the rest
        events_recur=False,
        sequence_share=0.2,
        noise_exponent=1.0,
        final="",
        phrases={},
        splits={"balanced_train": Split(clips=1024, captions=0, event_shares=(0.3, 0.4, 0.3))},
    ),
    "general": Style(
        family_weights={},
        rates_hz=(16_000,),  # the rate of the small model, the only user of this dataset
        stereo_share=0.0,
        duration_s=(2.4, 2.6),
        short_share=0.0,
        events_recur=False,
        sequence_share=0.0,
        noise_exponent=1.0,
        final="",
        phrases=GENERAL_PHRASES,
        splits={"train": Split(clips=2000, captions=2, event_shares=(0.9, 0.1, 0.0))},
        all_recordings=False,
    ),
}


def part_of_set(recordings: Sequence[str] | frozenset[str]) -> str:
    """Return the part that a set of two or more recordings belongs to: `training` or one held-out split.

    The part is a hash of the names alone, so it is the same for every dataset, split, size and seed. A mixture of a
    held-out split therefore occurs in no other split of any dataset.
    """
    names = "\n".join(sorted(set(recordings)))
    digest = hashlib.blake2b(names.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64 / HELD_OUT_SHARE
    return HELD_OUT_PARTS[int(place)] if place < len(HELD_OUT_PARTS) else TRAINING
