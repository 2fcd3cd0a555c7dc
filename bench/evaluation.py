"""Time and memory of evaluation, compared with the minimal arithmetic: python -m bench.evaluation [--full]

Five comparisons on one core, each within one run:

1. Clotho's size, 5,225 texts x 1,045 clips: ranks, figures of all protocols and 1,000 bootstrap draws of each. Target:
   2 s or less.
2. A million texts x 100,000 clips of width 1024, tile by tile, compared with float32 products of the same tiles
   (measured on a fifth of them); and the process's own memory, without the memory-mapped texts. Target: 1.5 times or
   less, and below 4 GB. Without --full, 200,000 x 20,000 and half of it are measured, and the large size is calculated:
   a query's first tiles, which fill its first ten places, are a larger share of fewer tiles. About every second caption
   finds its clip first; --noise makes the model better or worse.
3. Embedding a split of shards, compared with the model's forward passes on the same windows and captions in memory.
   Target: 1.1 times or less. The model is ms-clap 2023 at full size with random weights on made-up clips of 10 s, or
   --model and --shards, as for the stage embed.
4. Search among a million embeddings; see bench/search.py. Target: well under a second.
5. Indexing and searching folders of recordings; see bench/folder_search.py.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import folder_search, search
from bench.data import target_line
from pipeline.evaluation.metrics import PROTOCOLS, contributions, figures, intervals
from pipeline.evaluation.ranking import SCORES_PER_TILE, rank_embeddings

WIDTH, TEXTS, CLIPS = 1024, 1_000_000, 100_000
TIMED_TEXTS = 200_000
NOISE = 7.0
MADE_UP_CLIPS = 32
"""Two windows each: a batch of the stage embed."""
GB = 1e9


def seconds_of(
    task: Callable[[], object], repetitions: int = 1, clock: Callable[[], float] = time.process_time
) -> float:
    """Return the shortest time of a task; by default processor time, which other jobs disturb least."""
    times = []
    for _ in range(repetitions):
        started = clock()
        task()
        times.append(clock() - started)
    return min(times)


def own_memory_gb() -> float:
    """Return the current memory of this process without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("RssAnon"))


def captions_like(
    audio: np.ndarray, owners: np.ndarray, generator: np.random.Generator, noise: float = NOISE
) -> np.ndarray:
    """Return vectors that find their clip in about half of the cases, or fewer with more noise."""
    return audio[owners] + np.float32(noise) * generator.standard_normal((len(owners), audio.shape[1]), np.float32)


def clotho_size() -> str:
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(1045), 5)
    audio = generator.standard_normal((1045, WIDTH), np.float32)
    text = captions_like(audio, owners, generator)
    retrieval = rank_embeddings(text, audio, owners)
    ranks = seconds_of(lambda: rank_embeddings(text, audio, owners), 3)
    means = seconds_of(lambda: [figures(retrieval, protocol) for protocol in PROTOCOLS], 3)
    draws = seconds_of(lambda: [intervals(retrieval, protocol) for protocol in PROTOCOLS], 3)
    print(f"5,225 x 1,045 x {WIDTH}: ranks {ranks:.3f} s, figures {means:.4f} s, draws {draws:.3f} s; best of 3")
    what = "seconds for 5,225 x 1,045, all protocols, 1,000 draws each"
    return target_line(what, ranks + means + draws, 2, at_most=True)


def seconds_of_products(text: np.ndarray, audio: np.ndarray) -> float:
    """Return the time of only the float32 products of the tiles of `rank_embeddings`.

    Of more than `TIMED_TEXTS` texts a sample of that size, spread over the file, is timed and scaled up.
    """
    width = min(len(audio), int(np.sqrt(SCORES_PER_TILE)))
    rows = SCORES_PER_TILE // width
    firsts = range(0, len(text), rows * -(-len(text) // TIMED_TEXTS))

    def products() -> None:
        for first in firsts:
            block = np.array(text[first : first + rows])
            for start in range(0, len(audio), width):
                block @ audio[start : start + width].T

    taken = sum(len(text[first : first + rows]) for first in firsts)
    return seconds_of(products) * len(text) / taken


def blockwise(texts: int, clips: int, noise: float, folder: Path | None) -> tuple[float, float, float]:
    generator = np.random.default_rng(0)
    audio = generator.standard_normal((clips, WIDTH), np.float32)
    owners = np.sort(np.arange(texts) % clips)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = Path(directory) / "text.npy"
        written = np.lib.format.open_memmap(path, "w+", np.float32, (texts, WIDTH))
        for first in range(0, texts, 50_000):
            written[first : first + 50_000] = captions_like(audio, owners[first : first + 50_000], generator, noise)
        written.flush()
        del written
        text = np.load(path, mmap_mode="r")
        before = own_memory_gb()
        samples = [before]
        done = threading.Event()

        def sample_memory() -> None:
            while not done.wait(0.05):
                samples.append(own_memory_gb())

        sampler = threading.Thread(target=sample_memory)
        sampler.start()
        whole = seconds_of(lambda: contributions(rank_embeddings(text, audio, owners), "best-of-5"))
        done.set()
        sampler.join()
        bare = seconds_of_products(text, audio)
    print(f"{texts:,} x {clips:,} x {WIDTH} blockwise: {whole:.1f} s, products {bare:.1f} s, ratio {whole / bare:.2f}")
    print(f"  own memory at most {max(samples):.2f} GB, of which {before:.2f} GB before ranking (the clips, Python)")
    return whole, bare, max(samples)


def projected(texts: int, clips: int, noise: float, folder: Path | None) -> list[str]:
    """Return the targets at this size, and at full size, calculated from two sizes.

    Time grows with the scores, and with the queries, whose first tiles fill their first ten places.
    """
    halves, wholes = (blockwise(texts // part, clips // part, noise, folder) for part in (2, 1))
    counts = [[texts * clips / part**2, (texts + clips) / part] for part in (2, 1)]
    a_score, a_query = np.linalg.solve(counts, [halves[0], wholes[0]])
    seconds = a_score * TEXTS * CLIPS + a_query * (TEXTS + CLIPS)
    bare = wholes[1] * TEXTS * CLIPS / (texts * clips)
    print(f"  {1e9 * a_score:.1f} ns a score and {1e6 * a_query:.0f} us a query; {TEXTS:,} x {CLIPS:,} would take")
    print(f"  {seconds / 3600:.2f} h, its bare products {bare / 3600:.2f} h: calculated, not measured")
    return [
        target_line(
            f"{texts:,} x {clips:,} blockwise: time over the bare products'", wholes[0] / wholes[1], 1.5, at_most=True
        ),
        target_line(
            f"{TEXTS:,} x {CLIPS:,}, calculated: time over the bare products'", seconds / bare, 1.5, at_most=True
        ),
        target_line(f"{texts:,} x {clips:,} blockwise: own memory, GB", wholes[2], 4, at_most=True),
    ]


def measured(noise: float, folder: Path | None) -> list[str]:
    """Return the targets measured at full size."""
    whole, bare, memory = blockwise(TEXTS, CLIPS, noise, folder)
    size = f"{TEXTS:,} x {CLIPS:,} blockwise"
    return [
        target_line(f"{size}: time over the bare products'", whole / bare, 1.5, at_most=True),
        target_line(f"{size}: own memory, GB", memory, 4, at_most=True),
    ]


def made_up(folder: Path) -> tuple[Path, Path]:
    """Make ms-clap 2023 with random weights and shards of captioned 10 s clips; return their folders."""
    import torch

    from bench.train import gpt2_tokenizer, write_study
    from pipeline.models import msclap2023, save_model

    tokenizer = gpt2_tokenizer()
    torch.manual_seed(0)
    save_model(msclap2023.build(tokenizer), folder / "model")
    write_study(folder, tokenizer, clips=MADE_UP_CLIPS, batch_size=MADE_UP_CLIPS, epochs=1)
    return folder / "model", folder / "shards" / "labeled" / "train"


def embedding(model_folder: Path, shards_folder: Path, threads: int) -> str:
    import torch

    from pipeline.data.shards.reader import open_shards
    from pipeline.evaluation.embedding import captions_of, embed_audio, embed_texts
    from pipeline.evaluation.windows import BATCH_SIZE, window_starts
    from pipeline.models import load_model
    from pipeline.models.devices import choose_device

    torch.set_num_threads(threads)
    model = load_model(model_folder, device=str(choose_device(None)))
    device = model.logit_scale.device
    shards = open_shards(shards_folder)
    captions, _ = captions_of(shards)
    windows = [
        shards.read_window(key, start, model.window_frames, model.short_clips)
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
        f"{taken:.2f} s, forward passes {bare:.2f} s; best of 3"
    )
    return target_line("embedding a split: time over the forward passes'", taken / bare, 1.1, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million texts x 100,000 clips: an hour")
    parser.add_argument("--texts", type=int, default=200_000, help="without --full (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=20_000, help="without --full (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=NOISE, help="in the captions' vectors (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the texts (default: the temporary folder)")
    parser.add_argument("--model", type=Path, help="folder of a saved model (default: a random one)")
    parser.add_argument("--shards", type=Path, help="folder of a captioned split's shards (default: made up)")
    parser.add_argument("--threads", type=int, default=1, help="of the model on a CPU (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="to search in (default: %(default)s)")
    args = parser.parse_args()
    if (args.model is None) != (args.shards is None):
        parser.error("--model and --shards go together")
    logging.disable(logging.INFO)  # of the stages
    lines = [clotho_size()]
    if args.full:
        lines += measured(args.noise, args.folder)
    else:
        lines += projected(args.texts, args.clips, args.noise, args.folder)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model, shards = (args.model, args.shards) if args.model else made_up(Path(folder))
        lines.append(embedding(model, shards, args.threads))
    seconds = search.measure(args.rows, 10, args.folder)
    lines.append(target_line(f"seconds of a search among {args.rows:,} x {WIDTH}", seconds, 1, at_most=True))
    lines += folder_search.measure(args.model, None, args.rows, folder_search.FILES, args.folder)
    print("\n| ratio or size | measured | target | met |\n|---|---:|---:|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
