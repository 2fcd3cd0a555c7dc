"""A trained run as a folder to pass on: the model, its card, and a checkpoint for msclap's own wrapper."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.study import GENERATED
from pipeline.training.settings import PairingSettings

MODEL_FILES = ("model.safetensors", "model.json", "tokenizer.json")
RECORDS = ("training.json", "learning_curves.svg")
MSCLAP = "msclap-"
"""How the names of ms-clap's backbones begin; the rest is the version that msclap's wrapper is asked for."""
CHANNELS = {"mean": "the mean of the channels", "first": "the first channel"}
SHORT_CLIPS = {"repeat": "again and again", "pad": "with silence behind it"}
SMALL_STUDY = "soundscapes of the small study, in this dataset's layout"

PAPER = (
    "Tatsuya Komatsu, Hokuto Munakata, Yuchi Ishikawa. Leveraging Unlabeled Audio for Audio-Text Contrastive Learning "
    "via Audio-Composed Text Features."
)
METHODS = {
    "finetune": "InfoNCE between clips and their captions, Eq. (5) of the paper.",
    "composed": "Eq. (18) of the paper: captioned clips are also mixed with unlabeled audio, for which a pseudo-token "
    "made from its embedding stands in the caption.",
    "concatenate": "Eq. (5) of the paper, and InfoNCE between mixtures of two captioned clips and their joined "
    "captions.",
}
SOUNDSCAPES = """\
The small study's data are soundscapes mixed from recordings under CC0, CC BY 3.0, CC BY-SA 3.0 and CC BY-SA 4.0, which
`data/recordings/README.md` of the software lists with their authors. Soundscapes that hold a CC BY-SA recording can be
passed on under CC BY-SA 4.0, and this model, which learned from them, is passed on under it too. Figures on them are
those of the small study and cannot be compared with figures on Clotho or AudioCaps."""


def export_run(run: Path, to: Path) -> list[Path]:
    """Write the run in the folder `run` to the folder `to`, which appears whole or not at all; the files come back.

    `pipeline.models.load_model(to)` loads it. For a backbone of ms-clap there is a checkpoint beside it, which msclap's
    own `CLAP(model_fp=..., version=...)` loads. The same run gives the same bytes.

    Raises PipelineError where `run` is no finished run, is damaged, or where `to` holds anything.
    """
    check_finished(run)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PipelineError(f"{to}: exists already and is not an empty folder; give another, or remove it")

    from pipeline.models import load_model  # torch and transformers, for which a refusal need not wait

    load_model(run)  # says which file is damaged
    description = json.loads((run / "model.json").read_text(encoding="utf-8"))
    account = json.loads((run / "training.json").read_text(encoding="utf-8"))
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
    """What msclap calls the checkpoint of a version."""
    return f"CLAP_weights_{backbone.removeprefix(MSCLAP)}.pth"


def write_msclap_checkpoint(weights: Path, path: Path) -> None:
    """The weights under the names and in the form of msclap's checkpoints, without f_a2t, which msclap has not."""
    import torch
    from safetensors.torch import load_file

    state = {name: value for name, value in load_file(weights).items() if not name.startswith("a2t.")}
    with path.open("wb") as file:  # of a path, torch would write the name into the file
        torch.save({"model": state}, file)


# --- the card --------------------------------------------------------------------------------------------------------


def read_figures(run: Path) -> list[dict[str, Any]]:
    """The metrics of the run on every target that it was evaluated on; none where its folder stands alone."""
    run = run.absolute()
    folder = run.parent.parent.parent / "evaluations" / run.parent.name / run.name
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/metrics.json"))]


def source_of(run: Path, split: Sequence[str]) -> str:
    """Where the clips of a split (dataset, split) are from, as far as its catalog is at hand."""
    catalog = run.absolute().parent.parent.parent / "catalogs" / split[0] / f"{split[1]}.parquet"
    if not catalog.is_file():
        return "not recorded"
    paths = pq.read_table(catalog, columns=["path"])["path"].drop_null()
    generated = len(paths) > 0 and Path(paths[0].as_py()).as_posix().startswith(GENERATED)
    return SMALL_STUDY if generated else "its publisher's files"


def model_card(run: Path, description: dict[str, Any], account: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    """README.md with the front matter of the Hugging Face hub."""
    settings, data, backbone = account["settings"], account["data"], description["backbone"]
    drawing = dataclasses.asdict(PairingSettings.of(data))
    short_clips, channels = description.get("short_clips", "repeat"), description.get("channels", "mean")
    splits = {role: [Path(folder).parts[-2:] for folder in data[role]] for role in ("labeled", "unlabeled")}
    sources = {split: source_of(run, split) for role in splits.values() for split in role}
    soundscapes = backbone == "mini" or SMALL_STUDY in sources.values()
    name = f"{run.absolute().parent.name} {run.absolute().name}"
    return "\n".join(
        [
            *front_matter(soundscapes),
            f"# {name}",
            "",
            f"An audio-text model with one joint space for sounds and captions, fine-tuned from `{backbone}`"
            + (", the small backbone that the study makes itself." if backbone == "mini" else "."),
            f"It hears {description['window_s']} s of mono audio ({CHANNELS[channels]}) at "
            f"{description['sample_rate_hz']:,} Hz, a shorter sound {SHORT_CLIPS[short_clips]}; its embeddings have "
            f"{description['embedding_dim']} values and are not normalised.",
            "",
            *usage(backbone, short_clips),
            "## Training",
            "",
            METHODS[settings["objective"]],
            "",
            *data_table(splits, sources),
            "",
            f"{data['epochs']} epochs, {account['steps']:,} steps of {data['batch_size']} clips, "
            f"seed {settings['seed']}; {account['clips_per_s']:.1f} clips a second, "
            f"{account['wall_s'] / 3600:.2f} h on {machine(account)}.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | `{json.dumps(value)}` |" for key, value in sorted((settings | drawing).items())),
            "",
            "`training.json` holds versions, checksums and hardware.",
            "",
            "![Learning curves](learning_curves.svg)",
            "",
            *figures_table(figures),
            "## Licences",
            "",
            *licences(backbone, soundscapes),
            "",
            "## Citation",
            "",
            f"> {PAPER}",
            "",
        ]
    )


def front_matter(soundscapes: bool) -> Iterator[str]:
    """The YAML header; the licence is `other` where it is that of weights and data which are not the study's."""
    yield from ("---", "language: en", "library_name: audio-composed-text", "pipeline_tag: feature-extraction")
    yield "license: cc-by-sa-4.0" if soundscapes else "license: other"
    if not soundscapes:
        yield from ("license_name: of-its-weights-and-data", "license_link: README.md")
    yield from ("tags:", "- audio-text-retrieval", "- contrastive-learning", "- clap", "---", "")


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


def data_table(splits: dict[str, list[tuple[str, ...]]], sources: dict[tuple[str, ...], str]) -> Iterator[str]:
    """What the run was trained on."""
    yield from ("| data | used | source |", "|---|---|---|")
    for role, folders in splits.items():
        for split in folders:
            used = "clips and captions" if role == "labeled" else "audio only"
            yield f"| {'/'.join(split)} | {used} | {sources[split]} |"


def machine(account: dict[str, Any]) -> str:
    """What it was trained on, in words."""
    hardware = account["hardware"]
    if hardware["gpus"]:
        return f"{len(hardware['gpus'])} times {hardware['gpus'][0]}"
    return f"{hardware['processor']} ({hardware['processes']} processes of {hardware['threads_a_process']} threads)"


def figures_table(figures: list[dict[str, Any]]) -> Iterator[str]:
    """The retrieval figures under every protocol."""
    yield from ("## Figures", "")
    if not figures:
        yield from ("No evaluation lay beside the run when it was exported.", "")
        return
    names = list(next(iter(figures[0]["protocols"].values())))
    yield f"| test split | texts, clips | protocol | {' | '.join(names)} |"
    yield f"|---|---|---|{'---:|' * len(names)}"
    for found in figures:
        for protocol, values in found["protocols"].items():
            sizes = f"{found['n_text']:,}, {found['n_audio']:,}"
            cells = " | ".join(f"{values[name]:.1f}" for name in names)
            yield f"| {found['target']}/{found['split']} | {sizes} | {protocol} | {cells} |"
    yield from ("", "In percent; t2a finds clips by a text, a2t texts by a clip.", "")


def licences(backbone: str, soundscapes: bool) -> Iterator[str]:
    """Under what the model and what it was made from can be used."""
    yield "The software is under the MIT licence."
    if backbone != "mini":
        yield f"The weights were fine-tuned from those of {backbone}, whose publisher's terms hold for them too."
    if soundscapes:
        yield SOUNDSCAPES
    else:
        yield "The datasets above are their publishers'; nothing of them is in this folder."


def describe(files: Sequence[Path]) -> str:
    """The files with their sizes, a line each."""
    return "\n".join(f"{path}  {os.path.getsize(path):,} bytes" for path in files)
