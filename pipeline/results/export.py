"""A trained run as a folder to pass on: the model, its card, and a checkpoint for msclap's own wrapper."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.catalogs import catalog_tables
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.files import read_json, sha256_of
from pipeline.study import GENERATED
from pipeline.training.settings import PairingSettings

MODEL_FILES = ("model.safetensors", "model.json", "tokenizer.json")
RECORDS = ("training.json", "learning_curves.svg")
MSCLAP = "msclap-"
"""Prefix of the names of ms-clap's backbones; the rest is the version that msclap's wrapper takes."""
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
SOUNDSCAPES = """\
The soundscapes of the small study are mixed from recordings under CC0, CC BY 3.0, CC BY-SA 3.0 and CC BY-SA 4.0, which
`data/recordings/README.md` of the software lists with their authors. Soundscapes that hold a CC BY-SA recording can be
passed on under CC BY-SA 4.0. Figures on them cannot be compared with figures on Clotho or AudioCaps."""
OWN_LICENCES = """\
The licences of these datasets are not recorded: %s. Before you pass this folder on, name them here and in `license` at
the top of this file. No file of the datasets is in this folder."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split that a model was trained on."""

    name: str
    """DATASET/SPLIT"""
    used: str
    source: str
    """One of `GENERATED_SOURCE`, `OWN_SOURCE` and `UNKNOWN_SOURCE`."""


def export_run(run: Path, to: Path) -> list[Path]:
    """Write the run in the folder `run` to the folder `to`, which appears whole or not at all; returns its files.

    `pipeline.models.load_model(to)` loads it. For a backbone of ms-clap the folder also holds a checkpoint, which
    msclap's own `CLAP(model_fp=..., version=...)` loads. The same run gives the same bytes.

    Raises:
        PipelineError: `run` is no finished run or is damaged, or `to` exists and is not an empty folder.
    """
    check_finished(run)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PipelineError(f"{to}: exists already and is not an empty folder; give another, or remove it")

    from pipeline.models import load_model  # torch and transformers, for which a refusal need not wait

    load_model(run)  # says which file is damaged
    description, account = read_json(run / "model.json"), read_account(run / "training.json")
    curves = run / "learning_curves.svg"
    if sha256_of(curves) != account["files_sha256"].get(curves.name):
        raise PipelineError(f"{curves}: is damaged, its SHA-256 is not that in training.json; train the run again")
    to.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        for name in (*MODEL_FILES, *RECORDS):
            shutil.copyfile(run / name, made / name)
        if description["backbone"].startswith(MSCLAP):
            write_msclap_checkpoint(run / "model.safetensors", made / msclap_file(description["backbone"]))
        card = model_card(run, description, account, read_figures(run))
        (made / "README.md").write_text(card, encoding="utf-8")
        made.chmod(0o755)  # mkdtemp makes 0700
        made.replace(to)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return sorted(to.iterdir())


def read_account(path: Path) -> dict[str, Any]:
    """The account of a training; PipelineError where it lacks what the card shows."""
    account = read_json(path)
    needed = ("settings", "data", "steps", "clips_per_s", "wall_s", "hardware", "files_sha256")
    if missing := [name for name in needed if name not in account]:
        raise PipelineError(f"{path}: holds no {', '.join(missing)}; train the run again")
    return account


def check_finished(run: Path) -> None:
    """Raise unless `run` is the folder of a training that came to its end."""
    advice = "give the folder of a trained run, as results/runs/RUN/seed0"
    if not run.is_dir():
        raise PipelineError(f"{run}: {'not a folder' if run.exists() else 'not found'}; {advice}")
    names = {entry.name for entry in run.iterdir()}
    missing = [name for name in (*MODEL_FILES, "training.parquet", *RECORDS) if name not in names]
    if "checkpoints" in names:
        raise PipelineError(f"{run}: its training is not finished (it holds checkpoints); the same command goes on")
    if not names & {"training.parquet", "training.json"}:
        raise PipelineError(f"{run}: not a run, it holds no log of a training; {advice}")
    if missing:
        raise PipelineError(f"{run}: not a whole run, it lacks {', '.join(missing)}; train it again to its end")


def msclap_file(backbone: str) -> str:
    """Name of msclap's checkpoint for a version."""
    return f"CLAP_weights_{backbone.removeprefix(MSCLAP)}.pth"


def write_msclap_checkpoint(weights: Path, path: Path) -> None:
    """Write the weights in the form of msclap's checkpoints, without f_a2t, which msclap lacks."""
    import torch
    from safetensors.torch import load_file

    state = {name: value for name, value in load_file(weights).items() if not name.startswith("a2t.")}
    with path.open("wb") as file:  # of a path, torch would write the name into the file
        torch.save({"model": state}, file)


# --- the card --------------------------------------------------------------------------------------------------------


def results_folder(run: Path) -> Path:
    """The folder `results` of results/runs/RUN/seed0."""
    return run.absolute().parent.parent.parent


def read_figures(run: Path) -> list[dict[str, Any]]:
    """The metrics of the run on every target that it was evaluated on; none where only its folder is at hand."""
    folder = results_folder(run) / "evaluations" / run.absolute().parent.name / run.absolute().name
    evaluations = {path: read_json(path) for path in sorted(folder.glob("*/metrics.json"))}
    for path, metrics in evaluations.items():
        if "protocols" not in metrics:
            raise PipelineError(f"{path}: holds no protocols; evaluate the run again, or delete the file")
    return list(evaluations.values())


def splits_of(run: Path, data: dict[str, Any], roles: dict[str, str]) -> list[Split]:
    """The splits of `data` in training.json, by role (-> how they are used), with their sources."""
    splits = []
    for role, used in roles.items():
        for folder in data[role]:
            dataset, split = Path(folder).parts[-2:]
            splits.append(Split(name=f"{dataset}/{split}", used=used, source=source_of(run, dataset, split)))
    return splits


def source_of(run: Path, dataset: str, split: str) -> str:
    """Where the clips of a split are from, as far as its catalog is at hand."""
    catalog = results_folder(run) / "catalogs" / dataset / f"{split}.parquet"
    if not catalog.is_file():
        return UNKNOWN_SOURCE
    tables = catalog_tables(catalog, ["path"])
    first = next((path for table in tables for path in table["path"].drop_null().to_pylist()), "")
    generated = Path(first).as_posix().startswith(f"{GENERATED}{dataset}/")
    return GENERATED_SOURCE if generated else OWN_SOURCE


def pretraining_splits(run: Path, backbone: str) -> list[Split]:
    """The splits that the small model was pretrained on; none for other backbones or where that is not at hand."""
    account = results_folder(run) / "pretrained" / MINI / "training.json"
    if backbone != MINI or not account.is_file():
        return []
    return splits_of(run, read_account(account)["data"], {"labeled": "clips and captions, in pretraining"})


def model_card(run: Path, description: dict[str, Any], account: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    """README.md with the front matter of the Hugging Face hub."""
    backbone, short_clips = description["backbone"], description.get("short_clips", "repeat")
    trained_on = splits_of(run, account["data"], {"labeled": "clips and captions", "unlabeled": "audio only"})
    pretrained_on = pretraining_splits(run, backbone)
    splits = pretrained_on + trained_on
    all_generated = backbone == MINI and {split.source for split in splits} == {GENERATED_SOURCE}
    return "\n".join(
        [
            *front_matter("cc-by-sa-4.0" if all_generated else None),
            f"# {run.absolute().parent.name} {run.absolute().name}",
            "",
            *introduction(description, trained_on, pretrained_on),
            *usage(backbone, short_clips),
            *training(account, splits),
            *figures_table(figures),
            *licences(backbone, splits),
            "",
            "## Citation",
            "",
            f"> {PAPER}",
            "",
        ]
    )


def front_matter(licence: str | None) -> Iterator[str]:
    """The YAML header; without a `licence` it is `other`, that of the weights and data."""
    yield from ("---", "language: en", "library_name: audio-composed-text", "pipeline_tag: feature-extraction")
    yield f"license: {licence or 'other'}"
    if licence is None:
        yield from ("license_name: of-its-weights-and-data", "license_link: README.md")
    yield from ("tags:", "- audio-text-retrieval", "- contrastive-learning", "- clap", "---", "")


def introduction(
    description: dict[str, Any], trained_on: Sequence[Split], pretrained_on: Sequence[Split]
) -> Iterator[str]:
    """What the model is, what it started from and which audio it takes."""
    backbone = description["backbone"]
    yield f"An audio-text model with one joint space for sounds and captions, fine-tuned from `{backbone}`."
    is_own = any(split.source != GENERATED_SOURCE for split in trained_on)
    if backbone == MINI and any(split.source == OWN_SOURCE for split in pretrained_on):
        names = ", ".join(split.name for split in pretrained_on)
        yield f"`{MINI}` is a small model that was trained from random weights on {names}, and knows no other sounds."
    elif backbone == MINI and is_own:
        yield f"`{MINI}` is the model of the small study: before this training it knew nothing but that study's sounds."
    channels, short_clips = description.get("channels", "mean"), description.get("short_clips", "repeat")
    yield (
        f"It takes {description['window_s']} s of mono audio ({CHANNELS[channels]}) at "
        f"{description['sample_rate_hz']:,} Hz; a shorter sound {SHORT_CLIPS[short_clips]}. Its embeddings have "
        f"{description['embedding_dim']} values and are not normalised."
    )
    yield ""


def usage(backbone: str, short_clips: str) -> Iterator[str]:
    """How to load the folder."""
    yield from ("## Use", "", "With the software audio-composed-text, from its folder:", "", "```python")
    yield "import pipeline"
    yield 'model = pipeline.load("path/to/this/folder")'
    yield "# a file of any format, rate and length; the mean of its windows"
    yield 'audio = model.embed_audio(["file.wav"])'
    yield 'text = model.embed_text(["a dog barks"])'
    yield "print(text @ audio.T)  # cosine similarity"
    yield from ("```", "")
    if backbone.startswith(MSCLAP):
        version = backbone.removeprefix(MSCLAP)
        yield from ("With the package msclap:", "", "```python", "from msclap import CLAP")
        yield f'clap = CLAP(model_fp="path/to/this/folder/{msclap_file(backbone)}", version="{version}")'
        yield 'print(clap.get_text_embeddings(["a dog barks"]))'
        yield from ("```", "")
        if short_clips == "pad":
            yield from ("msclap repeats short sounds, which this model was trained not to expect.", "")


def training(account: dict[str, Any], splits: Sequence[Split]) -> Iterator[str]:
    """Method, data, settings and learning curves."""
    settings, data = account["settings"], account["data"]
    yield from ("## Training", "", METHODS[settings["objective"]], "")
    yield from ("| data | used | source |", "|---|---|---|")
    yield from (f"| {split.name} | {split.used} | {split.source} |" for split in splits)
    yield ""
    yield (
        f"{data['epochs']} epochs, {account['steps']:,} steps of {data['batch_size']} clips, seed {settings['seed']}; "
        f"{account['clips_per_s']:.1f} clips per second, {account['wall_s'] / 3600:.2f} h on {machine(account)}."
    )
    yield from ("", "| setting | value |", "|---|---|")
    drawing = PairingSettings.of(data).model_dump()
    yield from (f"| {key} | `{json.dumps(value)}` |" for key, value in sorted((settings | drawing).items()))
    yield from ("", "`training.json` holds versions, checksums and hardware.", "")
    yield from ("![Learning curves](learning_curves.svg)", "")


def machine(account: dict[str, Any]) -> str:
    """The hardware of the training, in words."""
    hardware = account["hardware"]
    if hardware["gpus"]:
        return f"{len(hardware['gpus'])} times {hardware['gpus'][0]}"
    return f"{hardware['processor']} (processes: {hardware['processes']}, threads: {hardware['threads_a_process']})"


def figures_table(figures: list[dict[str, Any]]) -> Iterator[str]:
    """The retrieval figures under every protocol."""
    yield from ("## Figures", "")
    if not figures:
        yield from ("No evaluation of the run was at hand when it was exported.", "")
        return
    yield f"| test split | texts, clips | protocol | {' | '.join(FIGURES)} |"
    yield f"|---|---|---|{'---:|' * len(FIGURES)}"
    for found in figures:
        for protocol, values in found["protocols"].items():
            sizes = f"{found['n_text']:,}, {found['n_audio']:,}"
            cells = " | ".join(f"{values[name]:.1f}" for name in FIGURES)
            yield f"| {found['target']}/{found['split']} | {sizes} | {protocol} | {cells} |"
    yield from ("", "In percent; t2a finds clips by a text, a2t texts by a clip.", "")


def licences(backbone: str, splits: Sequence[Split]) -> Iterator[str]:
    """Under which licences the model and its sources can be used."""
    yield from ("## Licences", "", "The software is under the MIT licence.")
    if backbone != MINI:
        yield f"The weights were fine-tuned from those of {backbone}, whose publisher's terms hold for them too."
    if own := sorted({split.name for split in splits if split.source != GENERATED_SOURCE}):
        yield OWN_LICENCES % ", ".join(own)
    if any(split.source == GENERATED_SOURCE for split in splits):
        yield SOUNDSCAPES


def describe(files: Sequence[Path]) -> str:
    """The files with their sizes, one per line."""
    return "\n".join(f"{path}  {os.path.getsize(path):,} bytes" for path in files)
