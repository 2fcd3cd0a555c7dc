"""File names and lists of the small study's datasets, in the layouts of the published datasets."""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.small_study.recordings import Recording
from pipeline.data.small_study.soundscapes import Soundscape
from pipeline.data.small_study.styles import STYLES

PROVENANCE = "soundscapes.csv"

# As irregular as Clotho's own names: HTML entities, stray spaces, dots, signs, two names with one slug ("Train 1"), and
# one name in two splits ("Rain .wav").
CLOTHO_NAMES = {
    "development": (
        "Frogs&#39; pond.wav", "Rain .wav", "Train 1.wav", "train-1.wav", "12.05.06 harbour v1.2.wav", "mix#6F9A9E.wav",
        "_Stream 2 at the mill.wav", "121006_wind&amp;storm.wav", "Market  square.wav",
    ),
    "validation": ("Street (day) 01.wav", "_kitchen.wav", "gate.close.02.wav"),
    "evaluation": ("Rain .wav", "Owl&#39;s night.wav", "Door #2.wav", "yard 7am....wav"),
}  # fmt: skip
PLACES = ("yard", "harbour", "kitchen", "square", "hall", "meadow", "station", "garden", "workshop", "lane")

# A YouTube id encodes 64 bits in 11 characters, so its last character is one of AEIMQUYcgkosw048. Ids with other
# endings belong to no video, and these two endings keep the two datasets apart.
LAST_CHARACTER = {"audiocaps": "z", "audioset": "x"}
FIRST_AUDIOCAP_ID = 9_000_001  # the published ids end near 110,000
FIRST_SOUND_ID = 9_000_000_001  # Freesound's have six digits

# Classes of AudioSet's ontology that correspond to the families.
AUDIOSET_LABELS = {
    "animals": "/m/0jbk", "people": "/m/0dgw9r", "vehicles": "/m/07yv9", "water": "/m/0838f", "home": "/t/dd00071",
    "machines": "/t/dd00077", "signals": "/m/07pp_mv", "music": "/m/04rlf",
}  # fmt: skip

Clips = Sequence[tuple[Soundscape, Path]]
"""Soundscapes, each with the path of its audio file below the dataset's root."""

# --- file names ------------------------------------------------------------------------------------------------------


def _clotho_name(soundscape: Soundscape, seed: int) -> Path:
    wild = CLOTHO_NAMES[soundscape.split]
    if soundscape.index < len(wild):
        return Path(soundscape.split, wild[soundscape.index])
    place = PLACES[soundscape.index % len(PLACES)]
    return Path(soundscape.split, f"{place} {soundscape.split[0]}{soundscape.index:04d}.wav")


def _video_id(soundscape: Soundscape, seed: int) -> str:
    """Return 11 characters that look like a YouTube id but are not; every 29th begins with "-" and contains "_"."""
    source = f"{seed}/{soundscape.dataset}/{soundscape.split}/{soundscape.index}"
    text = base64.urlsafe_b64encode(hashlib.blake2b(source.encode(), digest_size=9).digest()).decode()[:10]
    if soundscape.index % 29 == 3:
        text = f"-{text[1:5]}_{text[6:]}"
    return text + LAST_CHARACTER[soundscape.dataset]


def _start_s(soundscape: Soundscape) -> int:
    """Return the start of the clip in its video; as in AudioCaps and AudioSet, a multiple of 10 s."""
    return soundscape.index * 7 % 30 * 10


def _audiocaps_name(soundscape: Soundscape, seed: int) -> Path:
    return Path(soundscape.split, f"{_video_id(soundscape, seed)}_{_start_s(soundscape)}.flac")


def _audioset_name(soundscape: Soundscape, seed: int) -> Path:
    return Path(soundscape.split, f"Y{_video_id(soundscape, seed)}.wav")


def _general_name(soundscape: Soundscape, seed: int) -> Path:
    return Path(soundscape.split, f"{soundscape.index:05d}.wav")


# --- lists -----------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, rows: Iterable[Sequence[object]], encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _families(soundscape: Soundscape, recordings: Mapping[str, Recording]) -> list[str]:
    return sorted({recordings[event.recording].family for event in soundscape.events})


def _list_clotho(folder: Path, clips: Clips, recordings: Mapping[str, Recording], seed: int) -> None:
    clips_before = 0
    for split in STYLES["clotho"].splits:
        captions: list[list[object]] = [["file_name", *(f"caption_{number}" for number in range(1, 6))]]
        metadata: list[list[object]] = [
            ["file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]
        ]
        for soundscape, path in clips:
            if soundscape.split == split:
                captions.append([path.name, *soundscape.captions])
                metadata.append(
                    [
                        path.name,
                        ";".join(_families(soundscape, recordings)),
                        FIRST_SOUND_ID + clips_before + soundscape.index,
                        PROVENANCE,
                        f"[0, {round(soundscape.duration_s * soundscape.rate_hz)}]",
                        "mélange",  # Clotho's lists are ISO-8859-1, and hold names that UTF-8 cannot read
                        "https://creativecommons.org/licenses/by-sa/4.0/",
                    ]
                )
        clips_before += len(captions) - 1
        _write_csv(folder / f"clotho_captions_{split}.csv", captions)
        _write_csv(folder / f"clotho_metadata_{split}.csv", metadata, encoding="iso-8859-1")


def _list_audiocaps(folder: Path, clips: Clips, recordings: Mapping[str, Recording], seed: int) -> None:
    row_id = FIRST_AUDIOCAP_ID
    for split, settings in STYLES["audiocaps"].splits.items():
        rows: list[list[object]] = [["audiocap_id", "youtube_id", "start_time", "caption"]]
        for number in range(settings.captions):  # as in AudioCaps, the five rows of a clip are not neighbours
            for soundscape, _ in clips:
                if soundscape.split == split:
                    caption = soundscape.captions[number]
                    rows.append([row_id, _video_id(soundscape, seed), _start_s(soundscape), caption])
                    row_id += 1
        _write_csv(folder / f"{split}.csv", rows)


def _list_audioset(folder: Path, clips: Clips, recordings: Mapping[str, Recording], seed: int) -> None:
    labels = [[AUDIOSET_LABELS[name] for name in _families(soundscape, recordings)] for soundscape, _ in clips]
    unique = {label for of_clip in labels for label in of_clip}
    lines = [
        f"# Segments csv of soundscapes mixed with seed {seed}",
        f"# num_ytids={len(clips)}, num_segs={len(clips)}, num_unique_labels={len(unique)}, "
        f"num_positive_labels={sum(map(len, labels))}",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for (soundscape, _), of_clip in zip(clips, labels, strict=True):
        start_s = _start_s(soundscape)
        lines.append(
            f"{_video_id(soundscape, seed)}, {start_s:.3f}, {start_s + soundscape.duration_s:.3f}, "
            f'"{",".join(sorted(of_clip))}"'
        )
    (folder / "balanced_train_segments.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _list_general(folder: Path, clips: Clips, recordings: Mapping[str, Recording], seed: int) -> None:
    rows: list[list[object]] = [["file_name", "caption_1", "caption_2"]]
    rows += [[path.name, *soundscape.captions] for soundscape, path in clips]
    _write_csv(folder / "train.csv", rows)


def write_provenance(folder: Path, clips: Clips) -> None:
    """Write one row per event: its clip, its recording, and its mixing parameters."""
    rows: list[list[object]] = [
        [
            "file", "split", "recording", "start_s", "length_s", "speed", "gain_db", "pan", "onsets_s", "until_s",
            "is_sequence", "noise_dbfs", "noise_seed",
        ]
    ]  # fmt: skip
    for soundscape, path in clips:
        for event in soundscape.events:
            rows.append(
                [
                    path.as_posix(), soundscape.split, event.recording, event.start_s, event.length_s, event.speed,
                    event.gain_db, event.pan, ";".join(map(str, event.onsets_s)), event.until_s, soundscape.is_sequence,
                    soundscape.noise_dbfs, soundscape.noise_seed,
                ]
            )  # fmt: skip
    _write_csv(folder / PROVENANCE, rows)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A publisher's names of audio files and lists."""

    name: Callable[[Soundscape, int], Path]
    """The path of a clip below the dataset's root, from the soundscape and the seed."""
    write_lists: Callable[[Path, Clips, Mapping[str, Recording], int], None]
    """Writes the lists below a root, from the clips, the recordings by name and the seed."""


LAYOUTS = {
    "clotho": Layout(name=_clotho_name, write_lists=_list_clotho),
    "audiocaps": Layout(name=_audiocaps_name, write_lists=_list_audiocaps),
    "audioset": Layout(name=_audioset_name, write_lists=_list_audioset),
    "general": Layout(name=_general_name, write_lists=_list_general),
}
