"""Time that Snakemake takes to plan a million hours of audio, and the paper's study at the full size of its lists.

`python -m bench.planning` makes empty files with the right names, in a temporary copy of the project, and times dry
runs.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CLOTHO = {"development": 3839, "validation": 1045, "evaluation": 1045}
AUDIOCAPS = {"train": 49_838, "val": 495, "test": 975}
AUDIOSET = 22_160
SOURCE_TARS = 360_000
"""A million hours in clips of 10 s, 1,000 clips per tar of the raw dataset and of the shards."""
JOBS = 1000


def write_csv(path: Path, rows: Iterable[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def touch_all(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def make_up_datasets(data: Path, scale: float) -> None:
    """Make empty files and lists in the layouts of Clotho, AudioCaps and AudioSet, and a folder of empty tars."""
    for split, clips in CLOTHO.items():
        names = [f"{split} {clip}.wav" for clip in range(round(clips * scale))]
        header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
        write_csv(data / "clotho" / f"clotho_captions_{split}.csv", [header, *([name, *"abcde"] for name in names)])
        touch_all(data / "clotho" / split, names)
    for split, clips in AUDIOCAPS.items():
        ids = [f"{split}{clip:08d}"[-11:] for clip in range(round(clips * scale))]
        rows = ([number, name, 30, "a dog barks"] for number, name in enumerate(ids))
        write_csv(data / "audiocaps" / f"{split}.csv", [["audiocap_id", "youtube_id", "start_time", "caption"], *rows])
        touch_all(data / "audiocaps" / split, (f"{name}.wav" for name in ids))
    ids = [f"as{clip:09d}" for clip in range(round(AUDIOSET * scale))]
    write_csv(data / "audioset" / "balanced_train_segments.csv", [[name, 30, 40, "/m/0"] for name in ids])
    touch_all(data / "audioset" / "balanced_train", (f"{name}.wav" for name in ids))
    touch_all(data / "many" / "all", (f"{number:06}.tar" for number in range(round(SOURCE_TARS * scale))))


def many_study(scale: float) -> dict[str, Any]:
    """Return a study with one dataset of many tars."""
    many = {"adapter": "webdataset", "root": "data/many", "captions": True, "splits": {"train": "all", "test": "all"}}
    return {
        "backbone": {"name": "msclap-2023"},
        "datasets": {"many": many},
        "shards": {"jobs": max(1, round(JOBS * scale))},
        "runs": {"tuned": {"objective": "finetune", "labeled": ["many"]}},
        "tables": {"table": [{"target": "many", "method": "finetune", "run": "tuned"}]},
    }


def make_up_results(project: Path, jobs: int) -> None:
    """Make empty outputs of a sharded split, so that Snakemake considers it done."""
    touch_all(project / "results/catalogs/many", ["all.parquet", "all.shards.parquet"])
    touch_all(project / "results/shards/many/all/parts", (f"{number}-of-{jobs}.json" for number in range(jobs)))
    touch_all(project / "results/shards/many/all", ["manifest.parquet", "manifest.json", "identities.parquet"])


def seconds_of(project: Path, *words: str) -> tuple[float, str]:
    """Run a command of this Python's environment in the project, and return its seconds and output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(words, cwd=project, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return time.perf_counter() - start, done.stdout + done.stderr


def jobs_in(plan: str) -> int:
    """Return the total of a dry run's table of jobs."""
    return next((int(line.split()[1]) for line in plan.splitlines() if line.startswith("total ")), 0)


def report(what: str, seconds: float, plan: str) -> None:
    print(f"{what:<58} {jobs_in(plan):>6} jobs {seconds:8.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lists, to try the script")
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory(prefix="planning-") as temporary:
        project = Path(temporary)
        for name in ("Snakefile", "config.yaml", "workflow", "pipeline", "profiles", "experiments"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, project / name)
        make_up_datasets(project / "data", scale)
        shutil.copy(ROOT / "data" / "paper_table1.csv", project / "data")  # published figures of the paper's study
        (project / "many.yaml").write_text(yaml.safe_dump(many_study(scale)))
        dry = ["snakemake", "--quiet", "rules", "-n"]
        many = ["results/shards/many/all/manifest.json", "--configfile", "many.yaml"]
        paper = ["results/table1.tex", "--configfile", "experiments/paper.yaml"]
        lists = [f"clotho/{split}" for split in CLOTHO] + [f"audiocaps/{split}" for split in AUDIOCAPS]
        catalogs = [f"results/catalogs/{name}.parquet" for name in [*lists, "audioset/balanced_train"]]
        make = ["snakemake", "--quiet", "rules", "--cores", "2"]

        report("the paper's study, nothing made yet", *seconds_of(project, *dry, *paper))
        seconds_of(project, *make, *catalogs, *paper[1:])
        report("the paper's study, all lists read", *seconds_of(project, *dry, *paper))
        tars, jobs = round(SOURCE_TARS * scale), many_study(scale)["shards"]["jobs"]
        report(f"{tars} tars in {jobs} jobs, nothing made yet", *seconds_of(project, *dry, *many))
        make_up_results(project, jobs)
        seconds_of(project, *make, "--touch", *many)
        report(f"{tars} tars in {jobs} jobs, all made", *seconds_of(project, *dry, *many))
        if shutil.which("sbatch"):
            slurm = ["--profile", "profiles/slurm", "--config", f"shards={{jobs: {jobs}}}"]
            report("the same, for SLURM", *seconds_of(project, *dry, *many, *slurm))


if __name__ == "__main__":
    main()
