"""Export a trained run as a folder to share: the model, its card, and a checkpoint for the package msclap."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline.data.catalogs import catalog_tables
from pipeline.errors import PipelineError
from pipeline.evaluation.protocols import ALL_FIGURES
from pipeline.files import make_folder_atomically, read_json, sha256_of
from pipeline.study import GENERATED_ROOTS
from pipeline.training.settings import PairingSettings

MODEL_FILES = ("model.safetensors", "model.json", "tokenizer.json")
RECORDS = ("training.json", "learning_curves.svg")
MSCLAP = "msclap-"
"""Prefix of the names of ms-clap's backbones; the rest is the version in the package msclap."""
CHANNELS = {"mean": "the mean of the channels", "first": "the first channel"}
SHORT_CLIPS = {"repeat": "is repeated", "pad": "is followed by silence"}
MINI = "mini"
GENERATED_SOURCE = "soundscapes of the small study, in this dataset's layout"
OWN_SOURCE = "raw files of this dataset"
UNKNOWN_SOURCE = "not recorded"

PAPER = (
    "Tatsuya Komatsu, Hokuto Munakata, Yuchi Ishikawa. Leveraging Unlabeled Audio for Audio-Text Contrastive Learning "
    "via Audio-Composed Text Features."
)
METHODS = {
    "finetune": "InfoNCE between clips and their captions, Eq. (5) of the paper.",
    "composed": "Eq. (18) of the paper: captioned clips are also mixed with unlabeled audio, for which a pseudo-token "
    "made from its embedding takes its place in the caption.",
    "concatenate": "Eq. (5) of the paper, and InfoNCE between mixtures of two captioned clips and their joined "
    "captions.",
}
CARD = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("model_card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split that a model was trained on."""

    name: str
    """DATASET/SPLIT"""
    used: str
    source: str
    """One of `GENERATED_SOURCE`, `OWN_SOURCE` and `UNKNOWN_SOURCE`."""


def export_run(run: Path, to: Path) -> list[Path]:
    """Write the run in the folder `run` to the folder `to`, which appears whole or not at all, and return its files.

    `pipeline.load(to)` loads it. For a backbone of ms-clap the folder also holds a checkpoint for the package msclap,
    which `CLAP(model_fp=..., version=...)` loads. The same run gives the same bytes.

    Raises:
        PipelineError: `run` is not finished or damaged, or `to` exists and is not an empty folder.
    """
    check_finished(run)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PipelineError(f"{to}: exists already and is not an empty folder; give another, or remove it")

    from pipeline.models import load_model  # slow import of torch and transformers, after the quick checks

    load_model(run)  # raises for a damaged file
    description, account = read_json(run / "model.json"), read_account(run / "training.json")
    curves = run / "learning_curves.svg"
    if sha256_of(curves) != account["files_sha256"].get(curves.name):
        raise PipelineError(f"{curves}: is damaged, its SHA-256 is not that in training.json; train the run again")
    with make_folder_atomically(to) as made:
        for name in (*MODEL_FILES, *RECORDS):
            shutil.copyfile(run / name, made / name)
        if description["backbone"].startswith(MSCLAP):
            write_msclap_checkpoint(run / "model.safetensors", made / msclap_file(description["backbone"]))
        card = model_card(run, description, account, read_figures(run))
        (made / "README.md").write_text(card, encoding="utf-8")
    return sorted(to.iterdir())


def read_account(path: Path) -> dict[str, Any]:
    """The account of a training; PipelineError where it lacks what the card shows."""
    account = read_json(path)
    needed = ("settings", "data", "steps", "clips_per_s", "wall_s", "hardware", "files_sha256")
    if missing := [name for name in needed if name not in account]:
        raise PipelineError(f"{path}: holds no {', '.join(missing)}; train the run again")
    return account


def check_finished(run: Path) -> None:
    """Raise PipelineError unless `run` is the folder of a finished training."""
    advice = "give the folder of a trained run, such as results/runs/RUN/seed0"
    if not run.is_dir():
        raise PipelineError(f"{run}: {'not a folder' if run.exists() else 'not found'}; {advice}")
    names = {entry.name for entry in run.iterdir()}
    averaged = results_folder(run) / "averaged" / run.absolute().parent.name / run.absolute().name
    if averaged.is_dir() and averaged != run.absolute():
        raise PipelineError(
            f"{run}: its figures are those of the average in {averaged}; export that folder, or delete it"
        )
    missing = [name for name in (*MODEL_FILES, "training.parquet", *RECORDS) if name not in names]
    if "checkpoints" in names:
        raise PipelineError(f"{run}: the training is not finished (it holds checkpoints); run the same command again")
    if not names & {"training.parquet", "training.json"}:
        raise PipelineError(f"{run}: not a run, it holds no training log; {advice}")
    if missing:
        raise PipelineError(f"{run}: not a complete run, it lacks {', '.join(missing)}; run the training again")


def msclap_file(backbone: str) -> str:
    """Return the name of a backbone's checkpoint for the package msclap."""
    return f"CLAP_weights_{backbone.removeprefix(MSCLAP)}.pth"


def write_msclap_checkpoint(weights: Path, path: Path) -> None:
    """Write the weights as a checkpoint of the package msclap, without f_a2t, which msclap does not have."""
    import torch
    from safetensors.torch import load_file

    state = {name: value for name, value in load_file(weights).items() if not name.startswith("a2t.")}
    with path.open("wb") as file:  # given a path, torch would write the name into the file
        torch.save({"model": state}, file)


# --- the card --------------------------------------------------------------------------------------------------------


def results_folder(run: Path) -> Path:
    """Return the folder `results` of results/runs/RUN/seed0."""
    return run.absolute().parent.parent.parent


def read_figures(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of the run on every target; none if there are no evaluations next to its folder."""
    folder = results_folder(run) / "evaluations" / run.absolute().parent.name / run.absolute().name
    evaluations = {path: read_json(path) for path in sorted(folder.glob("*/metrics.json"))}
    for path, metrics in evaluations.items():
        if "protocols" not in metrics:
            raise PipelineError(f"{path}: holds no protocols; evaluate the run again, or delete the file")
    return list(evaluations.values())


def splits_of(run: Path, data: dict[str, Any], roles: dict[str, str]) -> list[Split]:
    """Return the splits that training.json lists under `data`; `roles` maps a role to its description."""
    splits = []
    for role, used in roles.items():
        for folder in data[role]:
            dataset, split = Path(folder).parts[-2:]
            splits.append(Split(name=f"{dataset}/{split}", used=used, source=source_of(run, dataset, split)))
    return splits


def source_of(run: Path, dataset: str, split: str) -> str:
    """Return the source of a split's clips, if its catalog exists."""
    catalog = results_folder(run) / "catalogs" / dataset / f"{split}.parquet"
    if not catalog.is_file():
        return UNKNOWN_SOURCE
    tables = catalog_tables(catalog, ["path"])
    first = next((path for table in tables for path in table["path"].drop_null().to_pylist()), "")
    generated = Path(first).as_posix().startswith(tuple(f"{root}/" for root in GENERATED_ROOTS))
    return GENERATED_SOURCE if generated else OWN_SOURCE


def pretraining_splits(run: Path, backbone: str) -> list[Split]:
    """Return the splits that the small model was pretrained on; none for other backbones or without its record."""
    account = results_folder(run) / "pretrained" / MINI / "training.json"
    if backbone != MINI or not account.is_file():
        return []
    return splits_of(run, read_account(account)["data"], {"labeled": "clips and captions, in pretraining"})


def model_card(run: Path, description: dict[str, Any], account: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    """Return the README.md, with front matter for the Hugging Face hub, from `model_card.md.j2`."""
    backbone, short_clips = description["backbone"], description.get("short_clips", "repeat")
    is_msclap = backbone.startswith(MSCLAP)
    trained_on = splits_of(run, account["data"], {"labeled": "clips and captions", "unlabeled": "audio only"})
    pretrained_on = pretraining_splits(run, backbone)
    splits = pretrained_on + trained_on
    drawing = PairingSettings.of(account["data"]).model_dump()
    shown = [values for found in figures for values in found["protocols"].values()]
    return CARD.render(
        title=f"{run.absolute().parent.name} {run.absolute().name}",
        backbone=backbone,
        description=description,
        channels=CHANNELS[description.get("channels", "mean")],
        shorter=SHORT_CLIPS[short_clips],
        pads=short_clips == "pad",
        msclap_file=msclap_file(backbone) if is_msclap else None,
        msclap_version=backbone.removeprefix(MSCLAP),
        method=METHODS[account["settings"]["objective"]] + averaging(run),
        account=account,
        machine=machine(account),
        settings=[(name, json.dumps(value)) for name, value in sorted((account["settings"] | drawing).items())],
        splits=splits,
        pretrained_on=[split.name for split in pretrained_on],
        own_pretraining=any(split.source == OWN_SOURCE for split in pretrained_on),
        is_own=any(split.source != GENERATED_SOURCE for split in trained_on),
        own=sorted({split.name for split in splits if split.source != GENERATED_SOURCE}),
        any_generated=any(split.source == GENERATED_SOURCE for split in splits),
        all_generated=backbone == MINI and {split.source for split in splits} == {GENERATED_SOURCE},
        figures=figures,
        figure_names=[name for name in ALL_FIGURES if any(name in values for values in shown)],
        paper=PAPER,
    )


def averaging(run: Path) -> str:
    """Return a sentence on the average with the pretrained weights; empty for a run without it."""
    path = run / "validation.csv"  # of the stage average_weights
    if not path.is_file():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        alphas = [row["alpha"] for row in csv.DictReader(file) if row.get("chosen") == "True"]
    if len(alphas) != 1:
        raise PipelineError(f"{path}: names no chosen alpha; make the average again")
    return f" The weights are {alphas[0]} times the trained plus the rest times the pretrained ones (WiSE-FT)."


def machine(account: dict[str, Any]) -> str:
    """Return a description of the training's hardware."""
    hardware = account["hardware"]
    if hardware["gpus"]:
        return f"{len(hardware['gpus'])} times {hardware['gpus'][0]}"
    return f"{hardware['processor']} (processes: {hardware['processes']}, threads: {hardware['threads_a_process']})"


def describe(files: Sequence[Path]) -> str:
    """Return the files with their sizes, one per line."""
    return "\n".join(f"{path}  {os.path.getsize(path):,} bytes" for path in files)
