"""Hits that --like-chance keeps and loses, on real sounds at known times: python -m bench.chance --model RUN

Field recordings are simulated from data/recordings: 10 of the 86 sounds are placed at random times and levels into
noise of varying colour and loudness, at speeds that no training uses. Every sound of the list is then searched by its
caption, whether it is there or not. With a model of the small study, the sounds are those of its training, in other
surroundings.

A hit is right if it overlaps a placement of the sound. Sounds that are not there include relatives of those that are:
one bird for another.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.evaluation.folders.chance import reference_captions, standing_out
from pipeline.evaluation.folders.index import FolderIndex
from pipeline.evaluation.folders.indexing import update_index
from pipeline.evaluation.folders.recordings import find_recordings
from pipeline.evaluation.folders.search import Hit, find_hits, window_form
from pipeline.evaluation.model import AudioTextModel, load

SOUNDS = Path("data/recordings")
RATE_HZ = 16_000
PRESENT, RECORDINGS, MINUTES = 10, 4, 8.0
SPEEDS = (0.9, 0.95, 1.05, 1.1)
GAP_S = 20.0
"""Mean time between two sounds."""
LONGEST_S = 6.0
NOISE_DBFS, SOUND_DBFS = -42.0, (-30.0, -18.0)
LIKE_CHANCE = (0.01, 0.05, 0.2)
TOP = 1000


@dataclass(frozen=True)
class Placement:
    """A sound in a recording."""

    file: str
    sound: str
    start_s: float
    end_s: float


@dataclass
class Tally:
    """The results of one way to choose hits."""

    absent: list[bool] = field(default_factory=list)
    """Whether a sound that is not there has a hit, for each."""
    placed: list[bool] = field(default_factory=list)
    """Whether a placement was found, for each."""
    right: list[bool] = field(default_factory=list)
    """Whether a hit is right, for each hit of a sound that is there."""
    errors_s: list[float] = field(default_factory=list)
    """Differences of the starts and ends of right hits from the times in the timetable."""

    def row(self, name: str) -> str:
        """Return a row of the table."""
        shares = [
            f"{100 * np.mean(values):.0f} %" if values else "-" for values in (self.absent, self.placed, self.right)
        ]
        error = f"{np.median(self.errors_s):.1f} s" if self.errors_s else "-"
        return f"| {name} | {' | '.join(shares)} | {error} |"


def write_field(folder: Path, sounds: list[dict[str, str]], generator: np.random.Generator) -> list[Placement]:
    """Write recordings with some of the sounds, and return where these are."""
    present = generator.choice(len(sounds), PRESENT, replace=False)
    placements = []
    for number in range(RECORDINGS):
        samples = noise(round(60 * MINUTES * RATE_HZ), generator)
        time_s = generator.exponential(GAP_S)
        while True:
            name = sounds[int(generator.choice(present))]["file_name"]
            sound = excerpt(SOUNDS / "audio" / name, float(generator.choice(SPEEDS)))
            end_s = time_s + len(sound) / RATE_HZ
            if end_s > 60 * MINUTES:
                break
            first = round(time_s * RATE_HZ)
            samples[first : first + len(sound)] += at_level(sound, generator.uniform(*SOUND_DBFS))
            placements.append(Placement(f"{number}.flac", name, time_s, end_s))
            time_s = end_s + generator.exponential(GAP_S)
        soundfile.write(folder / f"{number}.flac", np.clip(samples, -1, 1), RATE_HZ)
    return placements


def noise(frames: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return noise of a random colour, whose loudness changes every few seconds."""
    spectrum = np.fft.rfft(generator.standard_normal(frames, np.float32))
    hertz = np.fft.rfftfreq(frames, 1 / RATE_HZ) + 20
    samples = np.fft.irfft(spectrum * hertz ** -generator.uniform(0.3, 1), frames)
    steps = np.arange(0, frames + 5 * RATE_HZ, 5 * RATE_HZ)
    return at_level(samples * np.interp(np.arange(frames), steps, generator.uniform(0.4, 1.6, len(steps))), NOISE_DBFS)


def excerpt(path: Path, speed: float) -> NDArray[np.float32]:
    """Return the sound of a file between its silences, at another speed."""
    samples, rate_hz = soundfile.read(path, dtype="float32")
    samples = soxr.resample(samples, rate_hz * speed, RATE_HZ)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1][: round(LONGEST_S * RATE_HZ)]


def at_level(samples: NDArray[np.floating], dbfs: float) -> NDArray[np.float32]:
    """Return samples at a root mean square of `dbfs`."""
    return (samples * (10 ** (dbfs / 20) / np.sqrt(np.mean(samples**2)))).astype(np.float32)


def deviating(
    vectors_ND: NDArray[np.float32], is_searched_N: NDArray[np.bool_], query_D: NDArray[np.float32], like_chance: float
) -> NDArray[np.bool_]:
    """The windows whose score is far above the mean over the index, in standard deviations (z-norm with Bonferroni)."""
    scores_N = vectors_ND @ query_D
    z_N = (scores_N - scores_N[is_searched_N].mean()) / scores_N[is_searched_N].std()
    return z_N > NormalDist().inv_cdf(1 - like_chance / is_searched_N.sum())


def judge(hits: list[Hit], placements: list[Placement], tally: Tally) -> None:
    """Count the hits of a sound with these placements; of none if it is not there."""
    if not placements:
        tally.absent.append(bool(hits))
        return

    def overlaps(hit: Hit, place: Placement) -> bool:
        return hit.file == place.file and hit.start_s < place.end_s and place.start_s < hit.end_s

    tally.placed += [any(overlaps(hit, place) for hit in hits) for place in placements]
    for hit in hits:
        place = next((place for place in placements if overlaps(hit, place)), None)
        tally.right.append(place is not None)
        if place is not None:
            tally.errors_s += [abs(hit.start_s - place.start_s), abs(hit.end_s - place.end_s)]


def compare(model: AudioTextModel, folders: int) -> dict[str, Tally]:
    """Return the results of each way to choose hits, over several folders."""
    with (SOUNDS / "recordings.csv").open(encoding="utf-8") as file:
        sounds = list(csv.DictReader(file))
    queries_QD = model.embed_text([sound["caption_1"] for sound in sounds])
    references_RD = model.embed_text(reference_captions())
    form = window_form(model.network, None)
    tallies: dict[str, Tally] = {}
    for seed in range(folders):
        with tempfile.TemporaryDirectory() as made:
            recordings = Path(made) / "recordings"
            recordings.mkdir()
            placements = write_field(recordings, sounds, np.random.default_rng(seed))
            index = FolderIndex(Path(made) / "index", model.embedding_dim, {})
            update_index(index, model.network, recordings, {f.name: f for f in find_recordings(recordings)}, form)
            files = list(index.files.values())
            for sound, query_D in zip(sounds, queries_QD, strict=True):
                there = [place for place in placements if place.sound == sound["file_name"]]
                ways: dict[str, tuple[int, Callable | None]] = {"the 10 best": (10, None)}
                for chance in LIKE_CHANCE:
                    out = partial(standing_out, query_D=query_D, references_RD=references_RD, like_chance=chance)
                    ways[f"--like-chance {chance:g}"] = TOP, out
                for chance in LIKE_CHANCE:
                    ways[f"z-norm, {chance:g}"] = TOP, partial(deviating, query_D=query_D, like_chance=chance)
                for name, (top, stands_out) in ways.items():
                    hits = find_hits(index, files, query_D, form, top, stands_out)
                    judge(hits, there, tallies.setdefault(name, Tally()))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--folders", type=int, default=5, help="simulated folders (default: %(default)s)")
    args = parser.parse_args()
    tallies = compare(load(args.model), args.folders)
    columns = ["hits", "absent sounds with a hit", "placements found", "hits that are right", "median error of times"]
    print(f"| {' | '.join(columns)} |\n|---|---:|---:|---:|---:|")
    print("\n".join(tally.row(name) for name, tally in tallies.items()))


if __name__ == "__main__":
    main()
