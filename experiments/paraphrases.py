"""Do further captions of the training clips help? The small study answers, over five seeds.

    python -m experiments.paraphrases --out results/paraphrases
    snakemake --cores all results/paraphrases.tex results/comparisons/with_{composed,text_mixing}/paraphrases.csv \
        --configfile config.yaml experiments/beyond.yaml results/paraphrases/study.yaml

Each training clip gets up to four further captions: the study's own phrases, drawn again for the same sounds. The test
queries have the same phrases, so the gain is an upper bound of what a tool gives that rewrites captions without the
audio. The first command writes clotho.csv, audiocaps.csv, and study.yaml with the runs and their table.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.data.small_study.captions import write_captions
from pipeline.data.small_study.layouts import LAYOUTS
from pipeline.data.small_study.recordings import Recording, load_recordings
from pipeline.data.small_study.soundscapes import Soundscape, draw_split
from pipeline.data.small_study.styles import STYLES

ROOT = Path(__file__).parents[1]
SPLITS = {"clotho": "development", "audiocaps": "train"}
SEED = 0  # of the small study's soundscapes
FURTHER, ATTEMPTS = 4, 50


def further_captions(soundscape: Soundscape, recordings: dict[str, Recording]) -> list[str]:
    """Return up to `FURTHER` captions that the clip does not have; few sounds have few phrases."""
    name = f"paraphrases/{soundscape.dataset}"
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode()), soundscape.index])
    chosen = [recordings[event.recording] for event in soundscape.events]
    gains_db = [event.gain_db for event in soundscape.events]
    style, further = STYLES[soundscape.dataset], list[str]()
    for _ in range(ATTEMPTS):
        captions = write_captions(style, soundscape.split, chosen, gains_db, soundscape.is_sequence, generator)
        further += [caption for caption in captions if caption not in (*soundscape.captions, *further)]
    return further[:FURTHER]


def study_with(folder: Path) -> dict[str, Any]:
    """Return datasets that read the files in `folder` next to the same clips, their runs and the table."""
    datasets, runs, rows = {}, {}, []
    for name, split in SPLITS.items():
        datasets[f"{name}_paraphrased"] = {
            "adapter": name,
            "root": f"results/raw/{name}",
            "captions": True,
            "paraphrases": str(folder / f"{name}.csv"),
            "splits": {"train": split},
        }
        runs[f"{name}_paraphrased"] = {
            "objective": "composed",
            "labeled": [f"{name}_paraphrased"],
            "unlabeled": ["audioset"],
        }
        rows += [
            {"target": name, "method": "text_mixing", "run": f"{name}_mixing"},
            {"target": name, "method": "composed", "run": f"{name}_composed_audioset"},
            {"target": name, "method": "composed", "run": f"{name}_paraphrased", "label": "with paraphrases"},
        ]
    return {"datasets": datasets, "runs": runs, "sweep": {"tables": ["paraphrases"]}, "tables": {"paraphrases": rows}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for clotho.csv, audiocaps.csv and study.yaml")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study_with(folder), sort_keys=False))
    recordings = {one.file_name: one for one in load_recordings(ROOT / "data" / "recordings")}
    for dataset, split in SPLITS.items():
        clips = STYLES[dataset].splits[split].clips
        soundscapes = draw_split(dataset, split, list(recordings.values()), seed=SEED, clips=clips)
        with (folder / f"{dataset}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["file_name", "caption", "paraphrase"])
            for one in soundscapes:
                path = LAYOUTS[dataset].name(one, SEED)
                name = path.name if dataset == "clotho" else path.stem  # as the lists of the publishers name clips
                rows.writerows([name, one.captions[0], text] for text in further_captions(one, recordings))


if __name__ == "__main__":
    main()
