"""Checks of a study's configuration, made once before anything runs, and its translation to command-line flags."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from pipeline.errors import PipelineError
from pipeline.training.settings import PairingSettings, TrainingSettings

GENERATED = "results/raw/"
"""Roots below this folder are mixed by the study itself."""

PAIRING = tuple(item.name for item in dataclasses.fields(PairingSettings))
"""Keys of the training that say how its pairs are drawn."""

BATCH_PLAN = ("epochs", "batch_size", *PAIRING)
"""Keys of the training that the pairs file carries, not the training command."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME of a model on the Hugging Face hub."""

PRETRAIN_ONLY = ("dataset", "seed", "vocabulary_size")


def check_config(config: Mapping[str, Any], schema_path: Path) -> None:
    """Raise one `PipelineError` that lists every wrong key, value and reference of the configuration."""
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda error: list(error.path))
    problems = [describe(error) for error in errors] or list(broken_references(config))
    if problems:
        raise PipelineError("the configuration is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems))


def describe(error: jsonschema.ValidationError) -> str:
    """One line for a schema error: the key, what is wrong with it, and the keys or values that would be right."""
    place = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = sorted(error.schema["properties"])
        unknown = [str(key) for key in error.instance if key not in known]
        guesses = [match for key in unknown for match in difflib.get_close_matches(key, known, n=1)]
        hint = f"did you mean {', '.join(guesses)}? " if guesses else ""
        return f"{place}: unknown key {', '.join(unknown)}; {hint}known keys: {', '.join(known)}"
    if error.validator == "required":
        return f"{place}: {error.message.replace(' is a required property', '')} is missing"
    if error.validator == "enum":
        return f"{place}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    if error.validator == "type" and error.validator_value == "boolean":
        return f"{place}: {error.instance!r} is neither true nor false"
    if error.validator == "type" and isinstance(error.instance, str) and is_number(error.instance):
        return f"{place}: {error.instance!r} is read as text; write {float(error.instance):.10g}"
    return f"{place}: {error.message}"


def is_number(text: str) -> bool:
    """True for what YAML 1.1 takes for text although it is a number, as 1e-4 without a point."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def broken_references(config: Mapping[str, Any]) -> Iterable[str]:
    """What a schema cannot see: datasets and runs that do not exist, roots that are missing, roles not filled."""
    datasets, runs = config["datasets"], config["runs"]
    for name, dataset in datasets.items():
        root, adapter, shards = (dataset.get(key) for key in ("root", "adapter", "shards"))
        if (root is None) != (adapter is None) or (root is None) == (shards is None):
            yield f"datasets.{name}: give adapter and root of a raw tree, or shards, the address of ready ones"
        if "tars" in dataset and shards is None:
            yield f"datasets.{name}.tars: is for ready shards, and there is no datasets.{name}.shards"
        if root is None:
            continue
        generated = root == f"{GENERATED}{name}"
        if not generated and not Path(root).is_dir():
            yield f"datasets.{name}.root: there is no directory {root}; point it at the raw tree of {name}"
    for name, run in runs.items():
        yield from broken_run(name, run, datasets)
        if run["objective"] != "vanilla":
            settings = {**config["training"], **run.get("settings", {}), "objective": run["objective"]}
            try:
                TrainingSettings(**{key: value for key, value in settings.items() if key not in BATCH_PLAN})
            except PipelineError as error:
                yield f"runs.{name}: {error}"
    used = [
        (f"tables.{table}.{index}", row) for table, rows in config["tables"].items() for index, row in enumerate(rows)
    ]
    seen: dict[tuple[str, ...], str] = {}
    for place, row in used:
        identity = (place.rpartition(".")[0], row["target"], row["run"])
        if identity in seen:
            yield f"{place}: repeats {seen[identity]}"
        seen[identity] = place
        if row["run"] not in runs:
            yield f"{place}.run: there is no run {row['run']}; runs: {', '.join(runs)}"
        yield from broken_target(f"{place}.target", row["target"], datasets)
    for name, curve in config.get("curves", {}).items():
        yield from broken_target(f"curves.{name}.target", curve["target"], datasets)
        for line, on_line in curve["lines"].items():
            for run in on_line:
                if run not in runs:
                    yield f"curves.{name}.lines.{line}: there is no run {run}; runs: {', '.join(runs)}"
                elif runs[run]["objective"] == "vanilla":
                    yield f"curves.{name}.lines.{line}: {run} is vanilla, which is trained on nothing"
    published = config["study"].get("published")
    if published is not None and not Path(published).is_file():
        yield f"study.published: there is no file {published}"
    backbone, pretrain = config["backbone"], config["pretrain"]
    if backbone["name"] == "mini":
        if backbone["weights"] or backbone["tokenizer"]:
            yield "backbone: mini is made by the pretraining; weights and tokenizer must be null"
        if pretrain["dataset"] not in datasets:
            yield f"pretrain.dataset: there is no dataset {pretrain['dataset']}; datasets: {', '.join(datasets)}"
    for key in ("weights", "tokenizer"):
        path = backbone[key]
        may_be_on_the_hub = backbone["name"] == "laion-clap" and key == "weights" and HUB_NAME.fullmatch(str(path))
        if path is not None and not Path(path).exists() and not may_be_on_the_hub:
            yield f"backbone.{key}: there is no {path}"


def broken_target(place: str, target: str, datasets: Mapping[str, Any]) -> Iterable[str]:
    """Why nothing can be evaluated on a dataset: it does not exist, has no test split or no captions."""
    if target not in datasets:
        yield f"{place}: there is no dataset {target}; datasets: {', '.join(datasets)}"
    elif "test" not in datasets[target]["splits"]:
        yield f"{place}: datasets.{target}.splits names no test split"
    elif not datasets[target]["captions"]:
        yield f"{place}: dataset {target} has no captions to retrieve"


def broken_run(name: str, run: Mapping[str, Any], datasets: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with one run: sets that its objective lacks or cannot use, and datasets that do not exist."""
    objective = run["objective"]
    needs_labeled, needs_unlabeled = objective != "vanilla", objective == "composed"
    for key, is_needed in (("labeled", needs_labeled), ("unlabeled", needs_unlabeled)):
        if is_needed and key not in run:
            yield f"runs.{name}: the objective {objective} needs {key} datasets"
        if not is_needed and key in run:
            yield f"runs.{name}.{key}: the objective {objective} uses no {key} datasets"
        if f"{key}_fraction" in run and key not in run:
            yield f"runs.{name}.{key}_fraction: the run has no {key} datasets"
        for dataset in run.get(key, []):
            if dataset not in datasets:
                yield f"runs.{name}.{key}: there is no dataset {dataset}; datasets: {', '.join(datasets)}"
            elif key == "labeled" and not datasets[dataset]["captions"]:
                yield f"runs.{name}.labeled: dataset {dataset} has no captions (datasets.{dataset}.captions is false)"
    both = set(run.get("labeled", [])) & set(run.get("unlabeled", []))
    if both:
        yield f"runs.{name}: {', '.join(sorted(both))} is labeled and unlabeled at once"


def training_flags(settings: Mapping[str, Any]) -> list[str]:
    """The settings of a training as flags of `pipeline.stages.train`: `--learning-rate=0.001 --no-detach-unlabeled`."""
    return [_flag(key, value) for key, value in settings.items() if key not in (*BATCH_PLAN, *PRETRAIN_ONLY)]


def pairing_flags(settings: Mapping[str, Any]) -> list[str]:
    """The settings of a training that its pairs depend on as flags of `pipeline.stages.pair_clips`."""
    return [_flag(key, value) for key, value in settings.items() if key in PAIRING]


def _flag(key: str, value: Any) -> str:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
