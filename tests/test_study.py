"""The configuration: what is shipped is right, what is wrong is named, and schema, settings and studies agree."""

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import yaml

from experiments import paraphrases
from pipeline.data.adapters import ADAPTERS
from pipeline.data.audio import CHANNELS, SHORT_CLIPS
from pipeline.errors import PipelineError
from pipeline.evaluation.windows import WINDOWS
from pipeline.models.backbones import BACKBONES
from pipeline.study import (
    MINI_NOTE,
    Adapter,
    BackboneName,
    Configuration,
    Dataset,
    Evaluation,
    RunSettings,
    ShardSettings,
    Study,
    markdown,
    schema,
)
from pipeline.study.candidates import candidate_name, candidate_values
from pipeline.training.options import add_run_options, training_parser
from pipeline.training.settings import (
    ADDED,
    OptimizationSettings,
    PairingSettings,
    TrainingSettings,
    add_settings_arguments,
    settings_flags,
    settings_from_arguments,
)

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"


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
        Study.of_config(config)
    return str(error.value)


def test_the_shipped_configuration_is_right(config):
    Study.of_config(config)


def experiment(*names: str) -> dict[str, Any]:
    """Files of experiments/ as the Snakefile reads them: over the small study, unless one names datasets."""
    over = {}
    for name in names:
        over = merged(over, yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text()))
    return over if "datasets" in over else merged(yaml.safe_load((ROOT / "config.yaml").read_text()), over)


@pytest.fixture
def raw_trees(tmp_path, monkeypatch):
    """Empty trees where the paper's study looks for them."""
    for name in ("clotho", "audiocaps", "audioset"):
        (tmp_path / "data" / name).mkdir(parents=True)
    shutil.copy(ROOT / "data" / "paper_table1.csv", tmp_path / "data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml")))
def test_every_experiment_is_right(name, raw_trees):
    Study.of_config(experiment(name))


@pytest.mark.parametrize("name", ["table2", "curves"])
def test_experiments_on_top_of_the_papers_study_train_at_its_rates(name, raw_trees):
    study = Study.of_config(experiment("paper", name))
    rates = {study.settings(run).learning_rate for run in study.used_runs()}
    assert rates == {0.00005}


def own_study(root: Path, **more: Any) -> dict[str, Any]:
    """The README's study of a user's own folder."""
    root.mkdir(exist_ok=True)
    birds = {"adapter": "folder", "root": str(root), "captions": True, "splits": {"train": "train", "test": "test"}}
    return {
        "datasets": {"birds": birds},
        "runs": {"birds_finetune": {"objective": "finetune", "labeled": ["birds"]}},
        "tables": {"birds": [{"target": "birds", "method": "finetune", "run": "birds_finetune"}]},
        **more,
    }


def test_a_second_dataset_may_read_a_raw_tree_of_the_small_study(config):
    config["datasets"]["louder"] = copy.deepcopy(config["datasets"]["clotho"])
    study = Study.of_config(config)
    assert study.generated_datasets() == ["audiocaps", "audioset", "clotho", "general"]
    assert study.generated_root("louder") == study.generated_root("clotho") == ["results/raw/clotho"]
    config["datasets"]["louder"]["root"] = "results/raw/louder"
    assert "datasets.louder.root: there is no directory results/raw/louder" in problem(config)


def test_the_study_of_paraphrases_is_right(config, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["paraphrases", "--out", str(tmp_path)])
    paraphrases.main()
    over = yaml.safe_load((tmp_path / "study.yaml").read_text())
    study = Study.of_config(merged(merged(config, experiment("beyond")), over))
    assert study.config.datasets["audiocaps_paraphrased"].paraphrases == str(tmp_path / "audiocaps.csv")
    rows = pd.read_csv(tmp_path / "audiocaps.csv")
    assert rows.groupby("file_name").size().max() == 4 and not (rows["caption"] == rows["paraphrase"]).any()


def test_a_study_with_datasets_of_its_own_stands_alone(tmp_path):
    study = Study.of_config(own_study(tmp_path / "birds"))
    assert study.name == "unnamed study" and "small study that ships" not in study.config.study.note
    assert study.held_out_splits() == ["birds/test"]
    assert list(study.config.tables) == ["birds"] and set(study.config.runs) == {"vanilla", "birds_finetune"}


def test_a_study_that_starts_from_the_small_model_says_so(tmp_path):
    assert MINI_NOTE in Study.of_config(own_study(tmp_path / "birds")).note
    own = Study.of_config(own_study(tmp_path / "birds", backbone={"name": "msclap-2023"}))
    assert MINI_NOTE not in own.note
    assert MINI_NOTE not in Study.of_config(yaml.safe_load((ROOT / "config.yaml").read_text())).note


def test_published_weights_are_not_trained_at_the_small_models_rates(tmp_path):
    settings = Study.of_config(own_study(tmp_path / "birds", backbone={"name": "msclap-2023"})).settings(
        "birds_finetune"
    )
    assert (settings.learning_rate, settings.a2t_learning_rate, settings.encoder_regularisation) == (5e-5, 1e-4, True)
    training = {"learning_rate": 2e-5}
    both = own_study(tmp_path / "birds", backbone={"name": "msclap-2023"}, training=training)
    assert Study.of_config(both).settings("birds_finetune").learning_rate == 2e-5


def test_the_home_folder_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "birds").mkdir()
    config = own_study(tmp_path / "birds")
    config["datasets"]["birds"]["root"] = "~/birds"
    assert Study.of_config(config).root("birds") == str(tmp_path / "birds")


def test_numbers_may_be_text(config):
    config["training"]["learning_rate"] = "1e-4"
    config["seeds"] = ["0", "1"]
    study = Study.of_config(config)
    assert study.settings("clotho_finetune").learning_rate == 1e-4 and study.config.seeds == [0, 1]


def test_the_number_of_shard_jobs_is_a_setting(config):
    config["shards"]["jobs"] = 3
    assert Study.of_config(config).shard_parts() == ["0-of-3", "1-of-3", "2-of-3"]


def test_touching_a_raw_tree_leaves_its_listing(tmp_path):
    config = own_study(tmp_path / "birds")
    (tmp_path / "birds" / "test").mkdir()
    (tmp_path / "birds" / "test" / "a.wav").write_bytes(b"1")
    (tmp_path / "birds" / "test.csv").write_text("file_name,caption_1\na.wav,a bird\n")
    study = Study.of_config(config)
    before = study.listing("birds", "test")
    (tmp_path / "birds" / ".~lock.test.csv#").touch()
    (tmp_path / "birds" / "test.csv").touch()
    assert study.listing("birds", "test") == before
    (tmp_path / "birds" / "train").mkdir()
    (tmp_path / "birds" / "train" / "b.wav").write_bytes(b"12")
    assert study.listing("birds", "test") == before != study.listing("birds", "train")
    (tmp_path / "birds" / "test.csv").write_text("file_name,caption_1\na.wav,a blackbird\n")
    assert study.listing("birds", "test") != before


def test_a_curve_names_runs_that_are_trained_and_a_target_with_captions(config):
    curve = {"target": "clotho", "against": "labeled_clips", "lines": {"finetune": ["clotho_finetune"]}}
    Study.of_config({**config, "curves": {"pairs": curve}})
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
    assert "runs.clotho_finetune.labeled_fraction: 0 must be above 0" in problem(config)


def test_a_dataset_is_a_raw_tree_or_ready_shards(config):
    ready = {"adapter": None, "root": None, "shards": "https://example.org/audioset", "tars": "remote"}
    Study.of_config(merged(config, {"datasets": {"audioset": ready}}))
    for wrong in ({"shards": "/published"}, {"root": None}, {**ready, "root": "data"}):
        message = problem(merged(config, {"datasets": {"audioset": wrong}}))
        assert "datasets.audioset: give adapter and root of a raw tree, or shards" in message
    message = problem(merged(config, {"datasets": {"audioset": {"tars": "copy"}}}))
    assert "datasets.audioset.tars: is for ready shards" in message


def test_segments_become_options_of_the_stages(config):
    segments = {"length_s": 10, "min_level_dbfs": -60}
    study = Study.of_config(merged(config, {"datasets": {"general": {"segments": segments}}}))
    assert study.segment_flags("general") == [
        "--segment-length-s=10.0",
        "--segment-hop-s=10.0",
        "--segment-min-share=0.5",
    ]
    assert study.level_flag("general") == ["--min-level-dbfs=-60.0"]
    assert study.segment_flags("clotho") == study.level_flag("clotho") == []


def test_clips_that_are_cut_out_of_recordings_are_not_cut_again(config):
    message = problem(merged(config, {"datasets": {"clotho": {"segments": {"length_s": 10}}}}))
    assert "datasets.clotho.segments: is for the adapters folder, webdataset, parquet, not clotho" in message


def test_relevance_files_are_inputs_and_flags_of_their_targets(config, tmp_path):
    path = tmp_path / "metadata_eval.csv"
    path.write_text("query,audio_filenames\n")
    for name in ("clotho", "audiocaps"):
        config["datasets"][name]["relevance"] = str(path)
    config["evaluation"] = {"protocol": "dcase2025"}
    study = Study.of_config(config)
    assert study.relevance_files("clotho") == [str(path), "results/shards/clotho/evaluation/manifest.json"]
    assert study.relevance_flags("clotho") == [f"--relevance={path}", "--shards=results/shards/clotho/evaluation"]
    assert (study.protocol, study.sweep_protocol) == ("dcase2025", "paper")


def test_recordings_of_moments_are_those_of_the_catalog(config):
    config["datasets"]["clotho"]["moments"] = {"hop_s": 0.5}
    study = Study.of_config(config)
    catalog = "results/catalogs/clotho/evaluation.parquet"
    assert study.moment_files("clotho") == [catalog]
    assert study.moment_flags("clotho") == [f"--moments={catalog}", "--hop-s=0.5"]
    assert study.protocol_flags("clotho") == ["--moments"]
    assert study.moment_flags("audiocaps") == study.protocol_flags("audiocaps") == []
    config["evaluation"] = {"protocol": "moments"}
    assert "datasets.audiocaps.moments: is missing; the protocol moments needs it" in problem(config)
    config["datasets"]["audioset"]["moments"] = {}
    assert "datasets.audioset.moments: are of the recordings of a test split: give" in problem(config)


def test_a_target_without_the_data_of_its_protocol_is_named(config, tmp_path):
    config["datasets"]["clotho"]["relevance"] = str(tmp_path / "none.csv")
    config["evaluation"] = {"protocol": "dcase2025"}
    found = problem(config)
    assert f"datasets.clotho.relevance: there is no file {tmp_path}/none.csv" in found
    assert "datasets.audiocaps.relevance: is missing; the protocol dcase2025 needs it" in found
    config["datasets"]["audioset"]["relevance"] = str(tmp_path)
    assert "datasets.audioset.relevance: is of the test split, and datasets.audioset.splits names none" in problem(
        config
    )


def test_the_schema_that_editors_read_is_up_to_date():
    assert json.loads(SCHEMA.read_text()) == schema(), "run `make schema`"


def test_the_page_of_the_configuration_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown(), "run `make schema`"


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))])
def test_every_study_names_the_schema_for_editors(path):
    name = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / name).resolve() == SCHEMA


def test_every_key_is_described():
    models = [schema()] + list(schema()["$defs"].values())
    undescribed = [
        f"{model['title']}.{name}"
        for model in models
        for name, key in model.get("properties", {}).items()
        if "description" not in key and "$ref" not in key  # a group is described by its model
    ]
    assert undescribed == []
    assert all("description" in model for model in models)


def test_what_is_neither_true_nor_false_is_named(config):
    config["training"]["learn_temperature"] = "perhaps"
    assert "training.learn_temperature: 'perhaps' is neither true nor false" in problem(config)


def test_an_unknown_value_is_named_with_the_known_ones(config):
    config["runs"]["clotho_finetune"]["settings"] = {"windows": "centre", "captions_per_clip": 5}
    config["shards"]["channels"] = "left"
    message = problem(config)
    assert "runs.clotho_finetune.settings.windows: 'centre' is not one of random, first, center" in message
    assert "runs.clotho_finetune.settings.captions_per_clip: 5 is not one of one, all" in message
    assert "shards.channels: 'left' is not one of mean, first" in message


def test_the_models_list_every_backbone_and_adapter():
    assert list(get_args(BackboneName)) == list(BACKBONES)
    assert set(get_args(Adapter)) == set(ADAPTERS)


@pytest.mark.parametrize("weights", [None, "laion/larger_clap_general", "tests"])
def test_weights_of_laion_clap_may_be_a_folder_or_a_name_on_the_hub(config, weights):
    config["backbone"] = {"name": "laion-clap", "weights": weights, "tokenizer": None}
    Study.of_config(config)


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
    del config["datasets"]["clotho"]["splits"]["train"]
    assert "datasets.clotho.splits: 'train' is missing" in problem(config)


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
        (("runs", "clotho_composed_audioset", "labeled"), ["clotho", "clotho"], "labeled: clotho is named twice"),
        (("tables", "table1", 0, "run"), "vanila", "tables.table1.0.run: there is no run vanila"),
        (("tables", "table1", 0, "target"), "audioset", "datasets.audioset.splits names no test split"),
        (("runs", "clotho_finetune", "settings"), {"mixing_gain": 1.5}, "mixing_gain: 1.5 must be at most 1"),
        (
            ("runs", "all_pairs_concatenate", "settings"),
            {"info_nce_weight": 0, "composed_weight": 0},
            "runs.all_pairs_concatenate: every term of the objective concatenate has weight 0",
        ),
        (("backbone", "weights"), "CLAP.pth", "mini is made by the pretraining"),
        (
            ("runs", "clotho_finetune", "teacher"),
            "nobody",
            "runs.clotho_finetune.teacher: there is no run nobody",
        ),
        (("runs", "clotho_finetune", "teacher"), "clotho_finetune", "is among its own teachers or theirs"),
        (("runs", "clotho_finetune", "teacher"), ["vanilla", "vanilla"], "teacher: names one run twice"),
        (("runs", "vanilla", "teacher"), "clotho_finetune", "runs.vanilla.teacher: vanilla trains nothing"),
    ],
)
def test_references_to_nothing_are_named(config, path, value, message):
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = copy.deepcopy(value)
    assert message in problem(config)


def test_teachers_in_a_circle_are_named(config):
    config["runs"]["clotho_finetune"]["teacher"] = "clotho_composed_audioset"
    config["runs"]["clotho_composed_audioset"]["teacher"] = ["vanilla", "clotho_finetune"]
    assert "runs.clotho_composed_audioset.teacher: clotho_composed_audioset is among its own" in problem(config)


def test_a_teacher_without_a_term_to_act_on_is_named(config):
    config["runs"]["clotho_composed_audioset"]["teacher"] = "clotho_finetune"
    config["runs"]["clotho_composed_audioset"]["settings"] = {"info_nce_weight": 0}
    assert "runs.clotho_composed_audioset: a teacher acts on terms without pseudo-tokens" in problem(config)


def test_teachers_are_trained_first_with_the_same_seed(config):
    config["runs"]["clotho_finetune"]["teacher"] = ["vanilla", "clotho_composed_audioset"]
    study = Study.of_config(config)
    folders = ["results/pretrained/mini", "results/runs/clotho_composed_audioset/seed3"]
    assert study.teachers("clotho_finetune", "3") == [f"{folder}/model.safetensors" for folder in folders]
    assert study.training_flags("clotho_finetune", "3")[-2:] == [f"--teacher={folder}" for folder in folders]
    assert study.teachers("clotho_composed_audioset", "3") == []


def test_paraphrases_are_given_to_the_runs_whose_labeled_datasets_have_them(config):
    config["datasets"]["clotho"]["paraphrases"] = str(ROOT / "config.yaml")
    study = Study.of_config(config)
    flags = study.pairing_flags("all_pairs_concatenate")
    place = flags.index("--paraphrases")
    manifest = "results/shards/clotho/development/manifest.parquet"
    assert flags[place + 1 : place + 3] == [manifest, str(ROOT / "config.yaml")]
    assert study.paraphrases("clotho_finetune") == [str(ROOT / "config.yaml")]
    assert study.paraphrases("audiocaps_finetune") == []


def test_settings_beyond_the_paper_are_flags_only_where_they_are_used(config):
    own = {"labeled_partners": 0.5, "text_mixing_weight": 1, "teacher_weight": 0.7, "teacher_temperature": 2}
    own |= {"a2t_kind": "decoder", "a2t_layers": 3, "a2t_heads": 4, "a2t_noise": 0.1}
    names = [f"--{name.replace('_', '-')}=" for name in own]

    def given(run):
        flags = [*study.pairing_flags(run), *study.training_flags(run, "0")]
        return {name for name in names for flag in flags if flag.startswith(name)}, "--mix-labeled" in flags

    study = Study.of_config(config)
    assert given("clotho_composed_audioset") == (set(), False)
    config["runs"]["clotho_composed_audioset"]["settings"] = own
    study = Study.of_config(config)
    assert given("clotho_composed_audioset") == (set(names), True) and given("clotho_finetune") == (set(), False)


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(objective="composed", text_mixing_weight=0.5, teacher_weight=0.0, teacher_temperature=3),
        PairingSettings(labeled_partners=0.25),
        TrainingSettings(objective="composed", learning_rate=3e-4, detach_unlabeled=True, conjunction=" and "),
        PairingSettings(captions_per_clip="all", partners="fixed", windows="center", short_clips="pad"),
    ],
)
def test_settings_become_flags_that_the_stage_parses(settings):
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser, type(settings))
    assert settings_from_arguments(parser.parse_args(settings_flags(settings)), type(settings)) == settings


@pytest.mark.parametrize(
    ("flag", "value"),
    [("learning-rate", "-0.0003"), ("warmup-steps", "-5"), ("weight-decay", "-1"), ("max-logit-scale", "0"),
     ("mixing-gain", "1.5"), ("pseudo-tokens", "0"), ("learning-rate", "nan"), ("prompt", "")],
)  # fmt: skip
def test_command_line_and_configuration_refuse_the_same_values(config, flag, value, capsys):
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser, TrainingSettings)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--{flag}={value}"])
    assert f"argument --{flag}" in capsys.readouterr().err
    name = flag.replace("-", "_")
    config["training"][name] = value
    assert f"training.{name}: " in problem(config)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("threads", "0"), ("seed", "-1"), ("workers", "-1"), ("micro-batch", "-3"), ("steps-per-checkpoint", "0"),
     ("steps-per-checkpoint", "many"), ("seconds-per-checkpoint", "-1"), ("seconds-per-checkpoint", "nan")],
)  # fmt: skip
def test_a_training_refuses_numbers_out_of_bounds(flag, value, capsys):
    parser = training_parser("")
    add_run_options(parser)
    given = ["--pairs=p", "--shards=s", "--out=o", "--seed=0"]
    assert parser.parse_args([*given, f"--{flag}=1"])
    with pytest.raises(SystemExit):
        parser.parse_args([*given, f"--{flag}={value}"])
    assert f"argument --{flag}: " in capsys.readouterr().err


def test_every_setting_is_declared_once():
    groups = [PairingSettings.model_fields, OptimizationSettings.model_fields]
    assert not groups[0].keys() & groups[1].keys()
    assert RunSettings.model_fields.keys() == {"epochs", "batch_size", *groups[0], *groups[1]}
    assert TrainingSettings.model_fields.keys() == {"objective", *groups[1]}


def test_values_of_the_models_are_those_that_readers_take():
    def values(model, name):
        return set(get_args(model.model_fields[name].annotation))

    assert values(PairingSettings, "short_clips") == set(SHORT_CLIPS)
    assert values(ShardSettings, "channels") == set(CHANNELS)
    assert values(Evaluation, "windows") == set(WINDOWS)
    assert Dataset.model_fields["captions"].is_required() and Configuration.model_fields["datasets"].is_required()


def with_run(config, run, **changes):
    """The configuration with other keys of a run and a table that evaluates it."""
    config["runs"][run] = {**config["runs"][run], **changes}
    return config


def test_a_run_with_default_settings_has_the_flags_and_inputs_of_before(config):
    study = Study.of_config(config)
    names = {flag.split("=")[0].removeprefix("--") for flag in study.training_flags("clotho_composed_audioset", "0")}
    later = {name.replace("_", "-") for name, given in TrainingSettings.model_fields.items() if ADDED in given.metadata}
    assert later and names.isdisjoint(later | {"validation"})
    assert study.validated_while_trained("clotho_composed_audioset") == []


def test_a_run_is_validated_on_the_validation_splits_of_its_targets(config):
    study = Study.of_config(with_run(config, "clotho_composed_audioset", settings={"validate_every": 2}))
    summaries = study.validated_while_trained("clotho_composed_audioset")
    assert summaries == ["results/shards/clotho/validation/manifest.json"]
    flags = study.training_flags("clotho_composed_audioset", "0")
    assert flags[-2:] == ["--validation=results/shards/clotho/validation", "--validation-protocol=paper"]
    assert "--validate-every=2" in flags and study.training_flags("clotho_finetune", "0")[-1] == "--objective=finetune"
    assert "--learning-rate=0.1" in study.candidate_flags("clotho_composed_audioset", "learning_rate=0.1", "0")


def test_a_run_that_serves_two_targets_is_validated_on_both(config):
    study = Study.of_config(with_run(config, "all_pairs_finetune", settings={"validate_every": 1}))
    assert [Path(path).parts[-3] for path in study.validated_while_trained("all_pairs_finetune")] == [
        "clotho",
        "audiocaps",
    ]


def test_an_averaged_run_is_evaluated_in_its_own_folder(config):
    study = Study.of_config(with_run(config, "clotho_finetune", average_with_pretrained=True))
    assert study.model("clotho_finetune", "1") == "results/averaged/clotho_finetune/seed1/model.safetensors"
    assert study.model("clotho_composed_audioset", "1").startswith("results/runs/")
    assert study.training_flags("clotho_finetune", "0") == Study.of_config(config).training_flags(
        "clotho_finetune", "0"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"validate_every": 1}}, "validate_every is above 0"),
        ({"average_with_pretrained": True}, "average_with_pretrained is true"),
    ],
)
def test_validation_needs_a_validation_split_and_a_target(config, changes, reason):
    del config["datasets"]["clotho"]["splits"]["validation"]
    run = {"objective": "finetune", "labeled": ["clotho"], **changes}
    config["runs"] |= {"lonely": run, "clotho_finetune": {**config["runs"]["clotho_finetune"], **changes}}
    found = problem(config)
    assert f"runs.clotho_finetune: {reason}, but datasets.clotho.splits names no validation split; add it" in found
    assert f"runs.lonely: {reason}, but no table or curve evaluates the run, so it has no target" in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "both"}, "runs.clotho_finetune: freeze is both, and the objective finetune trains no a2t module"),
        ({"keep": "best"}, "runs.clotho_finetune: keep is best, but validate_every is 0"),
        ({"layer_decay": 0}, "layer_decay: 0 must be above 0"),
        ({"freeze": "half"}, "'half' is not one of none, audio, text, both"),
    ],
)
def test_settings_that_exclude_each_other_are_named(config, settings, message):
    assert message in problem(with_run(config, "clotho_finetune", settings=settings))


def test_the_pretraining_is_not_validated(config):
    config["pretrain"] = {"validate_every": 1}
    assert "pretrain.validate_every: the pretraining has no validation split" in problem(config)


# --- the sweep


def swept(config: dict[str, Any], grid: dict[str, list[Any]], **more: Any) -> Study:
    return Study.of_config({**config, "sweep": {"grid": grid, **more}})


def test_every_combination_of_the_grid_is_a_candidate_of_every_trained_run(config):
    study = swept(config, {"learning_rate": [0.1, 0.2], "learn_temperature": [True, False]}, seeds=[0, 7])
    folders = study.candidate_evaluations()
    assert "results/sweep/learning_rate=0.2,learn_temperature=false/clotho_finetune/seed7/clotho" in folders
    assert len(folders) == len(set(folders)) == 4 * 2 * len([row for row in study.rows() if row.run != "vanilla"])


def test_a_sweep_of_one_table_searches_its_runs_alone(config):
    rows = [{"target": "clotho", "method": "finetune", "run": "clotho_finetune"}]
    config["tables"]["mine"] = rows
    study = swept(config, {"learning_rate": [0.1, 0.2]}, tables=["mine"])
    assert study.candidate_evaluations() == [
        f"results/sweep/learning_rate={rate}/clotho_finetune/seed0/clotho" for rate in (0.1, 0.2)
    ]
    with pytest.raises(PipelineError, match=r"sweep\.tables: there is no table nine; tables: table1, mine"):
        swept(config, {"learning_rate": [0.1]}, tables=["nine"])


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.0003, "learn_temperature": False, "pseudo_tokens": 3},
        {"conjunction": " and ", "prompt": "a=b,c/{d}%"},
        {"prompt": "true", "conjunction": "3"},
    ],
)
def test_a_candidates_name_holds_its_values(values):
    name = candidate_name(values)
    assert candidate_values(name) == values
    assert not set(name) & set("/{} ")


def test_a_candidate_changes_its_flags_and_only_its_own(config):
    study = swept(config, {"learning_rate": [0.1]})
    run, name = "clotho_composed_audioset", "learning_rate=0.1"
    assert "--learning-rate=0.1" in study.candidate_flags(run, name, "0")
    assert "--learning-rate=0.1" not in study.training_flags(run, "0")
    assert set(study.candidate_flags(run, name, "0")) ^ set(study.training_flags(run, "0")) == {
        "--learning-rate=0.1",
        "--learning-rate=0.0003",
    }


def test_a_candidate_has_pairs_of_its_own_only_if_they_are_drawn_otherwise(config):
    study = swept(config, {"learning_rate": [0.1], "epochs": [2]})
    run = "clotho_composed_audioset"
    assert study.candidate_pairs(run, "learning_rate=0.1", "3") == f"results/pairs/{run}/seed3.parquet"
    assert study.candidate_pairs(run, "epochs=2", "3") == f"results/sweep/epochs=2/{run}/seed3.pairs.parquet"
    assert "--epochs=2" in study.candidate_pairing_flags(run, "epochs=2")


def test_an_objective_in_the_grid_leaves_unused_audio_out(config):
    study = swept(config, {"objective": ["finetune", "concatenate"]})
    run = "clotho_composed_audioset"
    assert study.candidate_summaries(run, "objective=finetune", "unlabeled") == []
    assert "--mix-labeled" in study.candidate_pairing_flags(run, "objective=concatenate")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"learnig_rate": [0.1]}, r"sweep\.grid: learnig_rate is no setting; settings: .*learning_rate"),
        ({"learning_rate": [-1]}, r"sweep\.grid: .*learning_rate: -1 must be above 0"),
        ({"objective": ["vanilla"]}, r"sweep\.grid\.objective: vanilla trains nothing"),
        ({"objective": ["other"]}, r"sweep\.grid: objective: 'other' is not one of"),
        ({"learning_rate": [0.1, 0.1]}, r"sweep\.grid\.learning_rate: .* holds one value twice"),
        ({}, r"sweep\.grid: .*at least 1"),
    ],
)
def test_a_wrong_grid_is_named(config, grid, said):
    with pytest.raises(PipelineError, match=said):
        swept(config, grid)


def test_a_run_that_cannot_take_an_objective_is_named(config):
    study = swept(config, {"objective": ["composed"]})
    with pytest.raises(PipelineError, match=r"candidate objective=composed: runs\.clotho_finetune: .* needs unlabeled"):
        study.candidate_evaluations()


# --- descriptions of unlabeled audio


def test_unlabeled_audio_is_described_only_where_it_is_asked_for(config):
    config["pool"] = {}
    study = Study.of_config(config)
    assert study.pools() == [] and study.pool_folders() == []
    config["pool"] = {"against": ["validation", "test"]}
    folders = Study.of_config(config).pool_folders()
    targets, roles = ("clotho", "audiocaps"), ("validation", "test")
    assert folders == [f"results/pools/{target}/{role}" for target in targets for role in roles]


def test_a_description_compares_the_splits_of_the_runs_with_unlabeled_audio(config):
    study = Study.of_config(config)
    assert study.pool_splits("clotho", "labeled") == ["clotho/development"]
    assert study.pool_splits("clotho", "unlabeled") == ["audiocaps/train", "audioset/balanced_train"]
    assert study.pool_embeddings("audiocaps", "test") == [
        f"results/embeddings/{split}/embeddings.parquet"
        for split in ("audiocaps/test", "audiocaps/train", "clotho/development", "audioset/balanced_train")
    ]


def test_a_split_that_another_run_uses_unlabeled_is_not_labeled_in_a_description(config):
    config["runs"]["both"] = {"objective": "composed", "labeled": ["clotho", "audiocaps"], "unlabeled": ["audioset"]}
    config["tables"]["table1"].append({"target": "clotho", "method": "composed_all_pairs", "run": "both"})
    assert Study.of_config(config).pool_splits("clotho", "labeled") == ["clotho/development"]


def test_near_duplicates_are_looked_for_unless_switched_off(config):
    assert Study.of_config(config).pool_near_duplicates("clotho") == []  # the small study saves the minute
    config["pool"] = {"against": ["test"]}
    splits = ("audiocaps/train", "audioset/balanced_train")
    reports = [f"results/reports/near_duplicates/{split}.json" for split in splits]
    assert Study.of_config(config).pool_near_duplicates("clotho") == reports


def test_the_page_accounts_for_every_split_of_a_description(config):
    config["pool"] = {"against": ["validation"]}
    summaries = Study.of_config(config).page_summaries()
    assert "results/shards/clotho/validation/manifest.json" in summaries
    assert len(summaries) == len(set(summaries))


def test_a_study_without_unlabeled_audio_says_that_none_is_described(config):
    config["tables"]["table1"] = [row for row in config["tables"]["table1"] if row["method"] != "composed"]
    study = Study.of_config(config)
    assert study.pools() == []
    assert "pool.against: no row of the tables has a run with unlabeled audio" in " ".join(study.opening_lines())


def test_a_target_without_validation_split_cannot_be_described_against_it(config):
    config["pool"] = {"against": ["validation"]}
    del config["datasets"]["clotho"]["splits"]["validation"]
    with pytest.raises(PipelineError, match=r"pool\.against: datasets\.clotho\.splits names no validation split"):
        Study.of_config(config)
