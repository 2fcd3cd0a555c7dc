"""Small real audio files, lists and shards for the tests of the audio stages."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.data.shards.partition import FIRST_SHARD, read_assignment, write_plan
from pipeline.stages import index_audio, index_shards, shard_audio
from tests.forks import run_python

RATE = 16_000


def tone(
    duration_s: float = 0.5, frequency_hz: float = 440.0, rate: int = RATE, level: float = 0.5
) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def tones(duration_s: float, first_hz: float = 400.0, rate: int = 44_100) -> NDArray[np.float32]:
    """Second k is a tone of first_hz + 150 k Hz, so that audio that is lost or foreign can be recognised."""
    time_s = np.arange(round(duration_s * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (first_hz + 150 * np.floor(time_s)) * time_s)).astype(np.float32)


def noise(duration_s: float, seed: int, rate: int = RATE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(duration_s * rate)).astype(np.float32)


def with_bytes(data: bytes, place: int, new: bytes) -> bytes:
    """The data with other bytes at a place."""
    return data[:place] + new + data[place + len(new) :]


def without_header(mp3: bytes) -> bytes:
    """An MP3 without its Info header, which takes the first frame: what LAME and ffmpeg write to a pipe."""
    second = mp3.index(mp3[:2], 100)  # the first frame's zeros hold no header
    return mp3[second:]


def of_unknown_length(flac: bytes) -> bytes:
    """A FLAC whose STREAMINFO announces 0 samples, as one that was written to a pipe."""
    return with_bytes(flac, 21, bytes([flac[21] & 0xF0, 0, 0, 0, 0]))


def write_audio(path: Path, samples: NDArray | None = None, rate: int = RATE, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if samples is None else samples, rate, **kind)
    return path


def write_csv(path: Path, *rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_folder(root: Path, clips: int = 5, captions: int = 2) -> Path:
    """A captioned `folder` dataset of noises of 0.2, 0.4, 0.6, ... s."""
    for clip in range(clips):
        write_audio(root / "train" / f"clip {clip}.wav", noise(0.2 * (clip + 1), seed=clip))
    columns = [f"caption_{number}" for number in range(1, captions + 1)]
    rows = [[f"clip {clip}.wav", *(f"noise {clip}, told {column}" for column in columns)] for clip in range(clips)]
    write_csv(root / "train.csv", ["file_name", *columns], *rows)
    return root


def make_catalog(root: Path, catalog: Path, *, labeled: bool = True, limit: float = 1.0) -> Path:
    index_audio.main(
        [
            *("--dataset", "sounds", "--split", "train", "--adapter", "folder", "--root", str(root)),
            "--labeled" if labeled else "--unlabeled",
            *("--max-dropped-fraction", str(limit), "--clips-per-shard", "9"),
            *("--catalog", str(catalog), "--plan", str(plan_path(catalog))),
        ]
    )
    return catalog


def plan_path(catalog: Path) -> Path:
    """Where the plan of a catalog's shards lies: next to it."""
    return catalog.with_suffix(".shards.parquet")


def write_plan_of(catalog: Path, clips: int) -> Path:
    """The plan of a catalog's shards, now of at most so many clips each."""
    write_plan(read_assignment(catalog, clips), plan_path(catalog))
    return plan_path(catalog)


def shard_arguments(
    catalog: Path,
    folder: Path,
    shard: str = FIRST_SHARD,
    *,
    clips: int = 9,
    rate: int = RATE,
    audio_format: str = "wav",
    channels: str | None = None,
) -> list[str]:
    """Arguments that make one shard of a catalog: a part of as many as there are shards."""
    names = shard_names(catalog, clips)
    part = f"{names.index(shard)}-of-{len(names)}"
    return part_arguments(catalog, folder, part, clips=clips, rate=rate, audio_format=audio_format, channels=channels)


def part_arguments(
    catalog: Path,
    folder: Path,
    part: str = "0-of-1",
    *,
    clips: int = 9,
    rate: int = RATE,
    audio_format: str = "wav",
    channels: str | None = None,
) -> list[str]:
    """Arguments that make one part of a catalog's shards, whose plan is written now."""
    return [
        *("--catalog", str(catalog), "--plan", str(write_plan_of(catalog, clips)), "--part", part),
        *("--sample-rate-hz", str(rate), "--format", audio_format),
        *([] if channels is None else ["--channels", channels]),
        *("--shards", str(folder), "--done", str(folder / "parts" / f"{part}.json")),
    ]


def index_arguments(catalog: Path, folder: Path, clips: int = 3, limit: float = 1.0) -> list[str]:
    return [
        *("--plan", str(write_plan_of(catalog, clips)), "--shards", str(folder)),
        *("--manifest", str(folder / "manifest.parquet"), "--summary", str(folder / "manifest.json")),
        *("--identities", str(folder / "identities.parquet"), "--max-dropped-fraction", str(limit)),
    ]


def shard_names(catalog: Path, clips: int = 3) -> list[str]:
    """The shards that a catalog is cut into, at most so many clips each."""
    return [assignment.shard for assignment in read_assignment(catalog, clips)]


def make_shards(catalog: Path, folder: Path, clips: int = 3, **settings: object) -> Path:
    """All shards of a catalog and their manifest."""
    shard_audio.main(part_arguments(catalog, folder, clips=clips, **settings))  # type: ignore[arg-type]
    index_shards.main(index_arguments(catalog, folder, clips))
    return folder


def run_stage(stage: str, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """The stage as its own process, as the workflow runs it."""
    return run_python("-m", f"pipeline.stages.{stage}", *arguments)


def assert_refused(finished: subprocess.CompletedProcess[str], stage: str, *words: str) -> None:
    """Exit status 1, no traceback, and one last line that begins with the stage's name and holds the words."""
    lines = finished.stderr.splitlines()
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert [line for line in lines if line.startswith(f"{stage}: ")] == lines[-1:]
    for word in words:
        assert word in lines[-1]
