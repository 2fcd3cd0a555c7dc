"""The configuration of a study: one typed model per group of settings, with defaults, bounds and descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from pipeline.data.small_study.styles import STYLES
from pipeline.models.backbones import PUBLISHED
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
)

GENERATED = "results/raw/"
"""The small study mixes its datasets into this folder."""

GENERATED_ROOTS = tuple(f"{GENERATED}{name}" for name in STYLES)
"""The raw trees that it mixes."""

OF_TEST_SPLITS = ("dcase2025", "moments")
"""Protocols whose data only test splits have."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Role = Literal["train", "validation", "test"]
Adapter = Literal["clotho", "audiocaps", "audioset", "folder", "parquet", "webdataset"]
ONE_OR_SEVERAL = BeforeValidator(
    lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
)
"""Annotates a list that may be given as its only value."""
BackboneName = Literal["mini", "msclap-2022", "msclap-2023", "laion-clap"]


class RunSettings(BatchPlan, PairingSettings, OptimizationSettings):
    """All settings of a run: its batches, its pairs and its training."""


BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "mini": {"learning_rate": 0.0003, "a2t_learning_rate": 0.001},
    **{name: {"learning_rate": 0.00005, "encoder_regularisation": True} for name in PUBLISHED},
}
"""Defaults of settings that depend on the backbone: large steps would ruin published weights."""


class Title(Settings):
    """Name, note and published figures in the tables."""

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
        description="mini is trained on the small study's sounds, to try the pipeline. The paper uses msclap-2023.",
    )
    weights: Text | None = Field(
        None,
        description="CLAP_weights_2022.pth or CLAP_weights_2023.pth; for laion-clap a folder with transformers' "
        "ClapModel or a name on the hub. null downloads from the hub. mini has none.",
    )
    tokenizer: Text | None = Field(
        None,
        description="Folder of the tokenizer: GPT-2's, bert-base-uncased's (msclap-2022) or RoBERTa's (laion-clap). "
        "null downloads it from the hub, or reads the one next to laion-clap's weights. mini trains its own.",
    )


class Soundscapes(Settings):
    """The raw datasets of the small study: mixed from data/recordings into results/raw."""

    seed: Seed = Field(0, description="The same seed gives the same bytes.")
    scale: Rate = Field(1.0, description="The number of clips of every split is multiplied by it.")


class Moments(Settings):
    """Retrieval of moments of the test split's recordings."""

    hop_s: Annotated[float, Field(ge=0.1)] = Field(
        1.0, description="Seconds from the start of a window of a recording to that of the next."
    )


class Splits(Settings):
    """The publisher's split in each role."""

    train: SplitName = Field(description="Split for training: its captioned clips, or its audio alone.")
    validation: SplitName | None = Field(None, description="Split on which settings are chosen.")
    test: SplitName | None = Field(None, description="Split on which the tables evaluate.")

    def of(self, role: Role) -> str | None:
        """Return the split in a role; None without one."""
        return getattr(self, role)


Seconds = Annotated[float, Field(ge=0.1, le=86_400)]


class Segments(Settings):
    """Long recordings as clips: every file of the dataset is cut into segments of one length."""

    length_s: Seconds = Field(description="Length of a segment in seconds; the backbone's window or more.")
    hop_s: Seconds | None = Field(
        None,
        description="Seconds from the start of a segment to that of the next. null: length_s, so that they neither "
        "overlap nor leave gaps.",
    )
    min_share: Fraction = Field(
        0.5,
        description="The last piece of a recording is dropped as too_short if it is shorter than this share of "
        "length_s. It does not count against max_dropped_fraction.",
    )
    min_level_dbfs: Annotated[float, Field(le=0)] | None = Field(
        None,
        description="Segments and captioned stretches of a lower mean level (RMS) are dropped as silent. They do not "
        "count against max_dropped_fraction. null: only pieces without sound are.",
    )


class Dataset(Settings):
    """One dataset: a raw tree and how to read it, or ready shards."""

    adapter: Adapter | None = Field(
        None,
        description="Layout of the raw tree. parquet: mirrors on the Hugging Face hub with audio in a column. "
        "webdataset: tars of KEY.flac (or other audio) with KEY.json or KEY.txt. Both are read without unpacking.",
    )
    root: Text | None = Field(None, description="Folder of the raw tree; ~ is the home folder.")
    shards: Text | None = Field(
        None,
        description="Address of a folder with ready shards, instead of adapter and root: https://..., s3://... or a "
        "path. It holds SPLIT/manifest.json for each split.",
    )
    tars: Literal["copy", "remote"] | None = Field(
        None, description="For ready shards. copy (the default) copies the tars; remote reads them by byte range."
    )
    captions: bool = Field(description="true: every clip needs a caption; clips without one are dropped and counted.")
    paraphrases: Text | None = Field(
        None,
        description="CSV with further captions of the training split: file_name, paraphrase and, to check them, "
        "caption. They are drawn like the clips' own captions. Test and validation queries stay the publisher's.",
    )
    max_dropped_fraction: Fraction = Field(
        0.0,
        description="Share of a split's rows that may be unusable (missing, undecodable, silent, without caption). "
        "A split with more of them fails and names them.",
    )
    segments: Segments | None = Field(
        None,
        description="Cut long recordings into segments, one clip each (adapters folder, webdataset and parquet). null: "
        "a file is one clip. Rows of a list with start_s and end_s stay as they are.",
    )
    expected_test_clips: Count | None = Field(
        None, description="Number of clips in the publisher's test split; the tables note when some are missing."
    )
    relevance: Text | None = Field(
        None,
        description="Relevance file of the test split, for the protocol dcase2025: a CSV with the columns query (a "
        "caption) and audio_filenames (the list of its relevant clips), as DCASE 2025 publishes for Clotho.",
    )
    moments: Moments | None = Field(
        None,
        description="The test split is captioned stretches of recordings (start_s and end_s in its list), and moments "
        "of the whole recordings are retrieved, too: the protocol moments. `{}` takes the defaults.",
    )
    splits: Splits = Field(description="The publisher's split in each role.")

    @property
    def folder(self) -> str | None:
        """The root, with ~ replaced by the home folder; None for ready shards."""
        return None if self.root is None else str(Path(self.root).expanduser())

    @property
    def is_generated(self) -> bool:
        """Whether the workflow mixes the raw tree from the recordings of the project. Several datasets may read it."""
        return self.root in GENERATED_ROOTS


class ShardSettings(Settings):
    """Resampled mono audio in WebDataset tars."""

    clips_per_shard: Count = Field(
        512,
        description="Maximum of catalog rows per tar; the average is 60 % of it. Tars end where new clips "
        "later change the fewest tars.",
    )
    jobs: Count = Field(
        4,
        description="Jobs per split that make its tars. Any number gives the same tars. Use about as many as the "
        "machine or cluster runs at once. Planning time grows with this number, not with the data.",
    )
    format: Literal["wav", "flac"] = Field(
        "wav", description="wav: 16-bit, read by offset. flac: half the size, 30 times the reading time."
    )
    channels: Literal["mean", "first"] = Field(
        "mean",
        description="Mono signal of a file with several channels: their mean or the first. model.json records it, and "
        "search and classification use it too. ms-clap joins channels end to end by accident; that is not offered.",
    )
    min_duration_s: Annotated[float, Field(ge=0)] = Field(0.1, description="Shorter clips are dropped and counted.")


class Pretraining(RunSettings):
    """The pretraining of the backbone mini. Its settings are independent of `training`."""

    dataset: Name = Field("general", description="Captioned dataset to pretrain on.")
    seed: Seed = Field(0, description="Seed of weights and pairs.")
    vocabulary_size: Annotated[int, Field(ge=257)] = Field(
        1000, description="Tokens of the tokenizer: at least the 256 bytes and the end token."
    )
    epochs: Count = Field(6, description="Passes over the dataset.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Clips per step.")
    learning_rate: Rate = Field(0.001, description="Peak learning rate.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(20, description="Steps of linear warm-up before the cosine.")
    batch_norm: Literal["frozen", "batch", "synchronized"] = Field(
        "batch",
        description="Statistics of the front end's BatchNorm. The model starts without any, so they are learned.",
    )


class Run(Settings):
    """A model to train. Any number of targets can evaluate it."""

    objective: Literal["vanilla", "finetune", "composed", "concatenate"] = Field(
        description="vanilla trains nothing. finetune: Eq. (5). composed: Eq. (18). concatenate: text mixing."
    )
    labeled: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Datasets whose audio and captions are used."
    )
    unlabeled: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Datasets whose audio alone is used. Every clip of all of them is an equally likely partner."
    )
    labeled_fraction: Share | None = Field(
        None,
        description="Share of the labeled clips, drawn with the seed. Smaller shares are subsets of larger ones. "
        "Training takes as many steps as with all clips.",
    )
    unlabeled_fraction: Share | None = Field(
        None, description="Share of the clips of all unlabeled datasets together, drawn in the same way."
    )
    teacher: Annotated[list[Name], Field(min_length=1), ONE_OR_SEVERAL] | None = Field(
        None,
        description="Runs whose similarities over a batch are soft targets, averaged: one name or a list. They are "
        "trained first, with the same seed. See `teacher_weight`.",
    )
    average_with_pretrained: bool = Field(
        False,
        description="Evaluate an average of the trained and the pretrained weights (WiSE-FT). Its proportion is chosen "
        "on the validation splits of the run's targets.",
    )
    settings: RunSettings = Field(RunSettings(), description="Settings that differ from `training`.")


class Sweep(Settings):
    """The search of `make sweep`, on the validation splits."""

    grid: Annotated[dict[Name, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = Field(
        {"learning_rate": [0.00001, 0.00003, 0.0001, 0.0003]},
        description="Candidates: every combination of these values. Keys are settings of `training`, or objective.",
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0], description="Every candidate is trained once per seed. Their mean is compared."
    )
    tables: list[Name] = Field([], description="Tables whose runs are searched. Empty: all tables.")


class Evaluation(Settings):
    """How the figures are computed."""

    protocol: Literal["paper", "best-of-5", "dcase", "dcase2025", "moments"] = Field(
        "paper",
        description="Protocol of the tables; metrics.json holds the figures of all protocols. dcase2025 needs the key "
        "`relevance` of each target, moments the key `moments`.",
    )
    windows: Literal["mean", "first", "center"] = Field(
        "mean",
        description="Clips longer than the window: mean: the mean of the embeddings of evenly spaced windows; "
        "first, center: one window.",
    )


class Pool(Settings):
    """The description of the unlabeled audio on the page: does it cover the clips that a target wants to find?"""

    against: list[Literal["validation", "test"]] = Field(
        [],
        description="Held-out splits of the targets that the unlabeled audio of their runs is compared with. Empty: "
        "nothing is described. Each clip is embedded once with the pretrained model. Choose audio by validation: a "
        "choice by test would make the test figures too high.",
    )
    near_duplicates: bool = Field(
        True,
        description="Whether clips that share a stretch of sound with a held-out clip are looked for and counted. It "
        "takes about 10 ms per clip.",
    )


class TableRow(Settings):
    """One row of a table: a run on a target."""

    target: Name = Field(description="Dataset on whose test split the row is evaluated.")
    method: Literal[
        "vanilla", "finetune", "text_mixing", "composed", "finetune_all_pairs", "concatenate", "composed_all_pairs"
    ] = Field(description="The row's name in the table.")
    run: Name = Field(description="Run of the row.")
    label: Text | None = Field(
        None, description="Plain text that distinguishes the row from others with the same method and datasets."
    )


class Curve(Settings):
    """R@1 in both directions against the amount of training data."""

    target: Name = Field(description="Dataset on whose test split all runs are evaluated.")
    against: Literal["labeled_clips", "labeled_captions", "unlabeled_hours"] = Field(
        description="Horizontal axis: captioned clips, captions, or hours of unlabeled audio, counted in the pairs."
    )
    lines: Annotated[dict[Name, Annotated[list[Name], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Runs of each line, by its name. Points are compared with the first line's point at the same value."
    )


class Configuration(Settings):
    """The experiment. A profile sets where it runs."""

    study: Title = Field(Title(), description="Name, note and published figures in the tables.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0],
        description="Every run is trained once per seed. Tables show means and, for several seeds, deviations.",
    )
    backbone: BackboneChoice = Field(BackboneChoice(), description="The pretrained model that every run starts from.")
    soundscapes: Soundscapes = Field(Soundscapes(), description="The raw datasets of the small study.")
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)] = Field(
        description="Datasets by name: how to read the raw files, or where the ready shards are."
    )
    leaks: Literal["fail", "drop"] = Field(
        "fail",
        description="Training or unlabeled clips whose source or exact audio is also in a validation or test split. "
        "fail: stop and name them. drop: leave them out and list them next to the pairs.",
    )
    leak_unit: Literal["recording", "stretch"] = Field(
        "recording",
        description="How much is held out with a stretch of a long recording. recording: nothing of it is trained on. "
        "stretch: only stretches that overlap are left out. Neighbouring stretches share background and animals, so "
        "figures may then be too good.",
    )
    shards: ShardSettings = Field(ShardSettings(), description="Resampled mono audio in WebDataset tars.")
    pretrain: Pretraining = Field(Pretraining(), description="The pretraining of the backbone mini.")
    training: RunSettings = Field(RunSettings(), description="Settings of every run.")
    runs: Annotated[dict[Name, Run], Field(min_length=1)] = Field(
        description="Models to train. `vanilla`, the backbone as it is, always exists."
    )
    sweep: Sweep = Field(Sweep(), description="The search of `make sweep`, on the validation splits.")
    evaluation: Evaluation = Field(Evaluation(), description="How the figures are computed.")
    pool: Pool = Field(Pool(), description="The description of the unlabeled audio on the page.")
    tables: Annotated[dict[Name, Annotated[list[TableRow], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Tables to write, each a list of rows."
    )
    curves: dict[Name, Curve] = Field({}, description="Curves to draw, as results/curves/NAME.csv and .svg.")


GENERAL = Dataset(adapter="folder", root=f"{GENERATED}general", captions=True, splits=Splits(train="train"))
"""The default of `pretrain.dataset`, for studies whose `datasets` do not have it."""


def resolved_settings(config: Configuration, run: Run) -> RunSettings:
    """Return the settings of a run: its own, then those of `training`, then the backbone's and the shared defaults."""
    own = [layer.model_dump(exclude_unset=True) for layer in (config.training, run.settings)]
    return RunSettings(**(BACKBONE_DEFAULTS[config.backbone.name] | own[0] | own[1]))


def targets(config: Configuration, run: str) -> list[str]:
    """Return the datasets on which tables and curves evaluate a run, in the order of `datasets`."""
    rows = (row.target for table in config.tables.values() for row in table if row.run == run)
    curves = (curve.target for curve in config.curves.values() if any(run in runs for runs in curve.lines.values()))
    used = {*rows, *curves}
    return [name for name in config.datasets if name in used]


def training_settings(objective: str, settings: RunSettings) -> TrainingSettings:
    """Return the settings that the training of a run takes; raises `PipelineError` when no loss term is left."""
    values = {name: getattr(settings, name) for name in OptimizationSettings.model_fields}
    return TrainingSettings(objective=objective, **values)  # type: ignore[arg-type]
