"""Soundscapes: recordings, times, levels and speeds, drawn at random for each clip of a split."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.small_study.captions import write_captions
from pipeline.data.small_study.recordings import Recording, withheld_from_general
from pipeline.data.small_study.styles import STYLES, TRAINING, Style, part_of_set
from pipeline.errors import PipelineError

WINDOW_S = 2.56  # window of the small model; in short clips every window of this length contains every event
SPEEDS_OF_TRAINING = np.arange(88, 115) / 100
SPEEDS_HELD_OUT = np.arange(88, 114) / 100 + 0.005  # halfway between, so that no sound recurs at the same speed
GAIN_RANGE_DB = 6.0
SHORT_EVENT_S = 0.9  # shorter sounds may come up to three times


@dataclass(frozen=True, kw_only=True)
class Event:
    """An excerpt of a recording, played at one or more moments of a soundscape."""

    recording: str
    start_s: float
    """Start of the excerpt in the recording."""
    length_s: float
    """Length in the recording; the excerpt plays for `length_s / speed`."""
    speed: float
    gain_db: float
    pan: float
    """-1 left, 1 right; for stereo clips only."""
    onsets_s: tuple[float, ...]
    until_s: float
    """The event is silent after this moment."""


@dataclass(frozen=True, kw_only=True)
class Soundscape:
    """One clip: its events, its background noise and its captions."""

    dataset: str
    split: str
    index: int
    rate_hz: int
    channels: int
    duration_s: float
    is_sequence: bool
    """True if the second event begins when the first has ended."""
    noise_dbfs: float
    noise_seed: int
    """Seed that chooses the section of noise for each channel."""
    events: tuple[Event, ...]
    captions: tuple[str, ...]

    @property
    def recordings(self) -> frozenset[str]:
        """The set of recordings, which decides the splits that may hold the mixture."""
        return frozenset(event.recording for event in self.events)


def draw_split(dataset: str, split: str, recordings: Sequence[Recording], *, seed: int, clips: int) -> list[Soundscape]:
    """Return `clips` soundscapes of a split; a larger split begins with the same ones.

    No two clips of a held-out split have the same set of recordings, because their captions could be the same.

    Raises:
        PipelineError: There are not enough different sets of recordings.
    """
    style = STYLES[dataset]
    part = style.splits[split].part
    if not style.all_recordings:
        withheld = withheld_from_general(recordings)
        recordings = [recording for recording in recordings if recording.file_name not in withheld]
    weights = np.array([style.family_weights.get(recording.family, 1.0) for recording in recordings])
    shares = weights / weights.sum()
    seen: set[frozenset[str]] = set()
    soundscapes = []
    for index in range(clips):
        generator = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{split}".encode()), index])
        count = 1 + int(generator.choice(3, p=style.splits[split].event_shares))
        for attempt in range(1, 1001):
            if attempt % 250 == 0:
                count = min(count + 1, 3)  # the sets of this size are used up
            chosen = generator.choice(len(recordings), size=count, replace=False, p=shares)
            names = frozenset(recordings[place].file_name for place in chosen)
            if (len(names) > 1 and part_of_set(names) != part) or (part != TRAINING and names in seen):
                continue
            seen.add(names)
            break
        else:
            raise PipelineError(
                f"{dataset}/{split}: only {index} of {clips} clips found with different sets of recordings among "
                f"{len(recordings)} recordings; add recordings or lower --scale"
            )
        soundscapes.append(_draw_soundscape(dataset, split, index, [recordings[place] for place in chosen], generator))
    return soundscapes


def _draw_soundscape(
    dataset: str, split: str, index: int, chosen: Sequence[Recording], generator: np.random.Generator
) -> Soundscape:
    style = STYLES[dataset]
    speeds = SPEEDS_OF_TRAINING if style.splits[split].part == TRAINING else SPEEDS_HELD_OUT
    is_short = generator.random() < style.short_share
    duration_s = round(float(generator.uniform(*((1.5, 2.5) if is_short else style.duration_s))), 3)
    is_sequence = len(chosen) == 2 and generator.random() < style.sequence_share
    turn_s = duration_s * generator.uniform(0.42, 0.5)
    events = []
    for place, recording in enumerate(chosen):
        speed = float(generator.choice(speeds))
        start_s, length_s = _draw_excerpt(recording, duration_s * speed, generator)
        plays_s = length_s / speed
        until_s = turn_s if is_sequence and place == 0 else duration_s
        turn = (turn_s * place, until_s) if is_sequence else None
        onsets_s = _draw_onsets(style, plays_s, duration_s, turn, generator)
        events.append(
            Event(
                recording=recording.file_name,
                start_s=round(start_s, 3),
                length_s=round(length_s, 3),
                speed=speed,
                gain_db=round(float(generator.uniform(-GAIN_RANGE_DB, GAIN_RANGE_DB)), 1),
                pan=round(float(generator.uniform(-0.8, 0.8)), 2),
                onsets_s=tuple(round(float(onset_s), 3) for onset_s in onsets_s),
                until_s=round(float(until_s), 3),
            )
        )
    return Soundscape(
        dataset=dataset,
        split=split,
        index=index,
        rate_hz=int(generator.choice(style.rates_hz)),
        channels=2 if generator.random() < style.stereo_share else 1,
        duration_s=duration_s,
        is_sequence=bool(is_sequence),
        noise_dbfs=round(float(generator.uniform(-60, -45)), 1),
        noise_seed=int(generator.integers(2**32)),
        events=tuple(events),
        captions=write_captions(style, split, chosen, [event.gain_db for event in events], is_sequence, generator),
    )


def _draw_onsets(
    style: Style,
    plays_s: float,
    duration_s: float,
    turn_s: tuple[float, float] | None,
    generator: np.random.Generator,
) -> list[float]:
    """Return the moments at which an event of length `plays_s` begins; `turn_s` is its part of a sequence."""
    until_s = duration_s
    if style.events_recur:
        onset_s = generator.uniform(0, 0.4)
        repeats, gap_s = 99, (0.15, 0.6)
    elif turn_s is not None:
        onset_s = generator.uniform(0, 0.15) + turn_s[0]
        until_s = turn_s[1]
        repeats, gap_s = 3, (0.1, 0.3)
    else:
        # The first and the last window of the clip contain the event: it begins early enough for the first, and is
        # still audible in the last.
        earliest_s = max(0.0, duration_s - WINDOW_S - max(0.0, plays_s - 1.0))
        latest_s = min(duration_s, WINDOW_S) - min(plays_s, 1.5)
        onset_s = generator.uniform(earliest_s, max(earliest_s, latest_s))
        repeats, gap_s = int(generator.integers(1, 4)), (0.1, 0.4)
    onsets_s = [onset_s]
    while (style.events_recur or plays_s < SHORT_EVENT_S) and len(onsets_s) < repeats:
        onset_s += plays_s + generator.uniform(*gap_s)
        if onset_s > until_s - min(0.3, plays_s):
            break
        onsets_s.append(onset_s)
    return onsets_s


def _draw_excerpt(recording: Recording, wanted_s: float, generator: np.random.Generator) -> tuple[float, float]:
    """Return start and length of an excerpt: an audible stretch, or a part of it with a loud beginning."""
    begin_s, end_s = recording.stretches_s[int(generator.integers(len(recording.stretches_s)))]
    starts_s = [begin_s] + [
        start_s for start_s in recording.loud_s if begin_s < start_s < end_s - max(1.0, wanted_s / 2)
    ]
    start_s = starts_s[int(generator.integers(len(starts_s)))]
    return start_s, min(end_s - start_s, wanted_s)
