"""Does captioning suggested clips beat captioning random ones? Soundscapes of the small study answer, over five seeds.

    python -m experiments.suggestions --out suggestions

A pool of soundscapes in the style of `audiocaps` has captions that nobody is shown. In each seed, some clips of the
pool are captioned at random. Then `--count` others are captioned: at random, or as `composed-text suggest` proposes
them with the pretrained model. Their captions are revealed, and the model is fine-tuned on both sets. All runs take the
same number of steps, and are evaluated on the test split of `audiocaps`, which holds other mixtures.

The pool is `even`, as the small study draws it, or `repetitive`, as the recordings of one place are: four fifths of the
clips hold only a few common sounds.
Everything lies in the folder `--out`: the datasets, the workflow's results and suggestions.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import yaml
from scipy import stats

from pipeline.data.shards.reader import open_shards
from pipeline.data.small_study.mixing import render
from pipeline.data.small_study.recordings import load_recordings
from pipeline.data.small_study.soundscapes import Soundscape, draw_split
from pipeline.evaluation.model import load
from pipeline.evaluation.search import clip_vectors, index_paths
from pipeline.evaluation.selection import facts_of, suggest
from pipeline.files import make_folder_atomically, read_json
from pipeline.results.captioning.page import write_page
from pipeline.stages import at_least

ROOT = Path(__file__).parents[1]
FIGURES = {"t2a_mAP10": "text to audio", "a2t_mAP10": "audio to text"}
REPEATED, COMMON = 0.8, 6


# --- datasets --------------------------------------------------------------------------------------------------------


def draw_pool(kind: str, clips: int) -> list[Soundscape]:
    """Return the soundscapes; of a repetitive pool, the share `REPEATED` holds only `COMMON` of the recordings."""
    recordings = load_recordings(ROOT / "data" / "recordings")
    repeated = round(REPEATED * clips) if kind == "repetitive" else 0
    common = [recordings[place] for place in np.random.default_rng(1).permutation(len(recordings))[:COMMON]]
    drawn = draw_split("audiocaps", "train", recordings, seed=1, clips=clips - repeated)
    drawn += draw_split("audiocaps", "train", common, seed=2, clips=repeated)
    return [dataclasses.replace(one, index=index) for index, one in enumerate(drawn)]


def write_pool(root: Path, soundscapes: Sequence[Soundscape]) -> None:
    """Write the clips without a list, and soundscapes.csv with their captions in the folder above."""
    recordings = {recording.file_name: recording for recording in load_recordings(ROOT / "data" / "recordings")}
    with make_folder_atomically(root) as temporary:
        (temporary / "train").mkdir()
        for one in soundscapes:
            path = temporary / "train" / f"{one.index:05d}.wav"
            soundfile.write(path, render(one, recordings), one.rate_hz, subtype="PCM_16")
        with (temporary / "hidden.csv").open("w", newline="") as file:
            rows = [[f"{one.index:05d}.wav", one.captions[0], " ".join(sorted(one.recordings))] for one in soundscapes]
            csv.writer(file).writerows([["clip", "text", "recordings"], *rows])


def caption(pool: Path, clips: Mapping[str, str], root: Path) -> None:
    """Write captions.csv of some clips, from names in `root`/audio to clips of the pool, and links to missing audio."""
    hidden = pd.read_csv(pool / "hidden.csv", index_col="clip")["text"]
    (root / "audio").mkdir(parents=True, exist_ok=True)
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption", "source_name"])
        for name, clip in clips.items():
            if not (root / "audio" / name).exists():
                os.link(pool / "train" / clip, root / "audio" / name)
            writer.writerow([f"audio/{name}", hidden[clip], clip])


# --- choice of the clips ---------------------------------------------------------------------------------------------


def farthest_first(model: Path, pool: Path, captioned: Path, count: int) -> list[str]:
    """Return the clips of the greedy k-center choice (Sener and Savarese 2018), each the farthest from all others."""
    loaded = load(model)
    vectors = {
        folder: clip_vectors(loaded, shards, index_paths(loaded, shards, None, "audio.npy"))
        for folder in (pool, captioned)
        for shards in [open_shards(folder)]
    }
    nearest = (vectors[pool] @ vectors[captioned].T).max(axis=1)
    rows: list[int] = []
    for _ in range(count):
        rows.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, vectors[pool] @ vectors[pool][rows[-1]])
        nearest[rows] = np.inf
    facts = facts_of(open_shards(pool), rows)
    return [facts[row]["source_name"] for row in rows]


def choose(arm: str, seed: int, others: Sequence[str], root: Path, args: argparse.Namespace) -> dict[str, str]:
    """Return the clips that an arm captions, by their file names in `root`/audio; suggested ones come with a page."""
    shards = args.out / "results" / "shards"
    model, pool, start = args.out / "results/pretrained/mini", shards / "pool/train", shards / f"start{seed}/captions"
    if arm == "suggested":
        found = suggest(model, pool, captioned=[start], count=args.count)
        if not (root / "index.html").exists():
            write_page(found, open_shards(pool), root)
        return {f"{clip.key}.flac": clip.source_name for clip in found}
    if arm == "k_center":
        names = farthest_first(model, pool, start, args.count)
    else:
        names = np.random.default_rng([seed, 1]).permutation(others)[: args.count].tolist()
    return {name: name for name in names}


# --- study -----------------------------------------------------------------------------------------------------------


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """Return a study with one run per arm and seed, each on the start set and the arm's clips of the seed."""

    def folder(name: str, captions: bool, split: str) -> dict[str, Any]:
        root = str((args.out / "raw" / name).resolve())
        return {"adapter": "folder", "root": root, "captions": captions, "splits": {"train": split}}

    names = [f"{arm}{seed}" for arm in args.arms for seed in args.seeds]
    audiocaps = {
        "adapter": "audiocaps",
        "root": "results/raw/audiocaps",
        "captions": True,
        "splits": {"train": "train", "validation": "val", "test": "test"},
    }
    rows = [{"target": "audiocaps", "method": "finetune", "run": name, "label": name} for name in names]
    return {
        "study": {"name": "suggestions", "note": "Runs on captioned clips that were suggested, or chosen at random."},
        "seeds": list(args.seeds),
        "soundscapes": {"scale": args.scale},
        "backbone": {"name": "mini"},
        "datasets": {
            "audiocaps": audiocaps,
            "pool": folder("pool", False, "train"),
            **{f"start{seed}": folder(f"start{seed}", True, "captions") for seed in args.seeds},
            **{name: folder(name, True, "captions") for name in names},
        },
        "shards": {"jobs": 1},
        "training": {"epochs": args.epochs, "batch_size": 32, "learning_rate": 0.0003},
        "runs": {
            f"{arm}{seed}": {"objective": "finetune", "labeled": [f"start{seed}", f"{arm}{seed}"]}
            for arm in args.arms
            for seed in args.seeds
        },
        "tables": {"table1": rows},
    }


def make(targets: Iterable[str], args: argparse.Namespace) -> None:
    """Run the workflow for some files of the study, of which the root of every dataset must exist."""
    for name in (f"{arm}{seed}" for arm in args.arms for seed in args.seeds):
        (args.out / "raw" / name).mkdir(exist_ok=True)
    (args.out / "config.yaml").write_text(yaml.safe_dump(configuration(args), sort_keys=False))
    command = ["snakemake", *targets, "--cores", args.cores, "--directory", str(args.out), "--quiet", "rules"]
    subprocess.run([*command, "--configfile", str(args.out / "config.yaml")], check=True, cwd=ROOT)


def metrics(arm: str, seed: int) -> str:
    """Return the file of a run's figures: the run of a seed is trained with the same seed."""
    return f"results/evaluations/{arm}{seed}/seed{seed}/audiocaps/metrics.json"


def collect(args: argparse.Namespace) -> pd.DataFrame:
    """Return one row per arm, seed and figure, with the number of recordings in the captioned clips."""
    recordings = pd.read_csv(args.out / "raw/pool/hidden.csv", index_col="clip")["recordings"].str.split()
    rows = []
    for arm in args.arms:
        for seed in args.seeds:
            figures = read_json(args.out / metrics(arm, seed))["protocols"]["paper"]
            lists = [pd.read_csv(args.out / "raw" / name / "captions.csv") for name in (f"start{seed}", f"{arm}{seed}")]
            count = len({name for clip in pd.concat(lists)["source_name"] for name in recordings[clip]})
            rows.append({"arm": arm, "seed": seed, "recordings": count, **{name: figures[name] for name in FIGURES}})
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame, arms: Sequence[str]) -> str:
    """Return a table in Markdown: means of the arms, and differences from the first with Student's 95 % interval."""
    columns = {"recordings": "recordings that occur", **{name: f"mAP@10 {title}" for name, title in FIGURES.items()}}
    lines = [f"| clips | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    by_seed = {arm: found[found["arm"] == arm].set_index("seed") for arm in arms}
    for arm, figures in by_seed.items():
        cells = [f"{figures[name].mean():.1f} ± {figures[name].std():.1f}" for name in columns]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for arm in list(arms)[1:]:
        cells = []
        for name in columns:
            difference = by_seed[arm][name] - by_seed[arms[0]][name]
            half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference) if len(difference) > 1 else np.nan
            mean = difference.mean()
            cells.append(f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]")
        lines.append(f"| {arm} less {arms[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole: Mapping[str, Callable[[str], int]] = {"type": at_least(1)}
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument("--pool", choices=["even", "repetitive"], default="repetitive")
    parser.add_argument(
        "--arms", nargs="+", choices=["random", "suggested", "k_center"], default=["random", "suggested"]
    )
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2, 3, 4])
    parser.add_argument("--clips", default=1500, **whole, help="clips of the pool (default: %(default)s)")
    parser.add_argument("--start", default=32, **whole, help="clips captioned before (default: %(default)s)")
    parser.add_argument("--count", default=96, **whole, help="clips that each arm captions (default: %(default)s)")
    parser.add_argument("--epochs", default=45, **whole, help="of every training (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the small study's datasets (default: %(default)s)")
    parser.add_argument("--cores", default="all", help="of the workflow (default: %(default)s)")
    args = parser.parse_args(argv)

    # the pool and the clips that are captioned already
    raw = args.out / "raw"
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "data").exists():
        (args.out / "data").symlink_to(ROOT / "data")
    if not (raw / "pool").exists():
        write_pool(raw / "pool", draw_pool(args.pool, args.clips))
    names = sorted(path.name for path in (raw / "pool" / "train").iterdir())
    starts = {seed: sorted(np.random.default_rng(seed).permutation(names)[: args.start]) for seed in args.seeds}
    for seed, start in starts.items():
        caption(raw / "pool", {name: name for name in start}, raw / f"start{seed}")
    splits = ["pool/train", *(f"start{seed}/captions" for seed in args.seeds)]
    weights = "results/pretrained/mini/model.safetensors"
    make([weights, *(f"results/shards/{split}/manifest.json" for split in splits)], args)

    # the clips of every arm, and the runs on them
    for seed, start in starts.items():
        others = sorted(set(names) - set(start))
        for arm in args.arms:
            root = raw / f"{arm}{seed}"
            caption(raw / "pool", choose(arm, seed, others, root, args), root)
    make([metrics(arm, seed) for arm in args.arms for seed in args.seeds], args)

    found = collect(args)
    found.to_csv(args.out / "suggestions.csv", index=False)
    print(summary(found, args.arms))


if __name__ == "__main__":
    main(sys.argv[1:])
