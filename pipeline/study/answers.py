"""The answers that the rules of the workflow need from a study: paths, values and command-line flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError

from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES
from pipeline.study.candidates import candidate_name, candidate_run, candidate_values, candidates
from pipeline.study.configuration import (
    GENERAL,
    OF_TEST_SPLITS,
    Configuration,
    Role,
    Run,
    RunSettings,
    TableRow,
    resolved_settings,
    targets,
    training_settings,
)
from pipeline.study.references import wrong_candidates, wrong_references
from pipeline.training.settings import PairingSettings, describe_errors, settings_flags

MINI_NOTE = (
    "The runs start from the small model (backbone mini), which knows nothing but the sounds of the small study that "
    "ships with the project; name published weights in `backbone` for figures that mean more."
)
"""Note in tables, page and log when a study of the user's own data starts from the small model."""


class Study:
    """A checked configuration with the answers that the rules of the workflow need.

    Parameters of methods have the names of wildcards. Paths are relative to the working directory of the workflow.
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
        """Return the study of a configuration; raises one `PipelineError` with every wrong key, value and reference."""
        values = dict(values)
        if isinstance(runs := values.get("runs"), Mapping):
            values["runs"] = {"vanilla": {"objective": "vanilla"}, **runs}
        try:
            config = Configuration.model_validate(values)
        except ValidationError as error:
            problems = describe_errors(error, Configuration)
        else:
            if config.backbone.name == "mini" and config.pretrain.dataset == "general":
                general = config.datasets.get("general", GENERAL)
                config = config.model_copy(update={"datasets": {**config.datasets, "general": general}})
            problems = list(wrong_references(config))
        if problems:
            raise PipelineError("the configuration is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems))
        return cls(config)

    @property
    def starts_small(self) -> bool:
        """Whether runs on the user's own data start from the small model."""
        used = {name for run in self.config.runs for name in self.training_sets(run)}
        own = any(not self.config.datasets[name].is_generated for name in used)
        return self.config.backbone.name == "mini" and own

    # --- datasets and shards

    def raw_datasets(self) -> list[str]:
        """Return the datasets that the workflow shards."""
        return [name for name, dataset in self.config.datasets.items() if dataset.shards is None]

    def ready_datasets(self) -> list[str]:
        """Return the datasets that are ready shards."""
        return [name for name, dataset in self.config.datasets.items() if dataset.shards is not None]

    def generated_datasets(self) -> list[str]:
        """Return the names of the raw trees that are mixed from the recordings of the project."""
        roots = {dataset.root for dataset in self.config.datasets.values() if dataset.is_generated}
        return sorted(Path(root).name for root in roots if root is not None)

    def root(self, dataset: str) -> str | None:
        """Return the folder of a dataset's raw tree."""
        return self.config.datasets[dataset].folder

    def generated_root(self, dataset: str) -> list[str]:
        """Return the raw tree of a dataset, as an input of its catalogs, if the workflow mixes it."""
        given = self.config.datasets[dataset]
        return [given.root] if given.root is not None and given.is_generated else []

    def listing(self, dataset: str, split: str) -> str:
        """Return a digest of all that decides the catalog of a split: names and sizes of files, content of lists.

        Times of files and folders have no part in it, because they change without a change of content.
        """
        from pipeline.data.adapters.listing import listing_digest

        given = self.config.datasets[dataset]
        if given.is_generated or given.folder is None:
            return "generated"
        splits = (given.splits.train, given.splits.validation, given.splits.test)
        others = [name for name in splits if name not in (None, split)]
        return listing_digest(Path(given.folder), split, others)

    def adapter(self, dataset: str) -> str | None:
        """Return the adapter that reads the raw tree."""
        return self.config.datasets[dataset].adapter

    def max_dropped_fraction(self, dataset: str) -> float:
        """Return the share of a split's rows that may be unusable."""
        return self.config.datasets[dataset].max_dropped_fraction

    def caption_flag(self, dataset: str) -> str:
        """Return the flag that says whether clips of this dataset need captions."""
        return "--labeled" if self.config.datasets[dataset].captions else "--unlabeled"

    def segment_flags(self, dataset: str) -> list[str]:
        """Return the options that cut the recordings of a dataset into segments: none for whole files."""
        segments = self.config.datasets[dataset].segments
        if segments is None:
            return []
        hop_s = segments.length_s if segments.hop_s is None else segments.hop_s
        values = {"length-s": segments.length_s, "hop-s": hop_s, "min-share": segments.min_share}
        return [f"--segment-{name}={value}" for name, value in values.items()]

    def level_flag(self, dataset: str) -> list[str]:
        """Return the option that drops soft segments of a dataset, if it has a limit."""
        segments = self.config.datasets[dataset].segments
        if segments is None or segments.min_level_dbfs is None:
            return []
        return [f"--min-level-dbfs={segments.min_level_dbfs}"]

    def shards_address(self, dataset: str, split: str) -> str:
        """Return the address of the ready shards of a split."""
        return f"{(self.config.datasets[dataset].shards or '').rstrip('/')}/{split}"

    def tars(self, dataset: str) -> str:
        """Return how the tars of ready shards are read: `copy` or `remote`."""
        return self.config.datasets[dataset].tars or "copy"

    def shard_parts(self) -> list[str]:
        """Return the names of the parts of a split, one per job: `0-of-4`, `1-of-4`, ..."""
        jobs = self.config.shards.jobs
        return [f"{number}-of-{jobs}" for number in range(jobs)]

    def repairs(self, dataset: str, split: str, part: str) -> str:
        """Return when a stage last found a damaged tar in a part; a new answer makes Snakemake plan the part again."""
        path = Path(f"results/shards/{dataset}/{split}/parts/{part}.repairs")
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else "none"

    def split(self, dataset: str, role: Role) -> str:
        """Return DATASET/SPLIT of the split that a dataset uses in a role."""
        return f"{dataset}/{self.config.datasets[dataset].splits.of(role)}"

    def summary(self, dataset: str, role: Role) -> str:
        """Return the summary of the shards that a dataset uses in a role."""
        return f"results/shards/{self.split(dataset, role)}/manifest.json"

    def held_out_splits(self) -> list[str]:
        """Return DATASET/SPLIT of every validation and test split; no clip of them may be trained on."""
        roles: tuple[Role, ...] = ("validation", "test")
        datasets = self.config.datasets.items()
        return sorted(
            {self.split(name, role) for name, dataset in datasets for role in roles if dataset.splits.of(role)}
        )

    def held_out(self, name: str) -> list[str]:
        """Return a file of the shards of every held-out split."""
        return [f"results/shards/{split}/{name}" for split in self.held_out_splits()]

    def used_splits(self) -> list[str]:
        """Return DATASET/SPLIT of every split that tables and curves need, in the order of the datasets."""
        trained = {name for run in self.used_runs() for name in self.training_sets(run)}
        if self.config.backbone.name == "mini":
            trained.add(self.config.pretrain.dataset)
        splits = [self.split(name, "train") for name in self.config.datasets if name in trained]
        return list(dict.fromkeys([*splits, *self.held_out_splits()]))

    # --- runs

    def run(self, run: str) -> Run:
        """Return a run; `pretrain` is one, on the pretraining dataset."""
        if run == "pretrain":
            return Run(objective="finetune", labeled=[self.config.pretrain.dataset])
        return self.config.runs[run]

    def settings(self, run: str) -> RunSettings:
        """Return the settings of a run."""
        return self.config.pretrain if run == "pretrain" else resolved_settings(self.config, self.config.runs[run])

    def training_sets(self, run: str) -> list[str]:
        """Return the datasets that a run trains on."""
        given = self.run(run)
        return [*(given.labeled or []), *(given.unlabeled or [])]

    def training_summaries(self, run: str, use: Literal["labeled", "unlabeled"]) -> list[str]:
        """Return the summaries of the training splits that a run uses with captions, or as audio alone."""
        return [self.summary(name, "train") for name in getattr(self.run(run), use) or []]

    def paraphrases(self, run: str) -> list[str]:
        """Return the files of paraphrases of a run's labeled datasets."""
        return [path for name in self.run(run).labeled or [] for path in self._paraphrases_of(name)]

    def _paraphrases_of(self, dataset: str) -> list[str]:
        path = self.config.datasets[dataset].paraphrases
        return [] if path is None else [str(Path(path).expanduser())]

    def pairing_flags(self, run: str) -> list[str]:
        """Return how the pairs of a run are drawn, as flags of `pair_clips`."""
        given, settings = self.run(run), self.settings(run)
        flags = [f"--labeled={_manifest(path)}" for path in self.training_summaries(run, "labeled")]
        flags += [f"--unlabeled={_manifest(path)}" for path in self.training_summaries(run, "unlabeled")]
        for name in given.labeled or []:
            for path in self._paraphrases_of(name):
                flags += ["--paraphrases", _manifest(self.summary(name, "train")), path]
        has_text_mixing = given.objective == "composed" and settings.text_mixing_weight > 0
        flags += ["--mix-labeled"] if given.objective == "concatenate" or has_text_mixing else []
        for name in ("labeled_fraction", "unlabeled_fraction"):
            if getattr(given, name) is not None:
                flags.append(f"--{name.replace('_', '-')}={getattr(given, name)}")
        drawing = PairingSettings.of(settings.model_dump())
        return [*flags, f"--epochs={settings.epochs}", f"--batch-size={settings.batch_size}", *settings_flags(drawing)]

    def training_flags(self, run: str, seed: str) -> list[str]:
        """Return the settings of a run, its teachers and its validation splits, as flags of `train` or `pretrain`."""
        settings = self.settings(run)
        flags = settings_flags(training_settings(self.run(run).objective, settings))
        flags += [f"--teacher={Path(path).parent}" for path in self.teachers(run, seed)]
        return flags + (self.validation_flags(run) if settings.validate_every else [])

    def validated_while_trained(self, run: str) -> list[str]:
        """Return the summaries of the validation splits on which the training of a run is validated."""
        return self.validation_summaries(run) if self.settings(run).validate_every else []

    def validation_summaries(self, run: str) -> list[str]:
        """Return the summaries of the validation splits of a run's targets."""
        return [self.summary(target, "validation") for target in targets(self.config, run)]

    def validation_flags(self, run: str) -> list[str]:
        """Return the validation splits of a run's targets, and the protocol of the figures, as flags."""
        folders = [f"--validation={Path(summary).parent}" for summary in self.validation_summaries(run)]
        return [*folders, f"--validation-protocol={self.protocol}"]

    def teachers(self, run: str, seed: str) -> list[str]:
        """Return the weights of a run's teachers, which have its seed."""
        return [self.model(teacher, seed) for teacher in self.run(run).teacher or []]

    def pretrained(self) -> str:
        """Return the weights that every run starts from; `vanilla` evaluates them as they are."""
        return f"results/pretrained/{self.config.backbone.name}/model.safetensors"

    def weights_flags(self) -> list[str]:
        """Return the files of the published weights that the configuration names, as flags."""
        given = self.config.backbone
        flags = {"--weights": given.weights, "--tokenizer": given.tokenizer}
        return [f"{flag}={path}" for flag, path in flags.items() if path is not None]

    def weights_files(self) -> list[str]:
        """Return the files of the published weights that exist; none when they come from the hub."""
        given = (self.config.backbone.weights, self.config.backbone.tokenizer)
        return [path for path in given if path is not None and Path(path).exists()]

    def model(self, run: str, seed: str) -> str:
        """Return the weights of a run."""
        given = self.config.runs[run]
        if given.objective == "vanilla":
            return self.pretrained()
        folder = "averaged" if given.average_with_pretrained else "runs"
        return f"results/{folder}/{run}/seed{seed}/model.safetensors"

    def seeds(self, run: str) -> list[int]:
        """Return the seeds of a run; vanilla has nothing random."""
        return self.config.seeds[:1] if self.config.runs[run].objective == "vanilla" else self.config.seeds

    def trained_runs(self, rows: Iterable[TableRow] | None = None) -> list[str]:
        """Return the runs of tables and curves, or of some rows, that are trained: all but `vanilla`."""
        runs = self.used_runs() if rows is None else dict.fromkeys(row.run for row in rows)
        return [run for run in runs if self.config.runs[run].objective != "vanilla"]

    def models(self) -> list[str]:
        """Return the weights of every trained run of tables and curves, for every seed."""
        return [self.model(run, str(seed)) for run in self.trained_runs() for seed in self.seeds(run)]

    def pairs(self) -> list[str]:
        """Return the pairs of every trained run of tables and curves, for every seed."""
        return [f"results/pairs/{run}/seed{seed}.parquet" for run in self.trained_runs() for seed in self.seeds(run)]

    # --- targets

    def target_split(self, target: str, role: Role) -> str | None:
        """Return the publisher's name of the split that a target uses in a role."""
        return self.config.datasets[target].splits.of(role)

    def target_summary(self, target: str, role: Role) -> str:
        """Return the summary of the split that a target uses in a role."""
        return self.summary(target, role)

    def expected_clips_flags(self, target: str) -> list[str]:
        """Return the number of clips of the publisher's test split as a flag, where the configuration names it."""
        expected = self.config.datasets[target].expected_test_clips
        return [] if expected is None else [f"--n-audio-expected={expected}"]

    def relevance_files(self, target: str) -> list[str]:
        """Return the relevance file of a target, and the summary of the split whose clips it names; none without it."""
        relevance = self.config.datasets[target].relevance
        return [] if relevance is None else [relevance, self.target_summary(target, "test")]

    def relevance_flags(self, target: str) -> list[str]:
        """Return the relevance file of a target, as flags of `evaluate`."""
        files = self.relevance_files(target)
        return [f"--relevance={files[0]}", f"--shards={Path(files[1]).parent}"] if files else []

    def moment_files(self, target: str) -> list[str]:
        """Return the catalog of a target's test split, if moments of its recordings are retrieved."""
        found = self.config.datasets[target].moments
        return [] if found is None else [f"results/catalogs/{self.split(target, 'test')}.parquet"]

    def moment_flags(self, target: str) -> list[str]:
        """Return the windows of a target's recordings, as flags of `embed`."""
        found = self.config.datasets[target].moments
        return [] if found is None else [f"--moments={self.moment_files(target)[0]}", f"--hop-s={found.hop_s}"]

    def protocol_flags(self, target: str) -> list[str]:
        """Return the protocols of a target that need more than its clips and captions, as flags of `evaluate`."""
        return [*self.relevance_flags(target), *(["--moments"] if self.config.datasets[target].moments else [])]

    @property
    def sweep_protocol(self) -> str:
        """The protocol of the sweep: `paper` instead of those that validation splits lack the data for."""
        return "paper" if self.protocol in OF_TEST_SPLITS else self.protocol

    # --- tables, curves and page

    def rows(self, table: str | None = None) -> list[TableRow]:
        """Return the rows of a table; without a name, of all tables."""
        tables = self.config.tables
        return [row for name in tables if table in (None, name) for row in tables[name]]

    def used_runs(self) -> list[str]:
        """Return the runs of all tables and curves, in the order of their first use."""
        curves = (run for curve in self.config.curves.values() for runs in curve.lines.values() for run in runs)
        return list(dict.fromkeys([*(row.run for row in self.rows()), *curves]))

    def row_files(self, row: TableRow, name: str) -> list[str]:
        """Return a file of the evaluations of a table's row, for all its seeds."""
        return [f"results/evaluations/{row.run}/seed{seed}/{row.target}/{name}" for seed in self.seeds(row.run)]

    def table_files(self, table: str | None, name: str) -> list[str]:
        """Return a file of the evaluations of every row of a table, or of all tables, once each."""
        return list(dict.fromkeys(path for row in self.rows(table) for path in self.row_files(row, name)))

    def table_datasets(self, table: str) -> list[str]:
        """Return the datasets that a table's runs train on: its columns of training data."""
        used = {name for row in self.rows(table) for name in self.training_sets(row.run)}
        return [name for name in self.config.datasets if name in used]

    def table_rows(self, table: str, name: str) -> list[str]:
        """Return the rows of a table as flags: --row 'TARGET|METHOD|CELL...|LABEL' FILE...

        A row has one cell per training dataset.
        """
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

    def curve_points(self, curve: str) -> list[str]:
        """Return the points of a curve as flags: --point LINE PAIRS CONTRIBUTIONS PAIRS CONTRIBUTIONS ..."""
        given, flags = self.config.curves[curve], []
        for line, runs in given.lines.items():
            for run in runs:
                flags += ["--point", line]
                for seed in self.seeds(run):
                    flags.append(f"results/pairs/{run}/seed{seed}.parquet")
                    flags.append(f"results/evaluations/{run}/seed{seed}/{given.target}/contributions.parquet")
        return flags

    def curve_files(self, curve: str) -> list[str]:
        """Return the pairs files and contributions of every run of a curve."""
        return sorted({word for word in self.curve_points(curve) if word.startswith("results/")})

    def curve_axis(self, curve: str) -> str:
        """Return the horizontal axis of a curve."""
        return self.config.curves[curve].against

    def evaluations(self) -> list[str]:
        """Return the metrics of every row of every table, and the contributions of every run of every curve."""
        curves = [word for curve in self.config.curves for word in self.curve_files(curve)]
        contributions = [word for word in curves if word.endswith("contributions.parquet")]
        return [*self.table_files(None, "metrics.json"), *contributions]

    def page_files(self, name: str) -> list[str]:
        """Return a file of the first seed of every trained run of the tables."""
        runs = self.trained_runs(self.rows())
        return [f"results/runs/{run}/seed{self.seeds(run)[0]}/{name}" for run in runs]

    def page_summaries(self) -> list[str]:
        """Return the summaries of every split that the tables' runs are trained or evaluated on."""
        trained = {name for row in self.rows() for name in self.training_sets(row.run)}
        targets = dict.fromkeys(row.target for row in self.rows())
        train = [self.summary(name, "train") for name in self.config.datasets if name in trained]
        described = [self.summary(target, role) for target, role in self.pools()]
        return list(dict.fromkeys([*train, *(self.summary(name, "test") for name in targets), *described]))

    # --- descriptions of unlabeled audio

    def pools(self) -> list[tuple[str, Role]]:
        """Return target and role of each held-out split that the unlabeled audio of the target is compared with."""
        targets = dict.fromkeys(row.target for row in self.rows())
        return [
            (target, role)
            for target in targets
            for role in dict.fromkeys(self.config.pool.against)
            if self.pool_splits(target, "unlabeled") and self.target_split(target, role) is not None
        ]

    def pool_folders(self) -> list[str]:
        """Return the folders of all descriptions."""
        return [f"results/pools/{target}/{role}" for target, role in self.pools()]

    def pool_splits(self, target: str, use: Literal["labeled", "unlabeled"]) -> list[str]:
        """Return DATASET/SPLIT of the training splits that the target's runs with unlabeled audio use.

        A split that some of these runs use as unlabeled audio is not labeled here.
        """
        runs = [self.run(row.run) for row in self.rows() if row.target == target and self.run(row.run).unlabeled]
        used = {name for run in runs for name in run.unlabeled or []}
        if use == "labeled":
            labeled = {name for run in runs for name in run.labeled or []}
            used = labeled - used or labeled
        return [self.split(name, "train") for name in self.config.datasets if name in used]

    def pool_embeddings(self, target: str, role: Role) -> list[str]:
        """Return the embeddings of every split that a description compares."""
        splits = [self.split(target, role)]
        splits += [*self.pool_splits(target, "labeled"), *self.pool_splits(target, "unlabeled")]
        return [f"results/embeddings/{split}/embeddings.parquet" for split in splits]

    def pool_near_duplicates(self, target: str) -> list[str]:
        """Return the reports of near-duplicates of a target's unlabeled splits, if the study looks for them."""
        splits = self.pool_splits(target, "unlabeled") if self.config.pool.near_duplicates else []
        return [f"results/reports/near_duplicates/{split}.json" for split in splits]

    # --- sweep

    def swept_rows(self) -> list[TableRow]:
        """Return the rows of the tables whose runs the sweep searches."""
        return [row for name in self.config.sweep.tables or self.config.tables for row in self.config.tables[name]]

    def candidate(self, candidate: str) -> Study:
        """Return the study whose runs of the tables have the values of a candidate of the sweep."""
        values = candidate_values(candidate)
        names = self.trained_runs(self.swept_rows())
        runs = {name: candidate_run(self.config.runs[name], values) for name in names}
        return Study(self.config.model_copy(update={"runs": {**self.config.runs, **runs}}))

    def candidate_flags(self, run: str, candidate: str, seed: str) -> list[str]:
        """Return the settings of a run with the values of a candidate, as flags of `train`."""
        return self.candidate(candidate).training_flags(run, seed)

    def candidate_validation(self, run: str, candidate: str) -> list[str]:
        """Return the summaries of the validation splits on which the training of a candidate is validated."""
        return self.candidate(candidate).validated_while_trained(run)

    def candidate_pairing_flags(self, run: str, candidate: str) -> list[str]:
        """Return how the pairs of a candidate are drawn, as flags of `pair_clips`."""
        return self.candidate(candidate).pairing_flags(run)

    def candidate_summaries(self, run: str, candidate: str, use: Literal["labeled", "unlabeled"]) -> list[str]:
        """Return the summaries of the training splits of a candidate."""
        return self.candidate(candidate).training_summaries(run, use)

    def candidate_pairs(self, run: str, candidate: str, seed: str) -> str:
        """Return the pairs of a candidate: those of its run, unless the values change how pairs are drawn."""
        if self.candidate_pairing_flags(run, candidate) == self.pairing_flags(run):
            return f"results/pairs/{run}/seed{seed}.parquet"
        return f"results/sweep/{candidate}/{run}/seed{seed}.pairs.parquet"

    def candidate_evaluations(self) -> list[str]:
        """Return the folder of every evaluation of the sweep: each candidate, run, seed and target.

        Raises `PipelineError` for a target without a validation split, or a run that cannot take a candidate.
        """
        rows = self.swept_rows()
        problems = [problem for run in self.trained_runs(rows) for problem in wrong_candidates(self.config, run)]
        if problems:
            raise PipelineError("; ".join(problems))
        folders = []
        for values in candidates(self.config.sweep):
            for row in rows:
                if self.config.datasets[row.target].splits.validation is None:
                    raise PipelineError(
                        f"datasets.{row.target}.splits names no validation split; settings are chosen on it"
                    )
                if self.config.runs[row.run].objective != "vanilla":
                    folder = f"results/sweep/{candidate_name(values)}/{row.run}"
                    folders += [f"{folder}/seed{seed}/{row.target}" for seed in self.config.sweep.seeds]
        return list(dict.fromkeys(folders))

    def sweep_files(self, name: str) -> list[str]:
        """Return a file of every evaluation of the sweep."""
        return [f"{folder}/{name}" for folder in self.candidate_evaluations()]

    # --- the start and the end of a workflow

    def opening_lines(self) -> list[str]:
        """Return what the user should know when the workflow starts."""
        lines = [MINI_NOTE] if self.starts_small else []
        if self.config.pool.against and not self.pools():
            lines.append("pool.against: no row of the tables has a run with unlabeled audio, so none is described")
        return lines

    def closing_lines(self) -> list[str]:
        """Return the paths of the tables and the page that exist, one line each."""
        tables = [Path(f"results/{table}.{kind}") for table in self.config.tables for kind in ("md", "csv", "tex")]
        paths = [*tables, Path("results/report/index.html")]
        return [f"result: {path}" for path in paths if path.exists()]


def _manifest(summary: str) -> str:
    return str(Path(summary).with_suffix(".parquet"))
