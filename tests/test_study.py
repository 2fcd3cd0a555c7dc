"""The configuration: what is shipped is right, what is wrong is named, and schema, settings and studies agree."""

import argparse
import copy
import dataclasses
import re
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from pipeline.data.audio import CHANNELS, SHORT_CLIPS
from pipeline.errors import PipelineError
from pipeline.evaluation.windows import WINDOWS
from pipeline.models.backbones import BACKBONES
from pipeline.study import BATCH_PLAN, check_config, pairing_flags, training_flags
from pipeline.training.settings import (
    PairingSettings,
    TrainingSettings,
    add_settings_arguments,
    settings_from_arguments,
)

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


def merged(base, over):
    """Snakemake's way of laying one configuration over another."""
    both = {**base, **over}
    return {
        key: merged(base[key], over[key])
        if isinstance(base.get(key), dict) and isinstance(over.get(key), dict)
        else value
        for key, value in both.items()
    }


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def problem(config):
    with pytest.raises(PipelineError) as error:
        check_config(config, SCHEMA)
    return str(error.value)


def test_the_shipped_configuration_is_right(config):
    check_config(config, SCHEMA)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "experiments").glob("*.yaml")))
def test_every_experiment_is_right_over_the_default(config, name, tmp_path, monkeypatch):
    study = merged(config, yaml.safe_load((ROOT / "experiments" / name).read_text()))
    monkeypatch.chdir(tmp_path)
    for dataset in study["datasets"].values():
        Path(dataset["root"]).mkdir(parents=True)
    Path("data").mkdir(exist_ok=True)
    shutil.copy(ROOT / "data" / "paper_table1.csv", "data")
    check_config(study, SCHEMA)


@pytest.mark.parametrize("name", ["table2", "curves"])
def test_experiments_on_top_of_the_papers_study_train_at_its_rates(config, name):
    """The small study's rates lie under the paper's: none may show through."""
    over = [yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text()) for name in ("paper", name)]
    study = merged(merged(config, over[0]), over[1])
    rates = [{**study["training"], **run.get("settings", {})}["learning_rate"] for run in study["runs"].values()]
    assert set(rates) == {over[0]["training"]["learning_rate"]} == {0.00005}


def test_a_curve_names_runs_that_are_trained_and_a_target_with_captions(config):
    curve = {"target": "clotho", "against": "labeled_clips", "lines": {"finetune": ["clotho_finetune"]}}
    check_config({**config, "curves": {"pairs": curve}}, SCHEMA)
    for wrong, message in (
        ({"target": "audioset"}, "curves.pairs.target: datasets.audioset.splits names no test split"),
        ({"lines": {"a": ["nothing"]}}, "curves.pairs.lines.a: there is no run nothing"),
        ({"lines": {"a": ["vanilla"]}}, "curves.pairs.lines.a: vanilla is vanilla, which is trained on nothing"),
        ({"against": "hours"}, "curves.pairs.against: 'hours' is not one of labeled_clips"),
    ):
        assert message in problem({**config, "curves": {"pairs": {**curve, **wrong}}})


def test_a_share_is_of_something_and_published_figures_exist(config):
    config["runs"]["clotho_finetune"]["unlabeled_fraction"] = 0.5
    config["study"]["published"] = "nowhere.csv"
    message = problem(config)
    assert "runs.clotho_finetune.unlabeled_fraction: the run has no unlabeled datasets" in message
    assert "study.published: there is no file nowhere.csv" in message
    config["runs"]["clotho_finetune"]["labeled_fraction"] = 0
    assert "runs.clotho_finetune.labeled_fraction: 0 is less than or equal to the minimum of 0" in problem(config)


def test_a_dataset_is_a_raw_tree_or_ready_shards(config):
    ready = {"adapter": None, "root": None, "shards": "https://example.org/audioset", "tars": "remote"}
    check_config(merged(config, {"datasets": {"audioset": ready}}), SCHEMA)
    for wrong in ({"shards": "/published"}, {"root": None}, {**ready, "root": "data"}):
        message = problem(merged(config, {"datasets": {"audioset": wrong}}))
        assert "datasets.audioset: give adapter and root of a raw tree, or shards" in message
    message = problem(merged(config, {"datasets": {"audioset": {"tars": "copy"}}}))
    assert "datasets.audioset.tars: is for ready shards" in message


def test_settings_schema_and_config_have_the_same_keys(config):
    fields = {field.name for field in dataclasses.fields(TrainingSettings)} - {"objective"}
    schema = yaml.safe_load(SCHEMA.read_text())
    assert set(schema["$defs"]["settings"]["properties"]) == fields | set(BATCH_PLAN)
    assert set(config["training"]) == fields | set(BATCH_PLAN)


def test_every_key_of_the_schema_is_described():
    def undescribed(node, place):
        for name, child in node.get("properties", {}).items():
            if "description" not in child and "properties" not in child:
                yield f"{place}.{name}"
            yield from undescribed(child, f"{place}.{name}")

    schema = yaml.safe_load(SCHEMA.read_text())
    assert list(undescribed(schema, "config")) == []


def test_every_setting_of_a_training_is_described_with_its_default_and_a_reason(config):
    properties = yaml.safe_load(SCHEMA.read_text())["$defs"]["settings"]["properties"]
    for name in properties.keys() - {"epochs", "batch_size"}:
        default = config["training"][name]
        shown = "a space" if default == " " else str(default).lower() if isinstance(default, bool) else str(default)
        assert re.search(rf"Default {re.escape(shown)}(,|:) \w", properties[name]["description"]), name


def test_what_is_neither_true_nor_false_is_told(config):
    config["training"]["learn_temperature"] = "no"
    assert "training.learn_temperature: 'no' is neither true nor false" in problem(config)


def test_a_way_of_drawing_that_there_is_not_is_told_with_those_there_are(config):
    config["runs"]["clotho_finetune"]["settings"] = {"windows": "centre", "captions_per_clip": 5}
    config["shards"]["channels"] = "left"
    message = problem(config)
    assert "runs.clotho_finetune.settings.windows: 'centre' is not one of random, first, center" in message
    assert "runs.clotho_finetune.settings.captions_per_clip: 5 is not one of one, all" in message
    assert "shards.channels: 'left' is not one of mean, first" in message


def test_the_schema_names_every_backbone():
    schema = yaml.safe_load(SCHEMA.read_text())
    assert schema["properties"]["backbone"]["properties"]["name"]["enum"] == list(BACKBONES)


@pytest.mark.parametrize("weights", [None, "laion/larger_clap_general", "tests"])
def test_weights_of_laion_clap_may_be_a_folder_or_a_name_on_the_hub(config, weights):
    config["backbone"] = {"name": "laion-clap", "weights": weights, "tokenizer": None}
    check_config(config, SCHEMA)


@pytest.mark.parametrize(
    ("name", "weights"), [("laion-clap", "nowhere"), ("laion-clap", "/no/where"), ("msclap-2022", "laion/clap")]
)
def test_weights_that_are_nowhere_are_named(config, name, weights):
    config["backbone"] = {"name": name, "weights": weights, "tokenizer": None}
    assert f"backbone.weights: there is no {weights}" in problem(config)


def test_an_unknown_key_is_named_with_the_one_that_was_meant(config):
    config["training"]["learnig_rate"] = 1e-3
    assert "training: unknown key learnig_rate; did you mean learning_rate?" in problem(config)


def test_a_missing_key_is_named(config):
    del config["backbone"]["name"]
    assert "backbone: 'name' is missing" in problem(config)


def test_a_wrong_value_is_named_with_the_right_ones(config):
    config["shards"]["format"] = "mp3"
    assert "shards.format: 'mp3' is not one of wav, flac" in problem(config)


def test_all_problems_are_listed_at_once(config):
    config["seeds"] = []
    config["runs"]["vanilla"]["objective"] = "none"
    assert problem(config).count("\n  - ") == 2


def test_a_missing_root_is_named(config):
    config["datasets"]["clotho"]["root"] = "nowhere/clotho"
    assert "datasets.clotho.root: there is no directory nowhere/clotho" in problem(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", "clotho_finetune", "labeled"), ["cloto"], "runs.clotho_finetune.labeled: there is no dataset cloto"),
        (("runs", "clotho_finetune", "labeled"), ["audioset"], "dataset audioset has no captions"),
        (("runs", "clotho_finetune", "unlabeled"), ["audioset"], "the objective finetune uses no unlabeled datasets"),
        (("runs", "clotho_composed_audioset", "unlabeled"), ["clotho"], "clotho is labeled and unlabeled at once"),
        (("tables", "table1", 0, "run"), "vanila", "tables.table1.0.run: there is no run vanila"),
        (("tables", "table1", 0, "target"), "audioset", "datasets.audioset.splits names no test split"),
        (("runs", "clotho_finetune", "settings"), {"mixing_gain": 1.5}, "mixing_gain: 1.5 is greater than the maximum"),
        (
            ("runs", "all_pairs_concatenate", "settings"),
            {"info_nce_weight": 0, "composed_weight": 0},
            "runs.all_pairs_concatenate: every term of the objective concatenate has weight 0",
        ),
        (("backbone", "weights"), "CLAP.pth", "mini is made by the pretraining"),
    ],
)
def test_references_to_nothing_are_named(config, path, value, message):
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = copy.deepcopy(value)
    assert message in problem(config)


@pytest.mark.parametrize(
    ("settings", "flags_of"),
    [
        (
            TrainingSettings(objective="composed", learning_rate=3e-4, detach_unlabeled=True, conjunction=" and "),
            training_flags,
        ),
        (
            PairingSettings(captions_per_clip="all", partners="fixed", windows="center", short_clips="pad"),
            pairing_flags,
        ),
    ],
)
def test_settings_become_flags_that_the_stage_parses(settings, flags_of):
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser, type(settings))
    others = PairingSettings() if isinstance(settings, TrainingSettings) else TrainingSettings()
    flags = flags_of({**dataclasses.asdict(others), **dataclasses.asdict(settings), "epochs": 3, "batch_size": 4})
    assert settings_from_arguments(parser.parse_args(flags), type(settings)) == settings


def test_settings_of_studies_and_stages_have_the_same_defaults(config):
    """What a key of config.yaml leaves out is what the stage does without its flag."""
    for item in dataclasses.fields(PairingSettings):
        assert config["training"][item.name] == item.default, item.name


@pytest.mark.parametrize("kind", [PairingSettings, TrainingSettings])
def test_the_schema_lists_the_values_that_a_stage_takes(kind):
    properties = yaml.safe_load(SCHEMA.read_text())["$defs"]["settings"]["properties"]
    types = get_type_hints(kind)
    listed = {name: properties[name]["enum"] for name in types if name in properties and "enum" in properties[name]}
    taken = {name: list(get_args(of)) for name, of in types.items() if get_args(of) and name != "objective"}
    assert listed == taken


def test_what_is_listed_of_a_file_is_what_its_reader_takes():
    schema = yaml.safe_load(SCHEMA.read_text())
    assert schema["$defs"]["settings"]["properties"]["short_clips"]["enum"] == list(SHORT_CLIPS)
    assert schema["properties"]["shards"]["properties"]["channels"]["enum"] == list(CHANNELS)
    assert schema["properties"]["evaluation"]["properties"]["windows"]["enum"] == list(WINDOWS)
    assert set(WINDOWS) & set(schema["$defs"]["settings"]["properties"]["windows"]["enum"]) == {"first", "center"}
