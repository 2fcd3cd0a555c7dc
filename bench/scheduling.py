"""Overhead of SLURM: a tiny study run directly on this machine, and on a SLURM cluster simulated on it.

`python -m bench.scheduling` (root, Debian) starts the test bed of tests/slurm and runs the same study twice. It divides
the time of both runs into commands of the stages, jobs that start or end around them, jobs that wait in the queue, and
Snakemake alone, which plans, submits and polls.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pandas as pd
import yaml

from bench.planning import ROOT, seconds_of

TESTBED = ROOT / "tests" / "slurm" / "testbed.sh"
SHIPPED = ["Snakefile", "config.yaml", "workflow", "pipeline", "profiles", "data"]
RUN = "clotho_composed_audioset"
TINY = {
    "study": {"name": "tiny", "note": "Too small for meaningful figures."},
    "soundscapes": {"scale": 0.08},
    "datasets": {
        "clotho": {
            "adapter": "clotho", "root": "results/raw/clotho", "captions": True,
            "splits": {"train": "development", "validation": "validation", "test": "evaluation"},
        },
        "general": {
            "adapter": "folder", "root": "results/raw/general", "captions": True, "splits": {"train": "train"},
        },
        "audioset": {
            "adapter": "audioset", "root": "results/raw/audioset", "captions": False,
            "splits": {"train": "balanced_train"},
        },
    },
    "shards": {"clips_per_shard": 24},
    "pretrain": {"epochs": 1, "batch_size": 8},
    "training": {"epochs": 60, "batch_size": 8},
    "runs": {RUN: {"objective": "composed", "labeled": ["clotho"], "unlabeled": ["audioset"]}},
    "tables": {
        "table1": [
            {"target": "clotho", "method": "vanilla", "run": "vanilla"},
            {"target": "clotho", "method": "composed", "run": RUN},
        ]
    },
}  # fmt: skip
Span = tuple[float, float]


JOBS = 2
"""Shard jobs per split."""


def make_project(folder: Path, nodes: int) -> None:
    """Copy the project, add a tiny study, tiny.yaml, and adapt the SLURM profile to the test bed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path = folder / "profiles" / "slurm" / "config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["default-resources"] |= {"slurm_account": "lab", "mem_mb": 500}
    on_cpus = {"gpu": 0, "loader_workers": 0, "cpus_per_task": 1, "mem_mb": 1500, "runtime": 20}
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"} if nodes > 1 else {}
    profile["set-resources"]["train"] |= on_cpus | several
    profile["set-resources"]["embed"] |= {"gpu": 0, "mem_mb": 1500}
    for stage in ("train", "embed"):
        del profile["set-resources"][stage]["gpu_model"]
    profile["set-resources"]["pretrain"]["mem_mb"] = 1500
    profile["set-resources"]["shard_audio"] |= {"mem_mb": 300, "runtime": 10}
    profile["config"] = [f"shards={{jobs: {JOBS}}}"]
    # Most jobs take 8 to 12 s here. The plugin looks after 2 and after 14 s.
    profile |= {"cores": 2, "latency-wait": 10, "slurm-init-seconds-before-status-checks": 2}
    path.write_text(yaml.safe_dump(profile))


def commands_of(project: Path) -> list[Span]:
    """Return start and end of the stages' commands; a benchmark file is written at the end and holds the seconds."""
    files = list((project / "benchmarks").rglob("*.tsv"))
    ends = [path.stat().st_mtime for path in files]
    return [(end - pd.read_csv(path, sep="\t")["s"][0], end) for path, end in zip(files, ends, strict=True)]


def jobs_of(since: float) -> tuple[list[Span], list[Span]]:
    """Return when SLURM's jobs since then waited and ran, from its accounting, with a resolution of 1 s."""
    start = datetime.fromtimestamp(since).isoformat(timespec="seconds")
    fields = ["--noheader", "--parsable2", f"--starttime={start}", "--format=Submit,Start,End"]
    lines = subprocess.run(["sacct", "-X", *fields], check=True, capture_output=True, text=True).stdout.split()
    times = [[datetime.fromisoformat(word).timestamp() for word in line.split("|")] for line in lines]
    return [(submit, begin) for submit, begin, _ in times], [(begin, end) for _, begin, end in times]


def seconds_by_layer(run: Span, layers: dict[str, list[Span]], rest: str) -> dict[str, float]:
    """Divide a run's time: each moment counts for the first layer with a span that covers it, or for the rest."""
    edges = sorted(
        {*run, *(min(max(edge, run[0]), run[1]) for spans in layers.values() for span in spans for edge in span)}
    )
    seconds = dict.fromkeys([*layers, rest], 0.0)
    for left, right in pairwise(edges):
        middle = (left + right) / 2
        covering = (name for name, spans in layers.items() if any(start <= middle < end for start, end in spans))
        seconds[next(covering, rest)] += right - left
    return seconds


def timed(project: Path, *words: str) -> Span:
    """Run the tiny study and return when it began and ended."""
    start = time.time()
    seconds, _ = seconds_of(project, "snakemake", *words, "results/table1.tex", "--configfile", "tiny.yaml")
    return start, start + seconds


def report(title: str, seconds: dict[str, float], jobs: str) -> None:
    print(f"{title:<12} {sum(seconds.values()):7.1f} s   {jobs}")
    for name, value in seconds.items():
        print(f"    {name:<58} {value:7.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    was_up = subprocess.run([TESTBED, "status"], capture_output=True).returncode == 0
    with tempfile.TemporaryDirectory(prefix="scheduling-") as temporary:
        here, there = Path(temporary) / "here", Path(temporary) / "there"
        for project in (here, there):
            make_project(project, nodes=1)
        local = timed(here, "--cores", "all")
        layers = {"commands of the stages": commands_of(here)}
        report("local", seconds_by_layer(local, layers, "Snakemake alone"), f"{len(commands_of(here))} commands")
        subprocess.run([TESTBED, "up"], check=True, stdout=sys.stderr)
        try:
            slurm = timed(there, "--profile", "profiles/slurm")
            waits, allocations = jobs_of(slurm[0])
        finally:
            if not was_up:
                subprocess.run([TESTBED, "down"], check=True, stdout=sys.stderr)
        layers = {
            "commands of the stages": commands_of(there),
            "jobs that start or end, no command running": allocations,
            "jobs that wait in the queue, none running": waits,
        }
        rest = "Snakemake alone: planning, submitting, polling"
        jobs = f"{len(commands_of(there))} commands in {len(allocations)} submissions"
        report("on SLURM", seconds_by_layer(slurm, layers, rest), jobs)
        print(f"{(slurm[1] - slurm[0]) / (local[1] - local[0]):.2f} times as long")


if __name__ == "__main__":
    main()
