"""Moments of real sounds that a model finds in long recordings: python -m bench.moments results/runs/RUN/seed0

Every recording of `data/recordings` is played once, at a known time, in four long recordings with quiet noise. Its
captions ask for it. The figures are those of the protocol `moments`, next to those of simpler answers:

merged            neighbouring windows merged into moments, as in the protocol
windows           each window as a moment
shuffled          merged, with the captions exchanged at random
collapsed         merged, with the same vector for all windows

At the end each caption asks the whole folder, as `composed-text search` does, and the times found are compared.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.evaluation.embedding import embed_recordings, embed_texts
from pipeline.evaluation.folders.search import search_folder
from pipeline.evaluation.model import load
from pipeline.evaluation.moment_metrics import moment_figures
from pipeline.evaluation.moment_retrieval import Windows, query_figures, read_queries
from pipeline.evaluation.moments import Moment
from pipeline.evaluation.protocols import MOMENTS, figures_of, measure_of
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.models import load_model
from pipeline.stages import index_audio

SOUNDS = Path("data/recordings")
RATE_HZ = 16_000
RECORDINGS = 4


def write_recordings(root: Path) -> None:
    """Write the long recordings and the list of their captioned stretches, in the layout `folder`."""
    generator = np.random.default_rng(0)
    with (SOUNDS / "recordings.csv").open(newline="") as file:
        sounds = list(csv.DictReader(file))
    (root / "test").mkdir()
    stretches = []
    for number, part in enumerate(np.array_split(generator.permutation(len(sounds)), RECORDINGS)):
        pieces: list[NDArray] = []
        for row in part:
            sound_S = sound_of(SOUNDS / "audio" / sounds[row]["file_name"], generator.uniform(3, 12))
            pieces.append(np.zeros(round(generator.uniform(3, 8) * RATE_HZ)))
            start = sum(map(len, pieces))
            pieces.append(sound_S)
            captions = sounds[row]["caption_1"], sounds[row]["caption_2"]
            stretches.append([f"{number}.wav", start / RATE_HZ, (start + len(sound_S)) / RATE_HZ, *captions])
        samples_S = np.concatenate([*pieces, np.zeros(5 * RATE_HZ)])
        soundfile.write(
            root / "test" / f"{number}.wav", samples_S + generator.normal(0, 0.003, len(samples_S)), RATE_HZ
        )
    with (root / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "start_s", "end_s", "caption_1", "caption_2"], *stretches])


def sound_of(path: Path, most_s: float) -> NDArray:
    """Return a sound of at most so many seconds, with half of the full scale; one below 1 s is repeated for 2 s."""
    samples_SC, rate_hz = soundfile.read(path, always_2d=True)
    samples_S = soxr.resample(samples_SC.mean(axis=1), rate_hz, RATE_HZ)[: round(most_s * RATE_HZ)]
    if len(samples_S) < RATE_HZ:
        samples_S = np.resize(samples_S, 2 * RATE_HZ)
    return 0.5 * samples_S / np.abs(samples_S).max()


def answers(folder: Path, model_folder: Path, hop_s: float) -> Iterator[tuple[str, NDArray]]:
    """Yield the figures of each kind of answer, between 0 and 1."""
    catalog = folder / "test.parquet"
    index_audio.main(
        ["--dataset", "bench", "--split", "test", "--adapter", "folder", "--root", str(folder), "--labeled"]
        + ["--clips-per-shard", "512", "--catalog", str(catalog), "--plan", str(folder / "plan.parquet")]
    )
    model = load_model(model_folder)
    queries, recordings = read_queries(catalog)
    windows, _, _ = embed_recordings(model, recordings, hop_s, BATCH_SIZE, model.channels)
    text_QD = embed_texts(model, queries.caption_Q, BATCH_SIZE)
    yield "merged", query_figures(queries, text_QD, windows).mean(axis=0)
    of_windows = [
        moment_figures(windows_as_moments(windows, recording, text_D), queries.true_T2[queries.query_T == query])
        for query, (recording, text_D) in enumerate(zip(queries.recording_Q, text_QD, strict=True))
    ]
    yield "windows", np.mean(of_windows, axis=0)
    shuffled_QD = np.random.default_rng(0).permutation(text_QD)
    yield "shuffled", query_figures(queries, shuffled_QD, windows).mean(axis=0)
    same_WD = np.broadcast_to(windows.vector_WD[:1], windows.vector_WD.shape)
    yield "collapsed", query_figures(queries, text_QD, replace(windows, vector_WD=same_WD)).mean(axis=0)


def windows_as_moments(windows: Windows, recording: int, text_D: NDArray) -> list[Moment]:
    """Return the windows of a recording, scored by a caption."""
    rows = np.flatnonzero(windows.recording_W == recording)
    times = zip(windows.start_s_W[rows], windows.end_s_W[rows], windows.vector_WD[rows] @ text_D, strict=True)
    return [Moment(start_s=float(start), end_s=float(end), score=float(score)) for start, end, score in times]


def searched(folder: Path, model_folder: Path, hop_s: float) -> str:
    """Return how many captions find their sound in the folder, and how far the times of the first hits are off."""
    model = load(model_folder)
    with (folder / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ranks, errors_s = [], []
    for row in rows:
        start_s, end_s = float(row["start_s"]), float(row["end_s"])
        found = search_folder(row["caption_1"], model, folder / "test", top=10, hop_s=hop_s, index=folder / "index")
        overlap = [hit.file == row["file_name"] and hit.start_s < end_s and hit.end_s > start_s for hit in found.hits]
        ranks.append(overlap.index(True) + 1 if any(overlap) else 11)
        if ranks[-1] == 1:
            errors_s += [abs(found.hits[0].start_s - start_s), abs(found.hits[0].end_s - end_s)]
    shares = ", ".join(f"{np.mean(np.array(ranks) <= top):.0%} among the first {top}" for top in (1, 3, 10))
    times = f"begin and end of a right first hit are off by {np.median(errors_s):.1f} s (median)"
    return f"search of {found.files} recordings, {len(rows)} captions: {shares}; {times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a saved model")
    parser.add_argument("--hop-s", type=float, default=0.5, help="from one window to the next (default: %(default)s)")
    args = parser.parse_args()
    names = [measure_of(name) for name in figures_of(MOMENTS)]
    with tempfile.TemporaryDirectory() as directory:
        write_recordings(Path(directory))
        print(f"| answers | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
        for name, figures in answers(Path(directory), args.model, args.hop_s):
            print(f"| {name} | {' | '.join(f'{100 * figure:.1f}' for figure in figures)} |", flush=True)
        print(f"\n{searched(Path(directory), args.model, args.hop_s)}")


if __name__ == "__main__":
    main()
