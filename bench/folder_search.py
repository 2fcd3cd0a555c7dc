"""Time of indexing and searching folders of recordings: python -m bench.folder_search

1. Indexing recordings, compared with the model's forward passes on the same windows in memory. Target: 1.1 times or
   less. The model is ms-clap 2023 at full size with random weights, or --model; the recordings are synthetic, FLAC of
   48 kHz stereo, or --recordings.
2. A search in a folder of 10,000 files after 10 new ones, with a loaded model, the small one. Target: 1 s or less, and
   10 windows embedded.
3. A search among a million windows of width 1024: scores, the best moments, and with --like-chance the comparison with
   the reference captions. Target of the first: 0.3 s or less, the median of 10 searches after the first.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from bench.data import target_line
from pipeline.evaluation.embedding import encode_windows
from pipeline.evaluation.folders.chance import leads
from pipeline.evaluation.folders.index import FolderIndex
from pipeline.evaluation.folders.indexing import update_index
from pipeline.evaluation.folders.recordings import RecordingFile, Window, WindowForm, find_recordings, stream_windows
from pipeline.evaluation.folders.search import find_hits, search_folder, window_form
from pipeline.evaluation.model import AudioTextModel, load
from pipeline.evaluation.vectors import unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.models import mini, msclap2023, save_model

RECORDINGS, RECORDING_S = 8, 60
FILES, NEW_FILES = 10_000, 10
WIDTH, WINDOWS_PER_RECORDING, SEARCHES = 1024, 1000, 10
REPETITIONS = 3


def write_recordings(folder: Path, count: int, seconds: float, rate_hz: int, channels: int, ending: str) -> None:
    """Write recordings of noise of varying loudness."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        samples = generator.normal(0, generator.uniform(0.02, 0.2), (round(seconds * rate_hz), channels))
        soundfile.write(folder / f"{number:06d}.{ending}", samples, rate_hz)


def indexing(model: AudioTextModel, recordings: Path) -> str:
    """Return the row of the time to index a folder, over that of the forward passes; the shortest of each counts."""
    network = model.network
    form = window_form(network, None)
    files = {file.name: file for file in find_recordings(recordings)}
    windows = [
        item.samples_S for name in files for item in stream_windows(recordings / name, form) if isinstance(item, Window)
    ]
    batches = [
        torch.from_numpy(np.stack(windows[first : first + BATCH_SIZE])) for first in range(0, len(windows), BATCH_SIZE)
    ]
    device = network.logit_scale.device

    @torch.inference_mode()
    def forward() -> float:
        started = time.perf_counter()
        for batch in batches:
            encode_windows(network, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder:
            index = FolderIndex(Path(folder), model.embedding_dim, {})
            started = time.perf_counter()
            update_index(index, network, recordings, files, form)
            return time.perf_counter() - started

    forward()
    pairs = [(whole(), forward()) for _ in range(REPETITIONS)]
    taken, bare = np.min(pairs, axis=0)
    what = f"{len(files)} recordings, {len(windows)} windows of {form.window_s:.2f} s on {device}"
    print(f"{what}: indexed in {taken:.2f} s, forward passes {bare:.2f} s; shortest of {REPETITIONS}")
    return target_line("indexing recordings: time over the forward passes'", taken / bare, 1.1, at_most=True)


def second_search(model: AudioTextModel, folder: Path, files: int = FILES) -> list[str]:
    """Return the rows of a search after a few new files."""
    recordings = folder / "recordings"
    write_recordings(recordings, files, 0.3, 16_000, 1, "wav")
    started = time.perf_counter()
    search_folder("a dog barks", model, recordings, index=folder / "index")
    first = time.perf_counter() - started
    write_recordings(folder / "new", NEW_FILES, 0.5, 16_000, 1, "wav")
    for path in (folder / "new").iterdir():
        path.rename(recordings / f"new {path.name}")
    (vectors,) = (folder / "index").glob("*/vectors-0.f32")
    size = vectors.stat().st_size
    started = time.perf_counter()
    found = search_folder("a dog barks", model, recordings, index=folder / "index")
    second = time.perf_counter() - started
    embedded = (vectors.stat().st_size - size) // (4 * model.embedding_dim)
    print(f"{found.files:,} files: first search {first:.1f} s, after {NEW_FILES} new files {second:.2f} s")
    return [
        target_line(f"seconds of a search after {NEW_FILES} new of {files:,} files", second, 1, at_most=True),
        target_line("windows embedded in it", embedded, NEW_FILES, at_most=True),
    ]


def many_windows(rows: int, folder: Path, references: int = 0) -> str:
    """Return the row of a search among many windows; `references` captions are compared and printed, too."""
    generator = np.random.default_rng(0)
    index = FolderIndex(folder, WIDTH, {})
    per_recording = min(WINDOWS_PER_RECORDING, rows)
    with index.locked(), index.writer() as writer:
        for number in range(rows // per_recording):
            file = writer.file(RecordingFile(f"{number:06d}.wav", 1, 1))
            made = unit_rows(generator.standard_normal((per_recording, WIDTH), np.float32))
            writer.append(file, made, np.arange(per_recording))
            file.is_complete, file.duration_s = True, 3.5 * (per_recording + 1)
        writer.commit()
    form = WindowForm(sample_rate_hz=44_100, channels="mean", window_frames=308_700, hop_s=3.5, short_clips="repeat")
    files = list(index.files.values())
    seconds = []
    for query in unit_rows(generator.standard_normal((SEARCHES + 1, WIDTH), np.float32)):
        started = time.perf_counter()
        find_hits(index, files, query, form, 10)
        seconds.append(time.perf_counter() - started)
    median = float(np.median(seconds[1:]))
    print(f"{rows:,} windows: first search {seconds[0]:.3f} s, then {median:.3f} s (median)")
    if references:
        vectors_RD = unit_rows(generator.standard_normal((references, WIDTH), np.float32))
        started = time.perf_counter()
        leads(index.vectors(), np.ones(rows, bool), vectors_RD[0], vectors_RD)
        print(f"  with like_chance: {time.perf_counter() - started:.1f} s more, for {references} reference captions")
    return target_line(f"seconds of a search among {rows:,} windows of recordings", median, 0.3, at_most=True)


def measure(
    model_folder: Path | None, recordings: Path | None, rows: int, files: int, folder: Path | None
) -> list[str]:
    """Return the rows of all three comparisons."""
    lines = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        work = Path(made)
        if model_folder is None:
            from bench.train import gpt2_tokenizer

            torch.manual_seed(0)
            model_folder = work / "model"
            save_model(msclap2023.build(gpt2_tokenizer()), model_folder)
        if recordings is None:
            recordings = work / "synthetic"
            write_recordings(recordings, RECORDINGS, RECORDING_S, 48_000, 2, "flac")
        lines.append(indexing(load(model_folder), recordings))
        torch.manual_seed(0)
        save_model(mini.build(mini.byte_tokenizer()), work / "small")
        lines += second_search(load(work / "small", device="cpu"), work / "files", files)
        shutil.rmtree(work / "files")
        lines.append(many_windows(rows, work / "index", references=200))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a saved model (default: a random one)")
    parser.add_argument("--recordings", type=Path, help="folder of recordings to index (default: synthetic)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="windows to search in (default: %(default)s)")
    parser.add_argument("--files", type=int, default=FILES, help="of the second search (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the model on a CPU (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = measure(args.model, args.recordings, args.rows, args.files, args.folder)
    print("\n| ratio or size | measured | target | met |\n|---|---:|---:|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
