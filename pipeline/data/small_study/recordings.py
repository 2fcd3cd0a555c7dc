"""The recordings that soundscapes are mixed from, with their captions and their audible parts."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from pipeline.errors import PipelineError

RECORDING_COLUMNS = (
    "file_name", "family", "caption_1", "caption_2", "author", "shipped_text", "source_package", "source_file",
    "licence",
)  # fmt: skip
FAMILIES = ("animals", "people", "vehicles", "water", "home", "machines", "signals", "music")

FRAME_S = 0.02  # frame in which levels are measured
LONGEST_GAP = 25  # frames of quiet within one stretch


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording with its two captions; `samples` are float32, mono, at `rate_hz`."""

    file_name: str
    family: str
    clause: str
    """The sound as a sentence: "a dog barks"."""
    noun_phrase: str
    """The sound as a name: "the barking of a dog"."""
    samples: np.ndarray
    rate_hz: int
    stretches_s: tuple[tuple[float, float], ...]
    """Start and end of the audible parts; at least half a second of quiet lies between two of them."""
    loud_s: tuple[float, ...]
    """Moments that are loud enough to start an excerpt."""


def load_recordings(folder: str | Path) -> list[Recording]:
    """Return the recordings listed in `folder`/recordings.csv, decoded from `folder`/audio, sorted by file name.

    Raises:
        PipelineError: The folder, the list, one of its columns or values or a file is missing, or a file cannot be
            decoded or is silent.
    """
    rows = _read_list(Path(folder) / "recordings.csv")
    return sorted((_load_recording(Path(folder) / "audio", row) for row in rows), key=lambda one: one.file_name)


def _read_list(table: Path) -> list[dict[str, str]]:
    """Return the rows of recordings.csv, each with a value in every column."""
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
        raise PipelineError(f"{table}: {len(rows)} recordings listed, at least 3 are needed; add some")
    return rows


def _load_recording(folder: Path, row: Mapping[str, str]) -> Recording:
    path = folder / row["file_name"]
    try:
        samples, rate_hz = sf.read(path, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        raise PipelineError(f"{path}: cannot be decoded ({error}); copy it again or take it out of the list") from error
    samples = samples.mean(axis=1)
    frame = rate_hz // 50  # samples of FRAME_S
    level = np.sqrt((samples[: len(samples) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))
    if level.size == 0 or not np.isfinite(level).all() or level.max() < 1e-3:
        raise PipelineError(f"{path}: {len(samples) / rate_hz:.2f} s of silence; take it out of the list")
    stretches = []
    for start, end in _runs(level > 0.05 * level.max()):
        if level[start:end].max() > 0.3 * level.max():
            stretches.append((start * FRAME_S, min(end * FRAME_S, len(samples) / rate_hz)))
    return Recording(
        file_name=row["file_name"],
        family=row["family"],
        clause=row["caption_1"],
        noun_phrase=row["caption_2"],
        samples=samples,
        rate_hz=rate_hz,
        stretches_s=tuple(stretches),
        loud_s=tuple(float(frame) * FRAME_S for frame in np.flatnonzero(level > 0.3 * level.max())),
    )


def _runs(is_on: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return start and end of each run of true values; runs up to LONGEST_GAP apart count as one."""
    places = np.flatnonzero(is_on)
    breaks = np.flatnonzero(np.diff(places) > LONGEST_GAP + 1)
    starts = places[np.concatenate(([0], breaks + 1))]
    ends = places[np.concatenate((breaks, [len(places) - 1]))] + 1
    return zip(starts.tolist(), ends.tolist(), strict=True)


def withheld_from_general(recordings: Sequence[Recording]) -> frozenset[str]:
    """Return a third of each family's recordings, which pretraining leaves for finetuning."""
    withheld = set()
    for family in {recording.family for recording in recordings}:
        names = [recording.file_name for recording in recordings if recording.family == family]
        names.sort(key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
        withheld.update(names[: round(len(names) / 3)])
    return frozenset(withheld)
