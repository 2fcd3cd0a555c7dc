"""Soundscapes mixed from short real recordings: who is heard when, how it sounds, and how it is told in words.

This is the material of the small study. Four datasets draw on the same recordings, each in a style of its own, as
their namesakes do: `clotho` is long and steady, `audiocaps` short and eventful, `audioset` broader than both, `general`
mostly single sounds. What a model is tested on are combinations that nothing else in the study holds: every set of two
or more recordings belongs, by a hash of its names, either to training or to one held-out split (`part_of_set`).
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from pipeline.errors import PipelineError

RECORDING_COLUMNS = (
    "file_name", "family", "caption_1", "caption_2", "author", "shipped_text", "source_package", "source_file",
    "licence",
)  # fmt: skip

FAMILIES = ("animals", "people", "vehicles", "water", "home", "machines", "signals", "music")

TRAINING = "training"
HELD_OUT_SHARE = 0.1  # of all sets of recordings, for each held-out split: 86 recordings make about 370 pairs in each
HELD_OUT_PARTS = ("clotho/validation", "clotho/evaluation", "audiocaps/val", "audiocaps/test")

WINDOW_S = 2.56  # what the small model hears at once: short clips keep their events where every such window meets them
SPEEDS_OF_TRAINING = np.arange(88, 115) / 100
SPEEDS_HELD_OUT = np.arange(88, 114) / 100 + 0.005  # halfway between: a lone sound never recurs at the same speed
GAIN_RANGE_DB = 6.0
BACKGROUND_GAP_DB = 4.0  # an event this much quieter than the others is told as being in the background
EVENT_LEVEL_DBFS = -21.0  # RMS of an event's loudest 100 ms before its gain
PEAK = 0.9  # louder mixtures are scaled down to this peak, which leaves room for a resampler's overshoot
FADE_S = 0.008
SHORT_EVENT_S = 0.9  # shorter sounds may come up to three times


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording with its two captions; `samples` are float32, mono, at `rate_hz`."""

    file_name: str
    family: str
    clause: str
    """What is heard as a sentence: "a dog barks"."""
    noun_phrase: str
    """The same as a name: "the barking of a dog"."""
    samples: np.ndarray
    rate_hz: int
    stretches_s: tuple[tuple[float, float], ...]
    """Audible stretches, apart by at least half a second of quiet."""
    loud_s: tuple[float, ...]
    """Moments loud enough to start an excerpt at."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """An excerpt of a recording, played at one or more moments of a soundscape."""

    recording: str
    start_s: float
    """Where the excerpt begins in the recording."""
    length_s: float
    """How long the excerpt is in the recording; it plays for `length_s / speed`."""
    speed: float
    gain_db: float
    pan: float
    """-1 left, 1 right; only heard in stereo."""
    onsets_s: tuple[float, ...]
    until_s: float
    """Nothing of the event is heard after this moment."""


@dataclass(frozen=True, kw_only=True)
class Soundscape:
    """One clip: its events, the noise under them, and its captions."""

    dataset: str
    split: str
    index: int
    rate_hz: int
    channels: int
    duration_s: float
    is_sequence: bool
    """True if the second event begins where the first has ended."""
    noise_dbfs: float
    noise_seed: int
    """Decides which piece of the noise is taken, for each channel."""
    events: tuple[Event, ...]
    captions: tuple[str, ...]

    @property
    def recordings(self) -> frozenset[str]:
        """The set that decides which split the mixture may be in."""
        return frozenset(event.recording for event in self.events)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split's size and what its clips are like."""

    clips: int
    captions: int
    """Captions a clip."""
    event_shares: tuple[float, float, float]
    """Shares of clips with one, two and three events."""
    part: str = TRAINING
    """The part of all sets of recordings that its mixtures are taken from."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the clips of a dataset have in common."""

    family_weights: Mapping[str, float]
    """How often a recording of a family is drawn; families not named have weight 1."""
    rates_hz: tuple[int, ...]
    stereo_share: float
    duration_s: tuple[float, float]
    short_share: float
    """Share of clips that are shorter than a window, 1.5 s at the least."""
    events_recur: bool
    """True if events go on or come back until the clip ends, as in a field recording."""
    sequence_share: float
    """Share of the two-event clips in which one sound follows the other."""
    noise_exponent: float
    """Power of the background noise falls as 1 / f ** this: 0 white, 1 pink, 2 brown."""
    final: str
    """What a caption ends in."""
    phrases: Mapping[str, tuple[str, ...]]
    """Caption templates by situation; c0 is the first event's clause, n0 its noun phrase."""
    splits: Mapping[str, Split]
    all_recordings: bool = True
    """False leaves out the recordings of `kept_from_general`."""


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

# Few captioned clips and more unlabeled audio, as the study needs them; test splits in which a clip is at most half a
# per cent of recall. The full training splits are larger: Clotho's 20 times, AudioCaps' 156, AudioSet's 20.
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
            "evaluation": Split(clips=200, captions=5, event_shares=(0.05, 0.5, 0.45), part="clotho/evaluation"),
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
            "test": Split(clips=240, captions=5, event_shares=(0.1, 0.6, 0.3), part="audiocaps/test"),
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
        rates_hz=(16_000,),  # the small model's rate: nothing else reads this set
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
    """The part that a set of two or more recordings belongs to: `training` or one held-out split.

    A hash of the names alone, so that it is the same for every dataset, split, size and seed: a mixture of a held-out
    split occurs in no other split of any dataset, whatever was generated when.
    """
    names = "\n".join(sorted(set(recordings)))
    digest = hashlib.blake2b(names.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64 / HELD_OUT_SHARE
    return HELD_OUT_PARTS[int(place)] if place < len(HELD_OUT_PARTS) else TRAINING


def kept_from_general(recordings: Sequence[Recording]) -> frozenset[str]:
    """The third of every family's recordings that pretraining never hears: finetuning has them to learn."""
    kept = set()
    for family in {recording.family for recording in recordings}:
        names = [recording.file_name for recording in recordings if recording.family == family]
        names.sort(key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
        kept.update(names[: round(len(names) / 3)])
    return frozenset(kept)


# ---------------------------------------------------------------------------------------------------- recordings


def load_recordings(folder: str | Path) -> list[Recording]:
    """The recordings listed in `folder`/recordings.csv, decoded from `folder`/audio, sorted by file name.

    Raises PipelineError if the folder, the list, one of its columns or values or a file is missing, or if a file cannot
    be decoded or is silent.
    """
    table = Path(folder) / "recordings.csv"
    if not table.is_file():
        raise PipelineError(
            f"{table}: not found; --recordings takes the folder with recordings.csv and audio/, such as data/recordings"
        )
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in RECORDING_COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            found = ", ".join(reader.fieldnames or ["no columns at all"])
            raise PipelineError(f"{table}: no column {', '.join(missing)}; found {found}")
        rows = list(reader)
    names = [row["file_name"] for row in rows]
    for number, row in enumerate(rows, start=2):
        if empty := [column for column in RECORDING_COLUMNS if not (row[column] or "").strip()]:
            raise PipelineError(f"{table} line {number}: {row['file_name']!r} has no {', '.join(empty)}; fill it in")
        if row["family"] not in FAMILIES:
            raise PipelineError(
                f"{table} line {number}: {row['file_name']!r} is of family {row['family']!r}; "
                f"choose {', '.join(FAMILIES)}"
            )
        if names.count(row["file_name"]) > 1:
            raise PipelineError(f"{table} line {number}: {row['file_name']!r} is listed twice; remove one of the rows")
    if len(rows) < 3:
        raise PipelineError(f"{table}: {len(rows)} recordings listed, at least 3 are needed to mix from")
    return sorted((_load_recording(Path(folder) / "audio", row) for row in rows), key=lambda one: one.file_name)


def _load_recording(folder: Path, row: Mapping[str, str]) -> Recording:
    path = folder / row["file_name"]
    try:
        samples, rate_hz = sf.read(path, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        raise PipelineError(f"{path}: cannot be decoded ({error}); copy it again or take it out of the list") from error
    samples = samples.mean(axis=1)
    frame = rate_hz // 50
    level = np.sqrt((samples[: len(samples) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))
    if level.size == 0 or not np.isfinite(level).all() or level.max() < 1e-3:
        raise PipelineError(f"{path}: {len(samples) / rate_hz:.2f} s of silence; take it out of the list")
    stretches = []
    for start, end in _runs(level > 0.05 * level.max(), longest_gap=25):
        if level[start:end].max() > 0.3 * level.max():
            stretches.append((start * 0.02, min(end * 0.02, len(samples) / rate_hz)))
    return Recording(
        file_name=row["file_name"],
        family=row["family"],
        clause=row["caption_1"],
        noun_phrase=row["caption_2"],
        samples=samples,
        rate_hz=rate_hz,
        stretches_s=tuple(stretches),
        loud_s=tuple(float(frame) * 0.02 for frame in np.flatnonzero(level > 0.3 * level.max())),
    )


def _runs(is_on: np.ndarray, longest_gap: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of true values, runs joined over gaps of up to `longest_gap`."""
    places = np.flatnonzero(is_on)
    breaks = np.flatnonzero(np.diff(places) > longest_gap + 1)
    starts = places[np.concatenate(([0], breaks + 1))]
    ends = places[np.concatenate((breaks, [len(places) - 1]))] + 1
    return zip(starts.tolist(), ends.tolist(), strict=True)


# ---------------------------------------------------------------------------------------------------- drawing


def draw_split(dataset: str, split: str, recordings: Sequence[Recording], *, seed: int, clips: int) -> list[Soundscape]:
    """`clips` soundscapes of a split; a larger split begins with the same ones.

    No two clips of a held-out split are made of the same set of recordings: their captions would not tell them apart.
    Raises PipelineError if the recordings do not make enough different sets.
    """
    style = STYLES[dataset]
    part = style.splits[split].part
    if not style.all_recordings:
        kept = kept_from_general(recordings)
        recordings = [recording for recording in recordings if recording.file_name not in kept]
    weights = np.array([style.family_weights.get(recording.family, 1.0) for recording in recordings])
    seen: set[frozenset[str]] = set()
    soundscapes = []
    for index in range(clips):
        generator = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{split}".encode()), index])
        count = 1 + int(generator.choice(3, p=style.splits[split].event_shares))
        for attempt in range(1, 1001):
            if attempt % 250 == 0:
                count = min(count + 1, 3)  # the sets of this size are used up
            chosen = generator.choice(len(recordings), size=count, replace=False, p=weights / weights.sum())
            names = frozenset(recordings[place].file_name for place in chosen)
            if (len(names) > 1 and part_of_set(names) != part) or (part != TRAINING and names in seen):
                continue
            seen.add(names)
            break
        else:
            raise PipelineError(
                f"{dataset}/{split}: only {index} of {clips} clips found with a set of recordings of their own among "
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
        heard_s = length_s / speed
        until_s = duration_s
        if style.events_recur:
            onset_s = generator.uniform(0, 0.4)
            repeats, gap_s = 99, (0.15, 0.6)
        elif is_sequence:
            onset_s = generator.uniform(0, 0.15) + turn_s * place
            until_s = turn_s if place == 0 else duration_s
            repeats, gap_s = 3, (0.1, 0.3)
        else:
            # A window at either end of the clip meets it: heard early enough for the first, still heard in the last.
            earliest_s = max(0.0, duration_s - WINDOW_S - max(0.0, heard_s - 1.0))
            latest_s = min(duration_s, WINDOW_S) - min(heard_s, 1.5)
            onset_s = generator.uniform(earliest_s, max(earliest_s, latest_s))
            repeats, gap_s = int(generator.integers(1, 4)), (0.1, 0.4)
        onsets_s = [onset_s]
        while (style.events_recur or heard_s < SHORT_EVENT_S) and len(onsets_s) < repeats:
            onset_s += heard_s + generator.uniform(*gap_s)
            if onset_s > until_s - min(0.3, heard_s):
                break
            onsets_s.append(onset_s)
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
        captions=_write_captions(style, split, chosen, events, is_sequence, generator),
    )


def _draw_excerpt(recording: Recording, wanted_s: float, generator: np.random.Generator) -> tuple[float, float]:
    """Start and length of an excerpt: a whole audible stretch, or a part of it that begins where it is loud."""
    begin_s, end_s = recording.stretches_s[int(generator.integers(len(recording.stretches_s)))]
    starts_s = [begin_s] + [
        start_s for start_s in recording.loud_s if begin_s < start_s < end_s - max(1.0, wanted_s / 2)
    ]
    start_s = starts_s[int(generator.integers(len(starts_s)))]
    return start_s, min(end_s - start_s, wanted_s)


def _write_captions(
    style: Style,
    split: str,
    chosen: Sequence[Recording],
    events: Sequence[Event],
    is_sequence: bool,
    generator: np.random.Generator,
) -> tuple[str, ...]:
    """As many different captions as the split has, each from another template as long as there are any."""
    wanted = style.splits[split].captions
    if wanted == 0:
        return ()
    situation = "sequence" if is_sequence else ("alone", "two", "three")[len(chosen) - 1]
    by_gain = sorted(range(len(chosen)), key=lambda place: -events[place].gain_db)
    orders: list[tuple[int, ...]] = [tuple(range(len(chosen)))]
    if not is_sequence:
        orders = list(itertools.permutations(range(len(chosen))))
    choices = [(phrase, orders) for phrase in style.phrases[situation]]
    if len(chosen) > 1 and not is_sequence:
        gap_db = events[by_gain[-2]].gain_db - events[by_gain[-1]].gain_db
        if gap_db >= BACKGROUND_GAP_DB:
            others = [(*order, by_gain[-1]) for order in itertools.permutations(by_gain[:-1])]
            choices += [(phrase, others) for phrase in style.phrases.get(f"{situation}, one quiet", ())]
    choices = [choices[place] for place in generator.permutation(len(choices))]
    captions: list[str] = []
    for phrase, possible in itertools.islice(itertools.cycle(choices), 100):
        order = possible[int(generator.integers(len(possible)))]
        words = {f"c{slot}": chosen[place].clause for slot, place in enumerate(order)}
        words |= {f"n{slot}": chosen[place].noun_phrase for slot, place in enumerate(order)}
        text = phrase.format(**words)
        text = text[0].upper() + text[1:] + style.final
        if text not in captions:
            captions.append(text)
        if len(captions) == wanted:
            return tuple(captions)
    raise AssertionError(f"the phrases of {situation!r} make fewer than {wanted} captions")


# ---------------------------------------------------------------------------------------------------- rendering


def render(soundscape: Soundscape, recordings: Mapping[str, Recording]) -> np.ndarray:
    """The soundscape's samples: int16, shape (frames, channels), peak at most `PEAK`."""
    frames = round(soundscape.duration_s * soundscape.rate_hz)
    generator = np.random.default_rng(soundscape.noise_seed)
    noise = _noise(STYLES[soundscape.dataset].noise_exponent)
    gain = np.float32(10 ** (soundscape.noise_dbfs / 20))
    mix = np.empty((soundscape.channels, frames), dtype=np.float32)
    for channel in mix:
        start = int(generator.integers(len(noise) - frames))
        np.multiply(noise[start : start + frames], gain, out=channel)
    for event in soundscape.events:
        sound = _excerpt(event, recordings[event.recording], soundscape.rate_hz)
        angle = (event.pan + 1) * np.pi / 4
        sides = (np.cos(angle) * np.sqrt(2), np.sin(angle) * np.sqrt(2)) if soundscape.channels == 2 else (1.0,)
        until = min(frames, round(event.until_s * soundscape.rate_hz))
        for onset_s in event.onsets_s:
            onset = round(onset_s * soundscape.rate_hz)
            heard = _fade_out(sound[: max(0, until - onset)], soundscape.rate_hz)
            for channel, side in zip(mix, sides, strict=True):
                channel[onset : onset + len(heard)] += heard * np.float32(side)
    peak = float(np.abs(mix).max())
    if peak > PEAK:
        mix *= np.float32(PEAK / peak)
    return np.ascontiguousarray(np.rint(mix.T * 32767).astype(np.int16))


def _excerpt(event: Event, recording: Recording, rate_hz: int) -> np.ndarray:
    """The excerpt at its speed and gain, its loudest 100 ms at the common level: float32 at `rate_hz`."""
    start, end = (round(second * recording.rate_hz) for second in (event.start_s, event.start_s + event.length_s))
    sound = soxr.resample(recording.samples[start:end], recording.rate_hz * event.speed, rate_hz, "HQ")
    frame = min(rate_hz // 10, len(sound))
    energy = (sound[: len(sound) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1)
    level = 10 ** ((EVENT_LEVEL_DBFS + event.gain_db) / 20) / max(np.sqrt(energy.max()), 1e-4)
    sound = sound * np.float32(level)
    fade = min(round(FADE_S * rate_hz), len(sound))
    sound[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
    return sound


def _fade_out(sound: np.ndarray, rate_hz: int) -> np.ndarray:
    fade = min(round(FADE_S * rate_hz), len(sound))
    sound = sound.copy()
    sound[len(sound) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound


@cache
def _noise(exponent: float) -> np.ndarray:
    """About 22 s (at 48 kHz) of noise at an RMS of 1, its power falling as 1 / f ** exponent."""
    length = 2**20
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(length))
    bins = np.maximum(np.arange(len(spectrum)), length // 1000)  # flat below a thousandth of the rate
    noise = np.fft.irfft(spectrum * bins ** (-exponent / 2), length)
    return (noise / np.sqrt((noise**2).mean())).astype(np.float32)
