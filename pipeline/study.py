"""A study: its configuration as typed models, and the answers that the rules of the workflow ask for.

`Study.of_config` reads and checks a configuration. The methods of `Study` return paths, values and command-line flags;
their parameters are named as the wildcards of the rules. Nothing here needs Snakemake.
`python -m pipeline.study` prints the JSON schema of a configuration, with `--markdown` its documentation.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError

from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES, PUBLISHED
from pipeline.training.settings import (
    BatchPlan,
    Count,
    Fraction,
    OptimizationSettings,
    PairingSettings,
    Rate,
    Seed,
    Settings,
    Share,
    TrainingSettings,
    describe_errors,
    settings_flags,
)

GENERATED = "results/raw/"
"""Roots below this folder are mixed by the small study itself."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME of a model on the Hugging Face hub."""

MINI_NOTE = (
    "The runs start from the small model (backbone mini), which knows nothing but the sounds of the small study that "
    "ships with the project; name published weights in `backbone` for figures that mean more."
)
"""What tables, page and log say of a study of the user's own data that starts from the small model."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Role = Literal["train", "validation", "test"]
Adapter = Literal["clotho", "audiocaps", "audioset", "folder", "parquet", "webdataset"]
BackboneName = Literal["mini", "msclap-2022", "msclap-2023", "laion-clap"]


class RunSettings(BatchPlan, PairingSettings, OptimizationSettings):
    """All settings of a run: its batches, its pairs and its training."""


BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "mini": {"learning_rate": 0.0003, "a2t_learning_rate": 0.001},
    **{name: {"learning_rate": 0.00005, "encoder_regularisation": True} for name in PUBLISHED},
}
"""Defaults of settings that depend on the backbone: large steps would ruin published weights."""


# --- the configuration -----------------------------------------------------------------------------------------------


class Title(Settings):
    """What the tables say of the study."""

    name: Text = Field("unnamed study", description="Name of the study in the tables.")
    note: Text = Field(
        "Figures of the study's own data.", description="Sentences under the tables: data, model, caveats."
    )
    published: Text | None = Field(
        None,
        description="CSV of published figures, with the columns of data/paper_table1.csv. Tables then show them next "
        "to the study's figures. Rows are matched by target, method and training data.",
    )


class BackboneChoice(Settings):
    """The pretrained model that every run starts from."""

    name: BackboneName = Field(
        "mini",
        description="mini is trained on the small study's sounds, for trying out; msclap-2023 is the paper's.",
    )
    weights: Text | None = Field(
        None,
        description="CLAP_weights_2022.pth or CLAP_weights_2023.pth; for laion-clap a directory of transformers' "
        "ClapModel or a name on the hub. null downloads from the hub. mini has none.",
    )
    tokenizer: Text | None = Field(
        None,
        description="Directory of the tokenizer: GPT-2's, bert-base-uncased's (msclap-2022) or RoBERTa's (laion-clap). "
        "null downloads it from the hub, or takes the one next to laion-clap's weights. mini trains its own.",
    )


class Soundscapes(Settings):
    """The raw datasets of the small study, mixed from data/recordings for every root below results/raw."""

    seed: Seed = Field(0, description="The same seed makes the same bytes.")
    scale: Rate = Field(1.0, description="Factor on the number of clips of every split.")


class Splits(Settings):
    """The publisher's split in each role."""

    train: SplitName = Field(description="Split to train on, or to take unlabeled audio from.")
    validation: SplitName | None = Field(None, description="Split on which settings are chosen.")
    test: SplitName | None = Field(None, description="Split of the tables.")

    def of(self, role: Role) -> str | None:
        """The split in a role, None where there is none."""
        return getattr(self, role)


class Dataset(Settings):
    """One raw dataset and how to read it, or ready shards."""

    adapter: Adapter | None = Field(
        None,
        description="Layout of the raw tree. parquet: mirrors on the Hugging Face hub with audio in a column. "
        "webdataset: tars of KEY.flac (or other audio) with KEY.json or KEY.txt. Neither is unpacked.",
    )
    root: Text | None = Field(None, description="Folder of the raw tree; ~ is the home folder.")
    shards: Text | None = Field(
        None,
        description="Instead of adapter and root: address of a folder of ready shards, ADDRESS/SPLIT/manifest.json, "
        "as https://..., s3://... or a path.",
    )
    tars: Literal["copy", "remote"] | None = Field(
        None, description="Of ready shards: copy them (the default), or read them by byte range at their address."
    )
    captions: bool = Field(description="Whether clips need captions. Clips without one are then dropped and counted.")
    max_dropped_fraction: Fraction = Field(
        0.0,
        description="Share of a split's rows that may be unusable (missing, undecodable, silent, without caption). "
        "A split that loses more fails and names them.",
    )
    expected_test_clips: Count | None = Field(
        None, description="Clips of the publisher's test split; notes of the tables say when some are missing."
    )
    splits: Splits = Field(description="The publisher's split in each role.")

    @property
    def folder(self) -> str | None:
        """The root with ~ replaced by the home folder; None for ready shards."""
        return None if self.root is None else str(Path(self.root).expanduser())

    @property
    def is_generated(self) -> bool:
        """Whether the small study mixes this dataset itself."""
        return self.root is not None and self.root.startswith(GENERATED)


class ShardSettings(Settings):
    """Resampled mono audio in WebDataset tars."""

    clips_per_shard: Count = Field(
        512,
        description="Catalog rows per tar, at most; on average 60 % of it, because tars are cut where new clips move "
        "the fewest.",
    )
    jobs: Count = Field(
        4,
        description="Jobs per split that make its tars. Any number gives the same tars. Use about as many as the "
        "machine or cluster runs at once; the plan grows with it, not with the data.",
    )
    format: Literal["wav", "flac"] = Field(
        "wav", description="16-bit WAV, read by offset; FLAC halves the size and takes 30 times the reading time."
    )
    channels: Literal["mean", "first"] = Field(
        "mean",
        description="What is kept of a file's channels. The model keeps it (model.json), and search and "
        "classification do the same. ms-clap joins channels end to end by accident; that is not offered.",
    )
    min_duration_s: Annotated[float, Field(ge=0)] = Field(0.1, description="Shorter clips are dropped and counted.")


class Pretraining(RunSettings):
    """How the backbone mini is made. Its settings are independent of `training`."""

    dataset: Name = Field("general", description="Captioned dataset to pretrain on.")
    seed: Seed = Field(0, description="Seed of weights and pairs.")
    vocabulary_size: Annotated[int, Field(ge=257)] = Field(
        1000, description="Tokens of the tokenizer; at least 256 bytes and the end token."
    )
    epochs: Count = Field(12, description="Passes over the dataset.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Clips per step.")
    learning_rate: Rate = Field(0.001, description="Peak learning rate.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(20, description="Steps of linear warm-up before the cosine.")
    batch_norm: Literal["frozen", "batch", "synchronized"] = Field(
        "batch", description="Statistics of the front end's BatchNorm; they start without any."
    )


class Run(Settings):
    """A model to train. It is evaluated on any number of targets."""

    objective: Literal["vanilla", "finetune", "composed", "concatenate"] = Field(
        description="vanilla trains nothing. finetune: Eq. (5). composed: Eq. (18). concatenate: text mixing."
    )
    labeled: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Datasets whose audio and captions are used."
    )
    unlabeled: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Datasets whose audio alone is used; every clip of all is an equally likely partner."
    )
    labeled_fraction: Share | None = Field(
        None,
        description="Share of the labeled clips, drawn by the seed, smaller shares within larger ones. Training takes "
        "as many steps as with all of them.",
    )
    unlabeled_fraction: Share | None = Field(
        None, description="Share of the clips of all unlabeled datasets together, drawn in the same way."
    )
    settings: RunSettings = Field(RunSettings(), description="Settings that differ from `training`.")


class Sweep(Settings):
    """The search of `make sweep`, on the validation splits."""

    learning_rates: Annotated[list[Rate], Field(min_length=1)] = Field(
        [0.00001, 0.00003, 0.0001, 0.0003], description="Candidates."
    )
    seed: Seed = Field(0, description="Seed of the candidates' trainings.")


class Evaluation(Settings):
    """How figures are computed."""

    protocol: Literal["paper", "best-of-5", "dcase"] = Field(
        "paper", description="Protocol of the tables; metrics.json holds all."
    )
    windows: Literal["mean", "first", "center"] = Field(
        "mean", description="Clips longer than the window: mean of evenly spaced windows' embeddings, or one window."
    )


class TableRow(Settings):
    """One row of a table: a run on a target."""

    target: Name = Field(description="Dataset on whose test split the row is evaluated.")
    method: Literal[
        "vanilla", "finetune", "text_mixing", "composed", "finetune_all_pairs", "concatenate", "composed_all_pairs"
    ] = Field(description="The row's name in the table.")
    run: Name = Field(description="Run of the row.")
    label: Text | None = Field(
        None, description="What distinguishes the row from others of its method and datasets, in plain text."
    )


class Curve(Settings):
    """R@1 in both directions against the amount of training data."""

    target: Name = Field(description="Dataset on whose test split all runs are evaluated.")
    against: Literal["labeled_clips", "labeled_captions", "unlabeled_hours"] = Field(
        description="Horizontal axis: captioned clips, captions, or hours of unlabeled audio, as the pairs count them."
    )
    lines: Annotated[dict[Name, Annotated[list[Name], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Runs of each line, by its name. Points are compared with the first line's at the same place."
    )


class Configuration(Settings):
    """What the experiment is. Where it runs is set in a profile."""

    study: Title = Field(Title(), description="What the tables say of the study.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0],
        description="Every run is trained once per seed; tables show means, and deviations of several seeds.",
    )
    backbone: BackboneChoice = Field(BackboneChoice(), description="The pretrained model that every run starts from.")
    soundscapes: Soundscapes = Field(Soundscapes(), description="The raw datasets of the small study.")
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)] = Field(
        description="Raw datasets and how to read them."
    )
    leaks: Literal["fail", "drop"] = Field(
        "fail",
        description="Training or unlabeled clips whose source or exact audio is also in a validation or test split: "
        "fail and name them, or drop each and list it next to the pairs.",
    )
    shards: ShardSettings = Field(ShardSettings(), description="Resampled mono audio in WebDataset tars.")
    pretrain: Pretraining = Field(Pretraining(), description="How the backbone mini is made.")
    training: RunSettings = Field(RunSettings(), description="Settings of every run.")
    runs: Annotated[dict[Name, Run], Field(min_length=1)] = Field(
        description="Models to train. `vanilla`, the backbone as it is, always exists."
    )
    sweep: Sweep = Field(Sweep(), description="The search of `make sweep`, on the validation splits.")
    evaluation: Evaluation = Field(Evaluation(), description="How figures are computed.")
    tables: Annotated[dict[Name, Annotated[list[TableRow], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Tables to write, each a list of rows."
    )
    curves: dict[Name, Curve] = Field({}, description="Curves to draw, as results/curves/NAME.csv and .svg.")


GENERAL = Dataset(adapter="folder", root=f"{GENERATED}general", captions=True, splits=Splits(train="train"))
"""The dataset that the small model is pretrained on, in studies that do not name it themselves."""


# --- references that a schema cannot check ---------------------------------------------------------------------------


def wrong_references(config: Configuration) -> Iterable[str]:
    """One line per reference to nothing, missing root and unfilled role."""
    for name, dataset in config.datasets.items():
        yield from wrong_dataset(name, dataset)
    for name, given in config.runs.items():
        yield from wrong_run(name, given, config)
    yield from wrong_rows(config)
    for name, curve in config.curves.items():
        yield from wrong_target(f"curves.{name}.target", curve.target, config.datasets)
        for line, names in curve.lines.items():
            for run in names:
                if run not in config.runs:
                    yield f"curves.{name}.lines.{line}: there is no run {run}; runs: {', '.join(config.runs)}"
                elif config.runs[run].objective == "vanilla":
                    yield f"curves.{name}.lines.{line}: {run} is vanilla, which is trained on nothing"
    if len(set(config.seeds)) < len(config.seeds):
        yield f"seeds: {config.seeds} holds one seed twice"
    published = config.study.published
    if published is not None and not Path(published).is_file():
        yield f"study.published: there is no file {published}"
    for key, path in (
        ("study.published", published),
        *((f"backbone.{key}", getattr(config.backbone, key)) for key in ("weights", "tokenizer")),
    ):
        if path is not None and set(path) & set("{}<>"):
            yield f"{key}: {path} holds one of {{ }} < >, which Snakemake replaces in its inputs; rename it"
    yield from wrong_backbone(config)


def wrong_dataset(name: str, dataset: Dataset) -> Iterable[str]:
    """What is wrong with where one dataset lies."""
    if (dataset.root is None) != (dataset.adapter is None) or (dataset.root is None) == (dataset.shards is None):
        yield f"datasets.{name}: give adapter and root of a raw tree, or shards, the address of ready ones"
    if dataset.tars is not None and dataset.shards is None:
        yield f"datasets.{name}.tars: is for ready shards, and there is no datasets.{name}.shards"
    generated = dataset.root == f"{GENERATED}{name}"
    if dataset.folder is not None and not generated and not Path(dataset.folder).is_dir():
        yield f"datasets.{name}.root: there is no directory {dataset.root}; set it to the raw tree of {name}"


def wrong_run(name: str, run: Run, config: Configuration) -> Iterable[str]:
    """What is wrong with one run: sets that its objective lacks or cannot use, and datasets that do not exist."""
    if name == "pretrain":
        yield "runs.pretrain: this name is the pretraining's; choose another"
    uses = {"labeled": run.objective != "vanilla", "unlabeled": run.objective == "composed"}
    for key, is_needed in uses.items():
        names = getattr(run, key)
        if is_needed and names is None:
            yield f"runs.{name}: the objective {run.objective} needs {key} datasets"
        if not is_needed and names is not None:
            yield f"runs.{name}.{key}: the objective {run.objective} uses no {key} datasets"
        if getattr(run, f"{key}_fraction") is not None and names is None:
            yield f"runs.{name}.{key}_fraction: the run has no {key} datasets"
        for dataset in names or []:
            if dataset not in config.datasets:
                yield f"runs.{name}.{key}: there is no dataset {dataset}; datasets: {', '.join(config.datasets)}"
            elif key == "labeled" and not config.datasets[dataset].captions:
                yield f"runs.{name}.labeled: dataset {dataset} has no captions (datasets.{dataset}.captions is false)"
    both = set(run.labeled or []) & set(run.unlabeled or [])
    if both:
        yield f"runs.{name}: {', '.join(sorted(both))} is labeled and unlabeled at once"
    if run.objective != "vanilla":
        try:
            training_settings(run.objective, resolved_settings(config, run))
        except PipelineError as error:
            yield f"runs.{name}: {error}"


def wrong_rows(config: Configuration) -> Iterable[str]:
    """What is wrong with the rows of the tables."""
    for table, rows in config.tables.items():
        seen: dict[tuple[str, str], str] = {}
        for index, row in enumerate(rows):
            place = f"tables.{table}.{index}"
            if (row.target, row.run) in seen:
                yield f"{place}: repeats {seen[row.target, row.run]}"
            seen[row.target, row.run] = place
            if row.run not in config.runs:
                yield f"{place}.run: there is no run {row.run}; runs: {', '.join(config.runs)}"
            yield from wrong_target(f"{place}.target", row.target, config.datasets)


def wrong_target(place: str, target: str, datasets: Mapping[str, Dataset]) -> Iterable[str]:
    """Why nothing can be evaluated on a dataset: it does not exist, has no test split or no captions."""
    if target not in datasets:
        yield f"{place}: there is no dataset {target}; datasets: {', '.join(datasets)}"
    elif datasets[target].splits.test is None:
        yield f"{place}: datasets.{target}.splits names no test split"
    elif not datasets[target].captions:
        yield f"{place}: dataset {target} has no captions to retrieve"


def wrong_backbone(config: Configuration) -> Iterable[str]:
    """What is wrong with the backbone's files, or with the pretraining of the small model."""
    backbone = config.backbone
    if backbone.name == "mini":
        if backbone.weights or backbone.tokenizer:
            yield "backbone: mini is made by the pretraining; weights and tokenizer must be null"
        name = config.pretrain.dataset
        if name not in config.datasets:
            yield f"pretrain.dataset: there is no dataset {name}; datasets: {', '.join(config.datasets)}"
        elif not config.datasets[name].captions:
            yield f"pretrain.dataset: dataset {name} has no captions (datasets.{name}.captions is false)"
    for key in ("weights", "tokenizer"):
        path = getattr(backbone, key)
        may_be_on_the_hub = backbone.name == "laion-clap" and key == "weights" and HUB_NAME.fullmatch(str(path))
        if path is not None and not Path(path).exists() and not may_be_on_the_hub:
            yield f"backbone.{key}: there is no {path}"


def resolved_settings(config: Configuration, run: Run) -> RunSettings:
    """The settings of a run: its own over `training`, over the backbone's defaults, over the shared defaults."""
    layers = [config.training, run.settings]
    given: dict[str, Any] = dict(BACKBONE_DEFAULTS[config.backbone.name])
    for layer in layers:
        given |= layer.model_dump(exclude_unset=True)
    return RunSettings(**given)


def training_settings(objective: str, settings: RunSettings) -> TrainingSettings:
    """The settings of a run that its training takes; raises `PipelineError` where nothing is left to train."""
    values = {name: getattr(settings, name) for name in OptimizationSettings.model_fields}
    return TrainingSettings(objective=objective, **values)  # type: ignore[arg-type]


# --- what the rules ask ----------------------------------------------------------------------------------------------


class Study:
    """A checked configuration, and what the rules of the workflow ask of it.

    Parameters of methods are named as wildcards. Paths are relative to the working directory of the workflow.
    """

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self.backbone = BACKBONES[config.backbone.name]
        self.protocol = config.evaluation.protocol
        self.name = config.study.name
        self.note = config.study.note if not self.starts_small else f"{config.study.note} {MINI_NOTE}"
        self.published = [config.study.published] if config.study.published else []

    @classmethod
    def of_config(cls, values: Mapping[str, Any]) -> Self:
        """Read a configuration; raises one `PipelineError` that lists every wrong key, value and reference."""
        values = dict(values)
        if isinstance(runs := values.get("runs"), Mapping):
            values["runs"] = {"vanilla": {"objective": "vanilla"}, **runs}
        try:
            config = Configuration.model_validate(values)
        except ValidationError as error:
            problems = describe_errors(error, Configuration)
        else:
            if config.backbone.name == "mini" and config.pretrain.dataset == "general":
                datasets = {"general": GENERAL, **config.datasets}
                config = config.model_copy(update={"datasets": {**config.datasets, "general": datasets["general"]}})
            problems = list(wrong_references(config))
        if problems:
            raise PipelineError("the configuration is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems))
        return cls(config)

    @property
    def starts_small(self) -> bool:
        """Whether runs on the user's own data start from the small model."""
        used = {name for run in self.config.runs.values() for name in [*(run.labeled or []), *(run.unlabeled or [])]}
        own = any(not self.config.datasets[name].is_generated for name in used)
        return self.config.backbone.name == "mini" and own

    # --- datasets and shards

    def raw_datasets(self) -> list[str]:
        """The datasets that are sharded here."""
        return [name for name, dataset in self.config.datasets.items() if dataset.shards is None]

    def ready_datasets(self) -> list[str]:
        """The datasets that come as shards."""
        return [name for name, dataset in self.config.datasets.items() if dataset.shards is not None]

    def generated_datasets(self) -> list[str]:
        """The datasets that are mixed from the recordings that ship with the project."""
        return [name for name, dataset in self.config.datasets.items() if dataset.is_generated]

    def root(self, dataset: str) -> str | None:
        """The raw tree of a dataset."""
        return self.config.datasets[dataset].folder

    def generated_root(self, dataset: str) -> list[str]:
        """The raw tree of a dataset if the study makes it, as an input of its catalogs."""
        return [f"{GENERATED}{dataset}"] if self.config.datasets[dataset].is_generated else []

    def listing(self, dataset: str, split: str) -> str:
        """A digest of all that decides the catalog of a split: names and sizes of files, content of lists.

        It replaces the times of files and folders, which change without a change of content.
        """
        from pipeline.data.adapters.listing import listing_digest

        given = self.config.datasets[dataset]
        if given.is_generated or given.folder is None:
            return "generated"
        others = [
            name for role in ("train", "validation", "test") if (name := given.splits.of(role)) not in (None, split)
        ]
        return listing_digest(Path(given.folder), split, others)

    def adapter(self, dataset: str) -> str | None:
        """The adapter that reads the raw tree."""
        return self.config.datasets[dataset].adapter

    def max_dropped_fraction(self, dataset: str) -> float:
        """The share of a split's rows that may be unusable."""
        return self.config.datasets[dataset].max_dropped_fraction

    def caption_flag(self, dataset: str) -> str:
        """Whether clips of this dataset need captions."""
        return "--labeled" if self.config.datasets[dataset].captions else "--unlabeled"

    def shards_address(self, dataset: str, split: str) -> str:
        """The address of the ready shards of a split."""
        return f"{(self.config.datasets[dataset].shards or '').rstrip('/')}/{split}"

    def tars(self, dataset: str) -> str:
        """Whether the tars of ready shards are copied."""
        return self.config.datasets[dataset].tars or "copy"

    def shard_parts(self) -> list[str]:
        """The names of the parts of a split that one job each makes: `0-of-4`, `1-of-4`, ..."""
        jobs = self.config.shards.jobs
        return [f"{number}-of-{jobs}" for number in range(jobs)]

    def repairs(self, dataset: str, split: str, part: str) -> str:
        """When a stage last found a damaged tar in a part of a split; another answer makes Snakemake plan the part."""
        path = Path(f"results/shards/{dataset}/{split}/parts/{part}.repairs")
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else "none"

    def split(self, dataset: str, role: Role) -> str:
        """DATASET/SPLIT of the split that a dataset uses in a role."""
        return f"{dataset}/{self.config.datasets[dataset].splits.of(role)}"

    def summary(self, dataset: str, role: Role) -> str:
        """The summary of the shards that a dataset uses in a role."""
        return f"results/shards/{self.split(dataset, role)}/manifest.json"

    def held_out_splits(self) -> list[str]:
        """DATASET/SPLIT of every validation and test split of the study: nothing of them may be trained on."""
        roles: tuple[Role, ...] = ("validation", "test")
        datasets = self.config.datasets.items()
        return sorted(
            {self.split(name, role) for name, dataset in datasets for role in roles if dataset.splits.of(role)}
        )

    def held_out(self, name: str) -> list[str]:
        """A file of the shards of every held-out split."""
        return [f"results/shards/{split}/{name}" for split in self.held_out_splits()]

    def used_splits(self) -> list[str]:
        """DATASET/SPLIT of every split that the study's tables and curves need, in the order of the datasets."""
        trained = {name for run in self.used_runs() for name in self.training_sets(run)}
        if self.config.backbone.name == "mini":
            trained.add(self.config.pretrain.dataset)
        splits = [self.split(name, "train") for name in self.config.datasets if name in trained]
        return list(dict.fromkeys([*splits, *self.held_out_splits()]))

    # --- runs

    def run(self, run: str) -> Run:
        """A run; `pretrain` is one, on the pretraining dataset."""
        if run == "pretrain":
            return Run(objective="finetune", labeled=[self.config.pretrain.dataset])
        return self.config.runs[run]

    def settings(self, run: str) -> RunSettings:
        """The settings of a run."""
        return self.config.pretrain if run == "pretrain" else resolved_settings(self.config, self.config.runs[run])

    def training_sets(self, run: str) -> list[str]:
        """The datasets that a run trains on."""
        return [*(self.run(run).labeled or []), *(self.run(run).unlabeled or [])]

    def summaries(self, names: Iterable[str] | None) -> list[str]:
        """The summaries of the training splits of some datasets."""
        return [self.summary(name, "train") for name in names or []]

    def labeled_summaries(self, run: str) -> list[str]:
        """The summaries of the labeled splits of a run."""
        return self.summaries(self.run(run).labeled)

    def unlabeled_summaries(self, run: str) -> list[str]:
        """The summaries of the unlabeled splits of a run."""
        return self.summaries(self.run(run).unlabeled)

    def pairing_flags(self, run: str) -> list[str]:
        """How the pairs of a run are drawn, as flags of `pair_clips`."""
        given, settings = self.run(run), self.settings(run)
        flags = [f"--labeled={_manifest(path)}" for path in self.labeled_summaries(run)]
        flags += [f"--unlabeled={_manifest(path)}" for path in self.unlabeled_summaries(run)]
        flags += ["--mix-labeled"] if given.objective == "concatenate" else []
        for name in ("labeled_fraction", "unlabeled_fraction"):
            if getattr(given, name) is not None:
                flags.append(f"--{name.replace('_', '-')}={getattr(given, name)}")
        values = settings.model_dump()
        drawing = PairingSettings(**{name: values[name] for name in PairingSettings.model_fields})
        return [*flags, f"--epochs={settings.epochs}", f"--batch-size={settings.batch_size}", *settings_flags(drawing)]

    def training_flags(self, run: str) -> list[str]:
        """The settings of a run as flags of `train`, or of `pretrain`."""
        return settings_flags(training_settings(self.run(run).objective, self.settings(run)))

    def candidate_flags(self, run: str, learning_rate: str) -> list[str]:
        """The settings of a run with another learning rate, for the sweep."""
        return [*self.training_flags(run), f"--learning-rate={float(learning_rate)}"]

    def pretrained(self) -> str:
        """The weights that every run starts from, and that `vanilla` is."""
        return f"results/pretrained/{self.config.backbone.name}/model.safetensors"

    def weights_flags(self) -> list[str]:
        """The files of the published weights that the configuration names, as flags."""
        given = self.config.backbone
        flags = {"--weights": given.weights, "--tokenizer": given.tokenizer}
        return [f"{flag}={path}" for flag, path in flags.items() if path is not None]

    def weights_files(self) -> list[str]:
        """The files of the published weights that exist; none when they come from the hub."""
        given = (self.config.backbone.weights, self.config.backbone.tokenizer)
        return [path for path in given if path is not None and Path(path).exists()]

    def model(self, run: str, seed: str) -> str:
        """The weights of a run."""
        if self.config.runs[run].objective == "vanilla":
            return self.pretrained()
        return f"results/runs/{run}/seed{seed}/model.safetensors"

    def seeds(self, run: str) -> list[int]:
        """The seeds of a run; vanilla has nothing random."""
        return self.config.seeds[:1] if self.config.runs[run].objective == "vanilla" else self.config.seeds

    def trained(self, name: str) -> list[str]:
        """A file of every trained run that the tables and curves use, for every seed."""
        return [
            f"results/runs/{run}/seed{seed}/{name}"
            for run in self.used_runs()
            if self.config.runs[run].objective != "vanilla"
            for seed in self.seeds(run)
        ]

    def pairs(self) -> list[str]:
        """The pairs of every trained run that the tables and curves use, for every seed."""
        return [
            f"results/pairs/{run}/seed{seed}.parquet"
            for run in self.used_runs()
            if self.config.runs[run].objective != "vanilla"
            for seed in self.seeds(run)
        ]

    def test_split(self, target: str) -> str | None:
        """The publisher's name of a target's test split."""
        return self.config.datasets[target].splits.test

    def test_summary(self, target: str) -> str:
        """The summary of a target's test split."""
        return self.summary(target, "test")

    def validation_split(self, target: str) -> str | None:
        """The publisher's name of a target's validation split."""
        return self.config.datasets[target].splits.validation

    def validation_summary(self, target: str) -> str:
        """The summary of a target's validation split."""
        return self.summary(target, "validation")

    def expected_clips_flags(self, target: str) -> list[str]:
        """How many clips the publisher's test split holds, where the configuration says so."""
        expected = self.config.datasets[target].expected_test_clips
        return [] if expected is None else [f"--n-audio-expected={expected}"]

    # --- tables, curves and page

    def rows(self, table: str | None = None) -> list[TableRow]:
        """The rows of a table, or of all."""
        tables = self.config.tables
        return [row for name in tables if table in (None, name) for row in tables[name]]

    def used_runs(self) -> list[str]:
        """The runs of all tables and curves, in the order of their first use."""
        curves = (run for curve in self.config.curves.values() for runs in curve.lines.values() for run in runs)
        return list(dict.fromkeys([*(row.run for row in self.rows()), *curves]))

    def row_files(self, row: TableRow, name: str) -> list[str]:
        """A file of the evaluations of a table's row, for all its seeds."""
        return [f"results/evaluations/{row.run}/seed{seed}/{row.target}/{name}" for seed in self.seeds(row.run)]

    def table_files(self, table: str | None, name: str) -> list[str]:
        """A file of the evaluations of every row of a table, or of all tables, once each."""
        return list(dict.fromkeys(path for row in self.rows(table) for path in self.row_files(row, name)))

    def table_metrics(self, table: str) -> list[str]:
        """The metrics of every row of a table."""
        return sorted(self.table_files(table, "metrics.json"))

    def table_contributions(self, table: str) -> list[str]:
        """The contributions of every row of a table."""
        return sorted(self.table_files(table, "contributions.parquet"))

    def table_datasets(self, table: str) -> list[str]:
        """The datasets that a table's runs train on: its columns of training data."""
        used = {name for row in self.rows(table) for name in self.training_sets(row.run)}
        return [name for name in self.config.datasets if name in used]

    def table_rows(self, table: str, name: str) -> list[str]:
        """The rows of a table as flags: --row 'TARGET|METHOD|CELL...|LABEL' FILE..., one cell per training dataset."""
        flags = []
        for row in self.rows(table):
            run = self.run(row.run)
            cells = [
                "A+T" if dataset in (run.labeled or []) else "A" if dataset in (run.unlabeled or []) else "-"
                for dataset in self.table_datasets(table)
            ]
            label = [] if row.label is None else [row.label]
            flags += ["--row", "|".join([row.target, row.method, *cells, *label]), *self.row_files(row, name)]
        return flags

    def metrics_rows(self, table: str) -> list[str]:
        """The rows of a table as flags, with their metrics."""
        return self.table_rows(table, "metrics.json")

    def contribution_rows(self, table: str) -> list[str]:
        """The rows of a table as flags, with their contributions."""
        return self.table_rows(table, "contributions.parquet")

    def curve_points(self, curve: str) -> list[str]:
        """The points of a curve as flags: --point LINE PAIRS CONTRIBUTIONS PAIRS CONTRIBUTIONS ..."""
        given, flags = self.config.curves[curve], []
        for line, runs in given.lines.items():
            for run in runs:
                flags += ["--point", line]
                for seed in self.seeds(run):
                    flags.append(f"results/pairs/{run}/seed{seed}.parquet")
                    flags.append(f"results/evaluations/{run}/seed{seed}/{given.target}/contributions.parquet")
        return flags

    def curve_files(self, curve: str) -> list[str]:
        """The pairs files and contributions of every run of a curve."""
        return sorted({word for word in self.curve_points(curve) if word.startswith("results/")})

    def curve_axis(self, curve: str) -> str:
        """The horizontal axis of a curve."""
        return self.config.curves[curve].against

    def evaluations(self) -> list[str]:
        """The metrics of every row of every table and every run of every curve."""
        curves = [word for curve in self.config.curves for word in self.curve_files(curve)]
        contributions = [word for word in curves if word.endswith("contributions.parquet")]
        return [*self.table_files(None, "metrics.json"), *contributions]

    def page_files(self, name: str) -> list[str]:
        """A file of the first seed of every trained run of the tables."""
        runs = dict.fromkeys(row.run for row in self.rows())
        return [
            f"results/runs/{run}/seed{self.seeds(run)[0]}/{name}"
            for run in runs
            if self.config.runs[run].objective != "vanilla"
        ]

    def page_summaries(self) -> list[str]:
        """The summaries of every split that the tables' runs are trained or evaluated on."""
        trained = {name for row in self.rows() for name in self.training_sets(row.run)}
        targets = dict.fromkeys(row.target for row in self.rows())
        train = [self.summary(name, "train") for name in self.config.datasets if name in trained]
        return [*train, *(self.summary(name, "test") for name in targets)]

    # --- sweep

    def sweep_files(self, name: str) -> list[str]:
        """A file of every candidate of the sweep on every target of its run.

        Raises `PipelineError` for a target without a validation split.
        """
        paths = []
        for rate in self.config.sweep.learning_rates:
            for row in self.rows():
                if self.config.datasets[row.target].splits.validation is None:
                    raise PipelineError(
                        f"datasets.{row.target}.splits names no validation split; learning rates are chosen on it"
                    )
                if self.config.runs[row.run].objective != "vanilla":
                    paths.append(f"results/sweep/{rate}/{row.run}/{row.target}/{name}")
        return list(dict.fromkeys(paths))

    # --- the start and the end of a workflow

    def opening_lines(self) -> list[str]:
        """What the person who starts the workflow should know."""
        return [MINI_NOTE] if self.starts_small else []

    def closing_lines(self) -> list[str]:
        """Where the tables and the page are, of those that exist."""
        tables = [Path(f"results/{table}.{kind}") for table in self.config.tables for kind in ("md", "csv", "tex")]
        paths = [*tables, Path("results/report/index.html")]
        return [f"result: {path}" for path in paths if path.exists()]


def _manifest(summary: str) -> str:
    return str(Path(summary).with_suffix(".parquet"))


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration, for editors and for the documentation."""
    found = Configuration.model_json_schema()
    found["title"] = "Configuration of a study"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def markdown() -> str:
    """The documentation page of the configuration, one table per group of settings."""
    definitions = schema()
    lines = ["# Configuration", "", "Generated from the models in `pipeline/study.py` by `make schema`.", ""]
    for group in [definitions, *(definitions["$defs"][name] for name in sorted(definitions["$defs"]))]:
        lines += [f"## {group['title']}", "", group["description"].partition("\n")[0], ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for name, key in group["properties"].items():
            default = "required" if name in group.get("required", []) else f"`{json.dumps(key.get('default'))}`"
            if isinstance(key.get("default"), dict):
                default = ""
            text = key.get("description") or _definition(key, definitions).get("description", "").partition("\n")[0]
            cells = [f"`{name}`", default, _values(key), text]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _definition(key: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions["$defs"].get(key.get("$ref", "").rpartition("/")[2], {})


def _values(key: Mapping[str, Any]) -> str:
    """The values that a key takes, in a few words."""
    if "anyOf" in key:
        return ", ".join(filter(None, map(_values, key["anyOf"])))
    if "$ref" in key:
        return f"see {key['$ref'].rpartition('/')[2]}"
    if "enum" in key:
        return ", ".join(map(str, key["enum"]))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {key[name]:g}" for name, sign in bounds.items() if name in key and key[name] < 2**53]
    return " ".join([key.get("type", ""), *limits])


if __name__ == "__main__":
    if sys.argv[1:] == ["--markdown"]:
        print(markdown(), end="")
    else:
        json.dump(schema(), sys.stdout, indent=2, ensure_ascii=False)
        print()
