"""Speed and memory of the data stages, each compared with a baseline in the same run: `make bench-data`.

Sharding is compared with its own parts and with a plain librosa loop, training's reader with plain webdataset, and a
loader worker's memory over shards and epochs. All tasks of a comparison take turns, so that a busy machine slows them
equally. A ratio is taken within each repetition, and its median is shown. No figure makes the benchmark fail.

The data (seeded noise and tones) are made in a temporary folder by the project's own workflow and stages. They are read
once before anything is timed, so files come from the page cache, not from a disk.

Shapes: S = samples, C = channels.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch read it

import argparse
import hashlib
import io
import json
import logging
import multiprocessing
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import psutil
import pyarrow.parquet as pq
import soundfile
import soxr
import torch
import webdataset
import yaml
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from pipeline.data.audio import to_int16, wav_header
from pipeline.data.leaks import leaked_path
from pipeline.data.shards.partition import read_assignment, write_plan
from pipeline.data.shards.streaming import stream_clips
from pipeline.models.backbones import BACKBONES
from pipeline.stages import pair_clips, shard_audio
from pipeline.training.batches import PairedBatches

REPOSITORY = Path(__file__).resolve().parents[1]
BACKBONE = "msclap-2023"
RATE_HZ, WINDOW_FRAMES = BACKBONES[BACKBONE].sample_rate_hz, BACKBONES[BACKBONE].window_frames
WINDOW_BYTES = 2 * WINDOW_FRAMES
SOURCE_HZ = 48_000
CLIPS_PER_SHARD = 4  # few, to have many shards
PAPER_CLIPS_PER_SHARD = 1_000  # experiments/paper.yaml
FEW_CLIPS = 16
BATCH_SIZE = 64
EPOCHS = 24
MEMORY_EPOCHS = (1, 10, 40)
HOURS = (10_000, 1_000_000)

Times = dict[str, list[float]]
"""Seconds of every repetition of a task, by the task's name."""


# --- data ------------------------------------------------------------------------------------------------------------


def write_raw(root: Path, clips: int, *, captioned: bool, seed: int) -> None:
    """Write stereo WAV files of 8 to 12 s at 48 kHz in the `folder` layout: pink noise and a tone, with YouTube ids."""
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft(generator.standard_normal((2, 20 * SOURCE_HZ)))
    noise_SC = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(spectrum.shape[1]), 100))).T
    noise_SC *= 0.1 / noise_SC.std()
    (root / "train").mkdir(parents=True)
    lines = ["file_name,caption_1"]
    letters = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    for clip in range(clips):
        frames = int(generator.uniform(8, 12) * SOURCE_HZ)
        start = int(generator.integers(len(noise_SC) - frames))
        tone_S = np.sin(np.arange(frames) * generator.uniform(0.01, 0.5)) * generator.uniform(0, 0.2)
        name = f"{''.join(generator.choice(letters, 11))}_{10 * clip}.wav"
        samples_SC = noise_SC[start : start + frames] * generator.uniform(0.3, 1) + tone_S[:, None]
        soundfile.write(root / "train" / name, samples_SC, SOURCE_HZ, subtype="PCM_16")
        lines.append(f"{name},a tone of number {clip} hums while something rustles")
    if captioned:
        (root / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_study(folder: Path, clips: int) -> None:
    """Make catalogs and shards of `few_*` and `many_*` below `folder/results` with the workflow."""
    names = {"few_labeled": FEW_CLIPS // 2, "few_unlabeled": FEW_CLIPS // 2}
    names |= {"many_labeled": clips // 2, "many_unlabeled": clips // 2}
    for seed, (name, count) in enumerate(names.items()):
        write_raw(folder / "raw" / name, count, captioned="unlabeled" not in name, seed=seed)
    for name in ("Snakefile", "workflow", "pipeline", "profiles"):
        (folder / name).symlink_to(REPOSITORY / name)
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    config |= {
        "backbone": {"name": BACKBONE, "weights": None, "tokenizer": None},
        "datasets": {
            name: {
                "adapter": "folder",
                "root": str(folder / "raw" / name),
                "captions": "unlabeled" not in name,
                "splits": {"train": "train", "test": "test"},  # the configuration needs a test split; no job makes it
            }
            for name in names
        },
        "runs": {"vanilla": {"objective": "vanilla"}},
        "tables": {"table1": [{"target": "many_labeled", "method": "vanilla", "run": "vanilla"}]},
    }
    config["shards"]["clips_per_shard"] = CLIPS_PER_SHARD
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    targets = [f"results/shards/{name}/train/manifest.json" for name in names]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--cores", "all", *targets]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench-data: the workflow could not make the shards:\n{done.stderr[-4000:]}")


def make_pairs(folder: Path, size: str, *, batch_size: int, epochs: int) -> Path:
    """Make a pairs file of `few` or `many`, every labeled clip with an unlabeled partner."""
    pairs = folder / "pairs" / f"{size}_{batch_size}.parquet"
    shards = folder / "results" / "shards"
    pair_clips.main(
        [
            *("--labeled", str(shards / f"{size}_labeled" / "train" / "manifest.parquet")),
            *("--unlabeled", str(shards / f"{size}_unlabeled" / "train" / "manifest.parquet")),
            *("--backbone", BACKBONE, "--epochs", str(epochs), "--batch-size", str(batch_size)),
            *("--seed", "0", "--pairs", str(pairs), "--leaked", str(leaked_path(pairs))),
        ]
    )
    return pairs


# --- timing ----------------------------------------------------------------------------------------------------------


def take_turns(tasks: Mapping[str, Callable[[], object]], repetitions: int) -> Times:
    """Return the times of all tasks, run in turn after one warm-up each."""
    for task in tasks.values():
        task()
    times: Times = {name: [] for name in tasks}
    for _ in range(repetitions):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - began)
    return times


def total(times: Times, *names: str) -> list[float]:
    """Return the sum of several tasks' times in each repetition."""
    return [sum(parts) for parts in zip(*(times[name] for name in names), strict=True)]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios within the repetitions."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


# --- 1: sharding -----------------------------------------------------------------------------------------------------


def sharding_tasks(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the stage on all clips of `many_unlabeled` as one shard, its parts, and a plain loop over its files."""
    # The stage.
    catalog = folder / "results" / "catalogs" / "many_unlabeled" / "train.parquet"
    rows = pq.read_table(catalog).to_pylist()
    files = [row["path"] for row in rows]
    out = folder / "sharding"
    out.mkdir()
    plan = out / "plan.parquet"
    write_plan(read_assignment(catalog, 10**6), plan)

    def arguments(audio_format: str) -> list[str]:
        """Return the stage's arguments, after removing its shard, which it would keep."""
        shutil.rmtree(out / audio_format, ignore_errors=True)
        return [
            *("--catalog", str(catalog), "--plan", str(plan)),
            *("--sample-rate-hz", str(RATE_HZ), "--format", audio_format),
            *("--shards", str(out / audio_format), "--done", str(out / audio_format / "done.json")),
        ]

    module = [sys.executable, "-m", "pipeline.stages.shard_audio"]
    # Its parts, each on the result of the one before.
    decoded_SC = [soundfile.read(file, dtype="float32")[0] for file in files]
    weights_C = np.full(2, 0.5, np.float32)
    mono_S = [samples_SC @ weights_C for samples_SC in decoded_SC]
    resampled_S = [soxr.resample(samples_S, SOURCE_HZ, RATE_HZ, "HQ") for samples_S in mono_S]
    wavs = [
        wav_header(len(samples_S), RATE_HZ) + to_int16(samples_S).astype("<i2").tobytes() for samples_S in resampled_S
    ]

    def write_tar() -> None:
        with (out / "parts.tar").open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for row, wav in zip(rows, wavs, strict=True):
                    for name, data in ((f"{row['key']}.wav", wav), (f"{row['key']}.json", b"{}")):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    hashlib.sha256(wav).hexdigest()
            file.flush()
            os.fsync(file.fileno())
        with (out / "parts.tar").open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()

    # The same work with librosa and webdataset.
    def plain_loop() -> None:
        with webdataset.ShardWriter(str(out / "plain-%05d.tar"), maxcount=10**6, verbose=0) as writer:
            for row, file in zip(rows, files, strict=True):
                samples_S, _ = librosa.load(file, sr=RATE_HZ, mono=True)
                buffer = io.BytesIO()
                soundfile.write(buffer, samples_S, RATE_HZ, format="WAV", subtype="PCM_16")
                writer.write({"__key__": row["key"], "wav": buffer.getvalue(), "json": {"frames": len(samples_S)}})

    def for_each(function: Callable[[Any], object], values: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            for value in values:
                function(value)

        return run

    return {
        "stage": lambda: shard_audio.main(arguments("wav")),
        "stage, FLAC": lambda: shard_audio.main(arguments("flac")),
        "stage in its own process": lambda: run_quietly([*module, *arguments("wav")]),
        # pyarrow imports pandas with its first array.
        "start of a process": lambda: run_quietly(
            [sys.executable, "-c", "import pipeline.stages.shard_audio, pyarrow; pyarrow.array([''])"]
        ),
        "part: decode (soundfile)": for_each(lambda file: soundfile.read(file, dtype="float32"), files),
        "part: mean of channels": for_each(lambda samples_SC: samples_SC @ weights_C, decoded_SC),
        "part: resample (soxr HQ)": for_each(lambda samples: soxr.resample(samples, SOURCE_HZ, RATE_HZ, "HQ"), mono_S),
        "part: to 16 bits": for_each(to_int16, resampled_S),
        "part: tar, SHA-256, sync": write_tar,
        "librosa.load + ShardWriter": plain_loop,
    }


def run_quietly(command: Sequence[str]) -> None:
    """Run a command in the repository; a failure ends the benchmark."""
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)


# --- 2: training samples ---------------------------------------------------------------------------------------------


def reading_tasks(folder: Path, pairs: Path) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Return tasks that each read training samples (two windows of 7 s), and the number of samples per task."""
    batches = PairedBatches(pairs, folder / "results" / "shards")
    flac_tar = folder / "sharding" / "flac" / "00000.tar"
    wav_split = folder / "results" / "shards" / "many_unlabeled" / "train"
    clips = pq.read_metadata(flac_tar.with_suffix(".parquet")).num_rows

    def read_paired(workers: int) -> None:
        loader = DataLoader(batches, batch_size=None, sampler=range(len(batches)), num_workers=workers)
        for batch in loader:
            assert batch.partner_BS is not None

    def read_streamed(clips: webdataset.WebDataset) -> None:
        for _ in DataLoader(clips.map(cut), batch_size=None, num_workers=0):
            pass

    tars = sorted((folder / "results" / "shards").glob("many_*/train/*.tar"))
    generator = np.random.default_rng(0)
    places = [(tar, int(generator.integers(tar.stat().st_size - WINDOW_BYTES))) for tar in tars for _ in range(2)]

    def read_bare() -> None:
        """Read as many windows at random offsets into as much memory, which is reused as in a training."""
        descriptors = {tar: os.open(tar, os.O_RDONLY) for tar in tars}
        batch = memoryview(bytearray(4 * BATCH_SIZE * WINDOW_BYTES))  # two batches of two windows per sample
        for window in range(2 * len(batches) * BATCH_SIZE):
            tar, offset = places[window % len(places)]
            first = window % (4 * BATCH_SIZE) * WINDOW_BYTES
            os.preadv(descriptors[tar], [batch[first : first + WINDOW_BYTES]], offset)
        for descriptor in descriptors.values():
            os.close(descriptor)

    samples = len(batches) * BATCH_SIZE
    tasks: dict[str, Callable[[], object]] = {
        "PairedBatches, WAV shards": lambda: read_paired(0),
        "PairedBatches through a loader worker": lambda: read_paired(1),
        "bare preadv of as many windows": read_bare,
        "webdataset, FLAC shards": lambda: read_streamed(
            webdataset.WebDataset(str(flac_tar), shardshuffle=False, empty_check=False).map(decode_flac)
        ),
        "webdataset, WAV shards": lambda: read_streamed(stream_clips(wav_split)),
    }
    return tasks, dict(zip(tasks, (samples, samples, samples, clips // 2, clips // 2), strict=True))


def decode_flac(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the samples of a FLAC clip from webdataset."""
    return {"samples": soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")[0]}


def cut(clip: Mapping[str, Any]) -> NDArray[np.int16]:
    """Return a random window of a clip."""
    start = random.randrange(len(clip["samples"]) - WINDOW_FRAMES)
    return clip["samples"][start : start + WINDOW_FRAMES].copy()


# --- 3: memory of a loader worker ------------------------------------------------------------------------------------


def loader_memory(pairs: Path, shards: Path) -> dict[int, tuple[float, float]]:
    """Return the resident and unique (USS) megabytes of a loader worker after each of `MEMORY_EPOCHS`, by epoch.

    Measured while the worker waits for the next request; while it reads, it also holds a part of the next batch.
    """
    batches = PairedBatches(pairs, shards)
    fork = multiprocessing.get_context("fork")  # as training does
    worker = fork.Value("i", 0)

    def record_pid(_: int) -> None:
        worker.value = os.getpid()

    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(len(batches)),
        num_workers=1,
        worker_init_fn=record_pid,
        multiprocessing_context=fork,
    )
    steps, found = batches.facts["steps_per_epoch"], {}
    for step, _ in enumerate(loader, start=1):
        epoch, is_within = divmod(step, steps)
        if not is_within and epoch in MEMORY_EPOCHS:
            process = psutil.Process(worker.value)
            wait_until_idle(process)
            memory = process.memory_full_info()
            found[epoch] = (memory.rss / 1e6, memory.uss / 1e6)
    return found


def wait_until_idle(process: psutil.Process) -> None:
    """Return once a process has used no processor time for half a second."""
    used = None
    while (now := sum(process.cpu_times()[:2])) != used:
        used = now
        time.sleep(0.5)


def measure_memory(folder: Path) -> dict[str, Any]:
    """Return `loader_memory` of `few` and `many`, each in its own process, and their numbers of shards."""
    measured: dict[str, Any] = {}
    shards = folder / "results" / "shards"
    for size in ("few", "many"):
        # More epochs than measured, because the worker prefetches and must still be alive.
        pairs = make_pairs(folder, size, batch_size=FEW_CLIPS // 2, epochs=MEMORY_EPOCHS[-1] + 4)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            epochs = pool.submit(loader_memory, pairs, shards).result()
        splits = [shards / f"{size}_{kind}" / "train" / "manifest.json" for kind in ("labeled", "unlabeled")]
        tars = sum(len(json.loads(path.read_text(encoding="utf-8"))["shards"]) for path in splits)
        measured[size] = {"shards": tars, "epochs": epochs}
    return measured


# --- 4: cost of many hours of audio ----------------------------------------------------------------------------------


def bytes_per_row(path: Path) -> float:
    """Return the compressed bytes per row of a Parquet file without its footer, which does not grow with the rows."""
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return sum(group.column(c).total_compressed_size for group in groups for c in range(metadata.num_columns)) / (
        metadata.num_rows
    )


def hours_lines(inputs: Mapping[str, float]) -> Iterator[str]:
    """Yield the table of `HOURS` of unlabeled audio, calculated from measured figures."""
    yield (
        f"Calculated from {inputs['clips_per_s']:.0f} clips per second and core ({inputs['flac_clips_per_s']:.0f} as "
        f"FLAC), clips of {inputs['clip_s']:.2f} s, {inputs['wav_bytes']:,.0f} bytes per clip in WAV tars and "
        f"{inputs['flac_bytes']:,.0f} in FLAC tars, {inputs['manifest_bytes']:.0f} bytes per row of the manifest and "
        f"{inputs['pairs_bytes']:.0f} per row of pairs, {inputs['start_s']:.2f} s to start a job, and "
        f"{PAPER_CLIPS_PER_SHARD:,} clips per shard:"
    )
    yield ""
    yield (
        "| hours | clips | WAV shards | FLAC shards | core-hours to WAV | to FLAC | shard jobs | files | manifest | "
        "pairs, every clip once |"
    )
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for hours in HOURS:
        clips = round(hours * 3600 / inputs["clip_s"])
        jobs = -(-clips // PAPER_CLIPS_PER_SHARD)
        start = jobs * inputs["start_s"]
        yield (
            f"| {hours:,} | {clips:,} | {tera(clips * inputs['wav_bytes'])} | {tera(clips * inputs['flac_bytes'])} | "
            f"{(clips / inputs['clips_per_s'] + start) / 3600:,.1f} | "
            f"{(clips / inputs['flac_clips_per_s'] + start) / 3600:,.1f} | "
            f"{jobs:,} | {2 * jobs + 2:,} | {tera(clips * inputs['manifest_bytes'])} | "
            f"{tera(clips * inputs['pairs_bytes'])} |"
        )


def tera(size: float) -> str:
    """Return bytes in GB or TB with three digits."""
    return f"{size / 1e12:,.3g} TB" if size >= 1e12 else f"{size / 1e9:.3g} GB"


# --- report ----------------------------------------------------------------------------------------------------------


def time_lines(times: Times, clips: Mapping[str, int], unit: str) -> Iterator[str]:
    """Yield a table of tasks: best and median milliseconds per unit, and units per second."""
    yield f"| task | ms per {unit}: best | median | {unit}s per second |"
    yield "|---|---:|---:|---:|"
    for name, seconds in times.items():
        best, median = min(seconds) / clips[name], statistics.median(seconds) / clips[name]
        yield f"| {name} | {1000 * best:.3f} | {1000 * median:.3f} | {1 / median:,.0f} |"


def target_line(what: str, found: float, target: float, *, at_most: bool = False) -> str:
    """Return a row of the table of targets."""
    is_met = found <= target if at_most else found >= target
    bound = "at most" if at_most else "at least"
    shown, aim = (f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in (found, target))
    return f"| {what} | {shown} | {bound} {aim} | {'yes' if is_met else '**no**'} |"


def machine_line() -> str:
    """Return processor and versions."""
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (soundfile, soxr, torch))
    return (
        f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}, webdataset, one core per task"
    )


def measure(folder: Path, clips: int, repetitions: int) -> dict[str, Any]:
    """Return all measurements of the report."""
    make_study(folder, clips)
    pairs = make_pairs(folder, "many", batch_size=min(BATCH_SIZE, clips // 2), epochs=EPOCHS)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core from here on, for child processes too
    torch.set_num_threads(1)
    sharding = take_turns(sharding_tasks(folder), repetitions)
    tasks, samples = reading_tasks(folder, pairs)
    reading = take_turns(tasks, repetitions)
    rows = pq.read_table(folder / "sharding" / "wav" / "00000.parquet", columns=["frames"])
    sharded = len(rows)
    bodies = {kind: (folder / "sharding" / kind / "00000.tar").stat().st_size / sharded for kind in ("wav", "flac")}
    inputs = {
        "clips_per_s": sharded / statistics.median(sharding["stage"]),
        "flac_clips_per_s": sharded / statistics.median(sharding["stage, FLAC"]),
        "start_s": statistics.median(sharding["start of a process"]),
        "clip_s": sum(rows["frames"].to_pylist()) / sharded / RATE_HZ,
        "wav_bytes": bodies["wav"],
        "flac_bytes": bodies["flac"],
        "manifest_bytes": bytes_per_row(folder / "results/shards/many_unlabeled/train/manifest.parquet"),
        "pairs_bytes": bytes_per_row(pairs),
    }
    return {
        "machine": machine_line(),
        "repetitions": repetitions,
        "sharding": {"clips": sharded, "seconds": sharding},
        "reading": {"samples": samples, "seconds": reading},
        "memory": measure_memory(folder),
        "inputs": inputs,
    }


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as Markdown."""
    sharding, reading, memory = found["sharding"]["seconds"], found["reading"]["seconds"], found["memory"]
    parts = total(sharding, *(name for name in sharding if name.startswith("part: ")))
    with_start = total({"parts": parts, **sharding}, "parts", "start of a process")
    ours, theirs = "PairedBatches, WAV shards", "webdataset, FLAC shards"
    samples = found["reading"]["samples"]
    yield f"{found['machine']}; {found['repetitions']} repetitions in turn, files in the page cache."
    yield ""
    yield "| ratio or rate | measured | target | met |"
    yield "|---|---:|---:|---|"
    yield target_line("sharding: time over its parts'", ratio(sharding["stage"], parts), 1.15, at_most=True)
    own = ratio(sharding["stage in its own process"], with_start)
    yield target_line("sharding in its own process: time over its parts' and the start's", own, 1.15, at_most=True)
    speed = ratio(sharding["librosa.load + ShardWriter"], sharding["stage"])
    yield target_line("sharding: times as fast as librosa.load + ShardWriter", speed, 1.5)
    rate = samples[ours] / statistics.median(reading[ours])
    yield target_line("training samples (two windows of 7 s) per second", rate, 3000)
    speed = ratio(reading[ours], reading["bare preadv of as many windows"])
    yield f"| training samples: time over bare preadv of as many windows | {speed:.2f} | | |"
    speed = ratio(reading[theirs], reading[ours]) * samples[ours] / samples[theirs]
    yield target_line("training samples: times as many as webdataset on FLAC shards", speed, 8)
    yield ""
    yield f"Sharding {found['sharding']['clips']} stereo clips at 48 kHz to mono at 44.1 kHz:"
    yield ""
    yield from time_lines(sharding, dict.fromkeys(sharding, found["sharding"]["clips"]), "clip")
    yield ""
    yield "Reading training samples; webdataset cuts one window from each of two clips:"
    yield ""
    yield from time_lines(reading, samples, "sample")
    yield ""
    yield "Memory of a loader worker between requests, MB:"
    yield ""
    after = " | ".join(f"{kind} after epoch {epoch}" for kind in ("resident", "unique") for epoch in MEMORY_EPOCHS)
    yield f"| shards | {after} |"
    yield f"|---:|{'---:|' * (2 * len(MEMORY_EPOCHS))}"
    for size in memory.values():
        figures = [size["epochs"][epoch][kind] for kind in (0, 1) for epoch in MEMORY_EPOCHS]
        yield f"| {size['shards']} | {' | '.join(f'{figure:.1f}' for figure in figures)} |"
    yield ""
    yield "## Cost of N hours of audio"
    yield ""
    yield from hours_lines(found["inputs"])


def main(argv: list[str]) -> None:
    """Measure, print the report and, with --json, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=256, help="clips of about 10 s (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="repetitions of every task (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the figures")
    args = parser.parse_args(argv)
    if args.clips < FEW_CLIPS:
        parser.error(f"--clips must be at least {FEW_CLIPS}, not {args.clips}")
    logging.disable(logging.INFO)  # of the stages
    if shutil.disk_usage(tempfile.gettempdir()).free < args.clips * 8e6:
        parser.error(f"{tempfile.gettempdir()}: needs {args.clips * 8e6 / 1e9:.1f} GB; set TMPDIR or --clips")
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        found = measure(Path(folder), args.clips, args.repetitions)
    print("\n".join(report(found)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
