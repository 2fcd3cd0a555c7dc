"""What evaluation costs beside the arithmetic it cannot do without: python -m bench.evaluation [--full]

Three comparisons, each side by side in one run:

1. Clotho's size, 5,225 texts x 1,045 clips: ranks, figures of all protocols and 1,000 bootstrap draws of each, on one
   core. Asked for: 2 s or less.
2. A million texts x 100,000 clips of width 1024, blockwise, against the bare products of the same tiles in the same
   precision, and the process's own memory (the texts are memory-mapped from a file). Asked for: 1.5 times or less, and
   below 4 GB. Without --full 40,000 x 4,000: every tile costs the same, so time grows with texts times clips.
3. Embedding a split of shards against the model's forward passes on the same windows and captions held in memory.
   Asked for: 1.1 times or less. Needs --model and --shards, as the stage embed does.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.evaluation.metrics import (
    PROTOCOLS,
    SCORES_PER_TILE,
    contributions,
    figures,
    intervals,
    rank_embeddings,
)

WIDTH, TEXTS, CLIPS = 1024, 1_000_000, 100_000
GB = 1e9


def seconds_of(
    task: Callable[[], object], repetitions: int = 1, clock: Callable[[], float] = time.process_time
) -> float:
    """The least time of a task: processor time, which other jobs of the machine disturb least, for one thread."""
    times = []
    for _ in range(repetitions):
        started = clock()
        task()
        times.append(clock() - started)
    return min(times)


def own_memory_gb() -> float:
    """Memory of this process without mapped files, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("RssAnon"))


def captions_like(audio: np.ndarray, owners: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Vectors that find their clip more often than not, so that ranks and ties are as in a real evaluation."""
    noise = generator.standard_normal((len(owners), audio.shape[1]), np.float32)
    return audio[owners] + np.float32(7) * noise


def clotho_size() -> None:
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(1045), 5)
    audio = generator.standard_normal((1045, WIDTH), np.float32)
    text = captions_like(audio, owners, generator)
    retrieval = rank_embeddings(text, audio, owners)
    ranks = seconds_of(lambda: rank_embeddings(text, audio, owners), 3)
    means = seconds_of(lambda: [figures(retrieval, protocol) for protocol in PROTOCOLS], 3)
    draws = seconds_of(lambda: [intervals(retrieval, protocol, samples=1000) for protocol in PROTOCOLS], 3)
    print(f"5,225 x 1,045 x {WIDTH}, all protocols, 1,000 draws each: {ranks + means + draws:.2f} s (asked for: 2 s)")
    print(f"  ranks {ranks:.3f} s, figures {means:.4f} s, draws {draws:.3f} s; best of 3")


def bare_products(text: np.ndarray, audio: np.ndarray) -> None:
    """The products of the tiles that `rank_embeddings` makes, in float64, and nothing else."""
    wide = audio.astype(np.float64)
    width = min(len(audio), int(np.sqrt(SCORES_PER_TILE)))
    rows = SCORES_PER_TILE // width
    for first in range(0, len(text), rows):
        block = text[first : first + rows].astype(np.float64)
        for start in range(0, len(audio), width):
            block @ wide[start : start + width].T


def blockwise(texts: int, clips: int, folder: Path | None) -> None:
    generator = np.random.default_rng(0)
    audio = generator.standard_normal((clips, WIDTH), np.float32)
    owners = np.sort(np.arange(texts) % clips)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = Path(directory) / "text.npy"
        written = np.lib.format.open_memmap(path, "w+", np.float32, (texts, WIDTH))
        for first in range(0, texts, 50_000):
            written[first : first + 50_000] = captions_like(audio, owners[first : first + 50_000], generator)
        written.flush()
        del written
        text = np.load(path, mmap_mode="r")
        before = own_memory_gb()
        samples = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                samples.append(own_memory_gb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        whole = seconds_of(lambda: contributions(rank_embeddings(text, audio, owners), "best-of-5"))
        done.set()
        watcher.join()
        bare = seconds_of(lambda: bare_products(text, audio))
    print(f"{texts:,} x {clips:,} x {WIDTH} blockwise: {whole:.1f} s, products {bare:.1f} s, ratio {whole / bare:.2f}")
    print(f"  own memory at most {max(samples):.2f} GB, of which {before:.2f} GB were there before (the clips, Python)")
    if (texts, clips) != (TEXTS, CLIPS):
        share = TEXTS * CLIPS / (texts * clips)
        print(
            f"  {TEXTS:,} x {CLIPS:,} has {share:,.0f} times the scores: {whole * share / 3600:.1f} h on this machine"
        )


def embedding(model_folder: Path, shards_folder: Path, threads: int) -> None:
    import torch

    from pipeline.devices import choose_device
    from pipeline.evaluation.embedding import BATCH_SIZE, captions_of, embed_audio, embed_texts
    from pipeline.evaluation.windows import window_starts
    from pipeline.models import load_model
    from pipeline.shards import open_shards

    torch.set_num_threads(threads)
    model = load_model(model_folder, device=str(choose_device(None)))
    device = model.logit_scale.device
    shards = open_shards(shards_folder)
    captions, _ = captions_of(shards)
    windows = [
        shards.read_window(key, start, model.window_frames)
        for key in shards.keys
        for start in window_starts(shards.frames(key), model.window_frames, "mean")
    ]
    batches = [
        torch.from_numpy(np.stack(windows[first : first + BATCH_SIZE])).to(device).float() / 32768
        for first in range(0, len(windows), BATCH_SIZE)
    ]
    texts = sorted(set(captions), key=len)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for batch in batches:
                model.encode_audio(batch)
            for first in range(0, len(texts), BATCH_SIZE):
                model.encode_text(texts[first : first + BATCH_SIZE])
        if device.type == "cuda":
            torch.cuda.synchronize()

    def whole() -> None:
        embed_audio(model, shards, "mean", BATCH_SIZE)
        embed_texts(model, captions, BATCH_SIZE)

    forward()
    pairs = [
        (seconds_of(whole, clock=time.perf_counter), seconds_of(forward, clock=time.perf_counter)) for _ in range(3)
    ]
    taken, bare = np.min(pairs, axis=0)
    print(
        f"{len(shards):,} clips, {len(windows):,} windows and {len(texts):,} captions on {device}: embedded in "
        f"{taken:.2f} s, forward passes {bare:.2f} s, ratio {taken / bare:.2f}; best of 3"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million texts x 100,000 clips: hours")
    parser.add_argument("--texts", type=int, default=40_000, help="without --full (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=4_000, help="without --full (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the texts (default: the temporary folder)")
    parser.add_argument("--model", type=Path, help="folder of a saved model, for the third comparison")
    parser.add_argument("--shards", type=Path, help="folder of a captioned split's shards, for the third comparison")
    parser.add_argument("--threads", type=int, default=1, help="of the model on a CPU (default: %(default)s)")
    args = parser.parse_args()
    clotho_size()
    if args.full:
        blockwise(TEXTS, CLIPS, args.folder)
    else:
        blockwise(args.texts, args.clips, args.folder)
    if args.model and args.shards:
        embedding(args.model, args.shards, args.threads)


if __name__ == "__main__":
    main()
