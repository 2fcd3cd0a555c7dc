"""Checks of a configuration that a schema cannot express: references, missing files and roles without a split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.study.candidates import OBJECTIVE, candidate_name, candidate_run, candidates
from pipeline.study.configuration import (
    Configuration,
    Dataset,
    Run,
    RunSettings,
    resolved_settings,
    targets,
    training_settings,
)
from pipeline.training.teachers import check_taught_terms

CUT = ("folder", "webdataset", "parquet")
"""Adapters whose files can be cut into segments; the others list clips that are cut out of their recordings."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME of a model on the Hugging Face hub."""


def wrong_references(config: Configuration) -> Iterable[str]:
    """Yield one line per wrong reference, missing file and role without a split."""
    for name, dataset in config.datasets.items():
        yield from wrong_dataset(name, dataset)
    for name, given in config.runs.items():
        yield from wrong_run(name, given, config)
    yield from wrong_rows(config)
    yield from wrong_sweep(config)
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
    yield from wrong_pool(config)
    yield from wrong_backbone(config)
    yield from wrong_protocol(config)


def wrong_dataset(name: str, dataset: Dataset) -> Iterable[str]:
    """Yield what is wrong with the location of one dataset."""
    if (dataset.root is None) != (dataset.adapter is None) or (dataset.root is None) == (dataset.shards is None):
        yield f"datasets.{name}: give adapter and root of a raw tree, or shards, the address of ready ones"
    if dataset.tars is not None and dataset.shards is None:
        yield f"datasets.{name}.tars: is for ready shards, and there is no datasets.{name}.shards"
    if (path := dataset.paraphrases) is not None:
        if not dataset.captions:
            yield f"datasets.{name}.paraphrases: the captions of {name} are not used (captions is false)"
        if not Path(path).expanduser().is_file():
            yield f"datasets.{name}.paraphrases: there is no file {path}"
        if set(path) & set("{}<>"):
            yield f"datasets.{name}.paraphrases: {path} holds one of {{ }} < >, which Snakemake replaces; rename it"
    if dataset.segments is not None and dataset.adapter not in CUT:
        yield f"datasets.{name}.segments: is for the adapters {', '.join(CUT)}, not {dataset.adapter or 'ready shards'}"
    if dataset.folder is not None and not dataset.is_generated and not Path(dataset.folder).is_dir():
        yield f"datasets.{name}.root: there is no directory {dataset.root}; set it to the raw tree of {name}"
    if dataset.moments is not None and (dataset.root is None or dataset.splits.test is None):
        yield f"datasets.{name}.moments: are of the recordings of a test split: give root, adapter and splits.test"
    if dataset.relevance is not None:
        yield from wrong_file(f"datasets.{name}.relevance", dataset.relevance)
        if dataset.splits.test is None:
            yield f"datasets.{name}.relevance: is of the test split, and datasets.{name}.splits names none"


def wrong_file(place: str, path: str) -> Iterable[str]:
    """Yield why a file cannot be an input of the workflow."""
    if not Path(path).is_file():
        yield f"{place}: there is no file {path}"
    if set(path) & set("{}<>"):
        yield f"{place}: {path} holds one of {{ }} < >, which Snakemake replaces in its inputs; rename it"


def wrong_run(name: str, run: Run, config: Configuration) -> Iterable[str]:
    """Yield what is wrong with one run: datasets that its objective lacks or cannot use, or that do not exist."""
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
        if twice := [dataset for dataset, count in Counter(names or []).items() if count > 1]:
            yield f"runs.{name}.{key}: {', '.join(twice)} is named twice, and its clips would count twice; name it once"
    both = set(run.labeled or []) & set(run.unlabeled or [])
    if both:
        yield f"runs.{name}: {', '.join(sorted(both))} is labeled and unlabeled at once"
    yield from wrong_teachers(name, run, config)
    if run.objective == "vanilla":
        if run.average_with_pretrained:
            yield f"runs.{name}.average_with_pretrained: vanilla is the pretrained model; leave the key out"
        return
    settings = resolved_settings(config, run)
    try:
        trained_with = training_settings(run.objective, settings)
        if run.teacher is not None:
            check_taught_terms(trained_with)
    except PipelineError as error:
        yield f"runs.{name}: {error}"
    if settings.validate_every:
        yield from wrong_validation(name, "validate_every is above 0", config)
    if run.average_with_pretrained:
        yield from wrong_validation(name, "average_with_pretrained is true", config)


def wrong_validation(run: str, reason: str, config: Configuration) -> Iterable[str]:
    """Yield why a run cannot be validated: no table or curve evaluates it, or a target has no validation split."""
    names = targets(config, run)
    if not names:
        yield f"runs.{run}: {reason}, but no table or curve evaluates the run, so it has no target; add it to a table"
    for name in names:
        if name in config.datasets and config.datasets[name].splits.validation is None:
            yield f"runs.{run}: {reason}, but datasets.{name}.splits names no validation split; add it"


def wrong_teachers(name: str, run: Run, config: Configuration) -> Iterable[str]:
    """Yield what is wrong with the teachers of a run: they do not exist, or wait for the run itself."""
    place = f"runs.{name}.teacher"
    if run.teacher is None:
        return
    if run.objective == "vanilla":
        yield f"{place}: vanilla trains nothing"
    if len(set(run.teacher)) < len(run.teacher):
        yield f"{place}: names one run twice"
    for teacher in run.teacher:
        if teacher not in config.runs:
            yield f"{place}: there is no run {teacher}; runs: {', '.join(config.runs)}"
    if name in all_teachers(run, config):
        yield f"{place}: {name} is among its own teachers or theirs; a teacher is trained before its students"


def all_teachers(run: Run, config: Configuration) -> set[str]:
    """Return the teachers of a run, their teachers and so on."""
    found: set[str] = set()
    waiting = list(run.teacher or [])
    while waiting:
        teacher = waiting.pop()
        if teacher in config.runs and teacher not in found:
            found.add(teacher)
            waiting += config.runs[teacher].teacher or []
    return found


def wrong_rows(config: Configuration) -> Iterable[str]:
    """Yield what is wrong with the rows of the tables."""
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


def wrong_sweep(config: Configuration) -> Iterable[str]:
    """Yield what is wrong with the sweep: unknown keys, wrong values, repeated candidates, unknown tables."""
    unknown = [key for key in config.sweep.grid if key != OBJECTIVE and key not in RunSettings.model_fields]
    if unknown:
        known = ", ".join(sorted([OBJECTIVE, *RunSettings.model_fields]))
        yield f"sweep.grid: {', '.join(unknown)} is no setting; settings: {known}"
        return
    for key, values in config.sweep.grid.items():
        if len({repr(value) for value in values}) < len(values):
            yield f"sweep.grid.{key}: {values} holds one value twice"
        run = Run(objective="finetune")
        for value in values:
            try:
                candidate = candidate_run(run, {key: value})
                if key == OBJECTIVE and value != "vanilla":
                    Run.of_values({OBJECTIVE: candidate.objective})
                elif key == OBJECTIVE:
                    yield "sweep.grid.objective: vanilla trains nothing; leave it out"
            except PipelineError as error:
                yield f"sweep.grid: {error}"
    missing = [name for name in config.sweep.tables if name not in config.tables]
    if missing:
        yield f"sweep.tables: there is no table {', '.join(missing)}; tables: {', '.join(config.tables)}"
    if len(set(config.sweep.seeds)) < len(config.sweep.seeds):
        yield f"sweep.seeds: {config.sweep.seeds} holds one seed twice"


def wrong_candidates(config: Configuration, run: str) -> Iterable[str]:
    """Yield why a run cannot take a candidate of the sweep: it lacks datasets, or the settings exclude one another."""
    for values in candidates(config.sweep):
        for problem in wrong_run(run, candidate_run(config.runs[run], values), config):
            yield f"sweep, candidate {candidate_name(values)}: {problem}"


def wrong_target(place: str, target: str, datasets: Mapping[str, Dataset]) -> Iterable[str]:
    """Yield why a dataset cannot be a target: it does not exist, has no test split or no captions."""
    if target not in datasets:
        yield f"{place}: there is no dataset {target}; datasets: {', '.join(datasets)}"
    elif datasets[target].splits.test is None:
        yield f"{place}: datasets.{target}.splits names no test split"
    elif not datasets[target].captions:
        yield f"{place}: dataset {target} has no captions to retrieve"


def wrong_protocol(config: Configuration) -> Iterable[str]:
    """Yield which targets lack what the protocol of the tables needs."""
    rows = (row.target for table in config.tables.values() for row in table)
    targets = dict.fromkeys([*rows, *(curve.target for curve in config.curves.values())])
    for target in targets:
        dataset = config.datasets.get(target)
        if config.evaluation.protocol == "dcase2025" and dataset is not None and dataset.relevance is None:
            yield f"datasets.{target}.relevance: is missing; the protocol dcase2025 needs it for each target"
        if config.evaluation.protocol == "moments" and dataset is not None and dataset.moments is None:
            yield f"datasets.{target}.moments: is missing; the protocol moments needs it for each target"


def wrong_pool(config: Configuration) -> Iterable[str]:
    """Yield each target without the split that its unlabeled audio is compared with; others name the test split."""
    if "validation" in config.pool.against:
        for target in dict.fromkeys(row.target for rows in config.tables.values() for row in rows):
            if target in config.datasets and config.datasets[target].splits.validation is None:
                yield f"pool.against: datasets.{target}.splits names no validation split"


def wrong_backbone(config: Configuration) -> Iterable[str]:
    """Yield what is wrong with the backbone's files, or with the pretraining of the small model."""
    backbone = config.backbone
    if backbone.name == "mini":
        if backbone.weights or backbone.tokenizer:
            yield "backbone: mini is made by the pretraining; weights and tokenizer must be null"
        name = config.pretrain.dataset
        if name not in config.datasets:
            yield f"pretrain.dataset: there is no dataset {name}; datasets: {', '.join(config.datasets)}"
        elif not config.datasets[name].captions:
            yield f"pretrain.dataset: dataset {name} has no captions (datasets.{name}.captions is false)"
        if config.pretrain.validate_every:
            yield "pretrain.validate_every: the pretraining has no validation split; leave the key out"
        try:
            training_settings("finetune", config.pretrain)
        except PipelineError as error:
            yield f"pretrain: {error}"
    for key in ("weights", "tokenizer"):
        path = getattr(backbone, key)
        may_be_on_the_hub = backbone.name == "laion-clap" and key == "weights" and HUB_NAME.fullmatch(str(path))
        if path is not None and not Path(path).exists() and not may_be_on_the_hub:
            yield f"backbone.{key}: there is no {path}"
