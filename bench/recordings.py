"""Time and memory of sharding one long recording as segments, in several formats: `make bench-data HOURS=24`.

The recording is 48 kHz stereo, one minute of noise and tones repeated. Each format is sharded by the stage, as one job,
and by a loop that only decodes, resamples and writes the same segments. Both are processes of one thread, which import
the same modules and take turns. A ratio is taken within each repetition, and its median is shown. No figure makes the
benchmark fail.

Shapes: S = samples, C = channels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr

from pipeline.data.audio import to_int16, wav_header
from pipeline.models.backbones import BACKBONES
from pipeline.stages import index_audio, shard_audio

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE_HZ, RATE_HZ = 48_000, BACKBONES["msclap-2023"].sample_rate_hz
SEGMENT_S = 10
PIECE_S = 60
FORMATS = {"WAV": "a.wav", "FLAC": "a.flac", "Ogg Vorbis": "a.ogg", "MP3": "a.mp3"}
CLIPS_PER_SHARD = 512
MOST_MB = 400
BYTES_PER_HOUR = 1.1e9
"""Of the largest format and the tars, with room."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and memory of a process."""

    wall_s: float
    processor_s: float
    peak_mb: float


# --- data ------------------------------------------------------------------------------------------------------------


def write_recording(path: Path, minutes: int) -> None:
    """Write a recording of so many minutes: MP3 and Ogg by repeating the packets of a minute, others by encoding it."""
    generator = np.random.default_rng(0)
    times_S = np.arange(PIECE_S * SOURCE_HZ) / SOURCE_HZ
    tone_S = 0.1 * np.sin(2 * np.pi * (300 + 20 * np.floor(times_S)) * times_S)
    minute_SC = (generator.normal(0, 0.05, (len(tone_S), 2)) + tone_S[:, None]).astype(np.float32)
    with_packets = path.suffix in (".mp3", ".ogg")
    first = path.with_stem("minute") if with_packets else path
    with soundfile.SoundFile(first, "w", SOURCE_HZ, 2) as file:
        for _ in range(1 if with_packets else minutes):
            for start in range(0, len(minute_SC), SOURCE_HZ):  # libVorbis encodes no minute at once
                file.write(minute_SC[start : start + SOURCE_HZ])
    if with_packets:
        repeat_packets(first, path, minutes)
        first.unlink()


def repeat_packets(source: Path, path: Path, times: int) -> None:
    """Write the packets of a file several times, one copy after another, as one stream."""
    with av.open(str(path), "w") as written:
        stream, shift = None, 0
        for _ in range(times):
            with av.open(str(source)) as opened:
                template = opened.streams.audio[0]
                stream = stream or written.add_stream_from_template(template)
                end = 0
                for packet in opened.demux(template):
                    if packet.dts is None:  # the last one, which is empty
                        continue
                    copy = av.Packet(bytes(packet))  # without side data, which would begin another stream
                    copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                    copy.duration, copy.time_base, copy.stream = packet.duration, packet.time_base, stream
                    end = max(end, copy.pts + copy.duration)
                    written.mux(copy)
                shift = end


# --- what is compared ------------------------------------------------------------------------------------------------


def shard_alone(recording: Path, tar_path: Path) -> None:
    """Decode, resample and write the segments of a recording, and nothing else."""
    weights_C = np.full(2, 0.5, np.float32)
    # The 32-bit size in the header of a WAV of over 4 GB is wrong, and libsndfile would end there.
    raw = {"format": "RAW", "subtype": "PCM_16", "samplerate": SOURCE_HZ, "channels": 2}
    with (
        soundfile.SoundFile(recording, **(raw if recording.suffix == ".wav" else {})) as file,
        tar_path.open("wb") as opened,
    ):
        with tarfile.open(fileobj=opened, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            buffer_SC = np.empty((SEGMENT_S * SOURCE_HZ, 2), np.float32)
            number = 0
            while len(block_SC := file.read(out=buffer_SC)):
                mono_S = soxr.resample(block_SC @ weights_C, SOURCE_HZ, RATE_HZ, "HQ")
                wav = wav_header(len(mono_S), RATE_HZ) + to_int16(mono_S).astype("<i2").tobytes()
                for name, data in ((f"{number}.wav", wav), (f"{number}.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                hashlib.sha256(wav).hexdigest()
                number += 1
        opened.flush()
        os.fsync(opened.fileno())
    with tar_path.open("rb") as opened:
        hashlib.file_digest(opened, "sha256").hexdigest()


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command of the repository; a failure ends the benchmark."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak_mb = 0.0
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        peak_mb = max(peak_mb, peak_of(process.pid))
        time.sleep(0.02)
    _, status, used = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"bench-data: {' '.join(command[:4])} ended with status {process.returncode}")
    return Cost(wall_s=time.perf_counter() - began, processor_s=used.ru_utime + used.ru_stime, peak_mb=peak_mb)


def peak_of(process: int) -> float:
    """Return the largest resident memory of a running process in MB; that of `wait4` counts its parent's, too."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM:")), 0.0)


def measure_format(folder: Path, minutes: int, repetitions: int) -> dict[str, Any]:
    """Return the costs of the stages and of the loop for the only recording below `folder/train`."""
    [recording] = (folder / "train").iterdir()
    catalog, plan, shards = folder / "catalog.parquet", folder / "plan.parquet", folder / "shards"
    python = [sys.executable, "-m"]
    index = [
        *(*python, index_audio.__name__, "--dataset=day", "--split=train", "--adapter=folder", f"--root={folder}"),
        *("--unlabeled", f"--segment-length-s={SEGMENT_S}", f"--clips-per-shard={CLIPS_PER_SHARD}"),
        *(f"--catalog={catalog}", f"--plan={plan}"),
    ]
    stage = [
        *(*python, shard_audio.__name__, f"--catalog={catalog}", f"--plan={plan}", f"--sample-rate-hz={RATE_HZ}"),
        *("--format=wav", f"--shards={shards}", f"--done={shards / 'done.json'}"),
    ]
    alone = [*python, "bench.recordings", f"--alone={recording}", f"--tar={folder / 'alone.tar'}"]
    costs: dict[str, list[Cost]] = {"index_audio": [cost_of(index)], "shard_audio": [], "alone": []}
    for _ in range(repetitions):
        shutil.rmtree(shards, ignore_errors=True)
        costs["shard_audio"].append(cost_of(stage))
        usable = sum(pq.read_metadata(path).num_rows for path in shards.glob("*.parquet"))
        expected = minutes * PIECE_S // SEGMENT_S
        if not expected <= usable <= 1.001 * expected + 1:  # a minute of an encoder's packets is up to 60 ms longer
            sys.exit(f"bench-data: {usable} segments of {minutes} minutes in {recording.name}")
        tar_bytes = sum(path.stat().st_size for path in shards.glob("*.tar"))
        shutil.rmtree(shards)
        costs["alone"].append(cost_of(alone))
        if (alone_bytes := (folder / "alone.tar").stat().st_size) < 0.99 * tar_bytes:
            sys.exit(f"bench-data: the loop wrote {alone_bytes} bytes of {recording.name}, the stage {tar_bytes}")
        (folder / "alone.tar").unlink()
    return {"bytes": recording.stat().st_size, "costs": costs}


def report(found: Mapping[str, Mapping[str, Any]], hours: float) -> Iterator[str]:
    """Yield the report as Markdown."""
    from bench.data import machine_line, target_line  # imports torch, which no measured process should

    yield f"{machine_line()}."
    yield f"One recording of {hours:g} h, 48 kHz stereo, as segments of {SEGMENT_S} s at {RATE_HZ} Hz:"
    yield ""
    yield "| format | GB | index_audio s | shard_audio s | alone s | processor s | alone | peak MB | alone |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, measured in found.items():
        costs = measured["costs"]
        stage, alone = (
            {value: statistics.median(getattr(cost, value) for cost in costs[task]) for value in Cost.__annotations__}
            for task in ("shard_audio", "alone")
        )
        seconds = [
            costs["index_audio"][0].wall_s,
            *(task[key] for key in Cost.__annotations__ for task in (stage, alone)),
        ]
        *times, stage_mb, alone_mb = seconds
        shown = " | ".join(f"{value:.1f}" for value in times)
        yield f"| {name} | {measured['bytes'] / 1e9:.2f} | {shown} | {stage_mb:.0f} | {alone_mb:.0f} |"
    yield ""
    yield "| figure | measured | target | met |"
    yield "|---|---:|---:|---|"
    for name, measured in found.items():
        pairs = list(zip(measured["costs"]["shard_audio"], measured["costs"]["alone"], strict=True))
        ratio = statistics.median(stage.processor_s / alone.processor_s for stage, alone in pairs)
        yield target_line(f"{name}: processor time over decode, resample and write alone", ratio, 1.15, at_most=True)
        peak_mb = max(stage.peak_mb for stage, _ in pairs)
        yield target_line(f"{name}: peak memory, MB", peak_mb, MOST_MB, at_most=True)


def main(argv: list[str]) -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.recordings", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="length of the recording (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=1, help="repetitions of every task (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)  # the loop, in its own process
    parser.add_argument("--tar", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.alone:
        shard_alone(args.alone, args.tar)
        return
    minutes = round(60 * args.hours)
    if minutes < 1:
        parser.error("--hours must be at least a minute, 0.017")
    if shutil.disk_usage(tempfile.gettempdir()).free < args.hours * BYTES_PER_HOUR:
        needed = args.hours * BYTES_PER_HOUR / 1e9
        parser.error(f"{tempfile.gettempdir()}: needs {needed:.1f} GB; set TMPDIR or --hours")
    found = {}
    for name in args.formats:
        with tempfile.TemporaryDirectory(prefix="bench-recordings-") as folder:
            (Path(folder) / "train").mkdir()
            write_recording(Path(folder) / "train" / FORMATS[name], minutes)
            found[name] = measure_format(Path(folder), minutes, args.repetitions)
    print("\n".join(report(found, args.hours)))


if __name__ == "__main__":
    main(sys.argv[1:])
