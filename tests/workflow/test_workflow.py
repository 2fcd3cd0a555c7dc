"""The workflow as a user runs it: planned, refused, run at a tiny size, and run again."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data.pairs import read_facts
from pipeline.results.pools import read_pool
from pipeline.results.table.differences import read_comparisons
from pipeline.stages import mix_soundscapes
from pipeline.study import MINI_NOTE
from tests.forks import folder_with_python, run_python

ROOT = Path(__file__).parents[2]
SHIPPED = ["Snakefile", "config.yaml", "workflow", "pipeline", "profiles", "data", "experiments"]


OFFLINE = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
"""A proxy that nobody answers: what is asked of the network fails."""


def snakemake(folder, *arguments, status=0, variables=None):
    """Snakemake's output, run in a folder with the environment's own programs; it and its jobs are forks."""
    programs = Path(sys.executable).parent
    path = f"{folder_with_python()}:{programs}:{os.environ['PATH']}"
    done = run_python(
        programs / "snakemake", "--cores", "2", *arguments,
        cwd=folder, env={**os.environ, **(variables or {}), "PATH": path}, stderr=subprocess.STDOUT, timeout=1800,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-6000:]
    return done.stdout


def jobs_in(plan):
    """How many jobs of each rule a dry run plans."""
    found = re.findall(r"^(\w+) +(\d+)$", plan, flags=re.MULTILINE)
    return {name: int(count) for name, count in found}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what ships, so that no test writes into the checkout."""
    folder = tmp_path_factory.mktemp("project")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def tiny(project):
    """A study of raw trees of one's own, of all stages and objectives, at the smallest size that fills every batch."""
    for name in ("clotho", "audiocaps", "audioset"):
        arguments = ["--recordings", str(ROOT / "data" / "recordings"), "--dataset", name, "--seed", "0"]
        mix_soundscapes.main([*arguments, "--scale", "0.04", "--out", str(project / "own" / name)])
    datasets = yaml.safe_load((ROOT / "config.yaml").read_text())["datasets"]
    study = {
        "study": {"name": "tiny", "note": "A test.", "published": "data/paper_table1.csv"},
        "soundscapes": {"scale": 0.04},
        "datasets": {name: {**datasets[name], "root": f"own/{name}"} for name in ("clotho", "audiocaps", "audioset")},
        "shards": {"clips_per_shard": 16, "jobs": 1},
        "pretrain": {"epochs": 1, "batch_size": 4},
        "training": {"epochs": 1, "batch_size": 4},
        "runs": {
            "clotho_composed_audioset": {
                **{"objective": "composed", "labeled": ["clotho"], "unlabeled": ["audioset"]},
                **{"labeled_fraction": 0.6, "unlabeled_fraction": 0.5},
            },
            "audiocaps_finetune": {"objective": "finetune", "labeled": ["audiocaps"]},
            "all_pairs_concatenate": {"objective": "concatenate", "labeled": ["clotho", "audiocaps"]},
        },
        "pool": {"against": ["test"]},
        "curves": {
            "audio": {
                "target": "clotho",
                "against": "unlabeled_hours",
                "lines": {"composed": ["clotho_composed_audioset"]},
            }
        },
        "tables": {
            "table1": [
                {"target": "clotho", "method": "vanilla", "run": "vanilla"},
                {"target": "clotho", "method": "composed", "run": "clotho_composed_audioset"},
                {"target": "audiocaps", "method": "finetune", "run": "audiocaps_finetune"},
                {"target": "audiocaps", "method": "concatenate", "run": "all_pairs_concatenate"},
            ]
        },
    }
    path = project / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


RUNS = ("clotho_composed_audioset", "audiocaps_finetune", "all_pairs_concatenate")


def test_the_default_study_plans_every_stage(project):
    plan = snakemake(project, "-n", "--quiet", "rules")
    for stage in (
        "mix_soundscapes",
        "index_audio",
        "index_shards",
        "pair_clips",
        "pretrain",
        "train",
        "embed",
        "tabulate",
    ):
        assert stage in plan
    counts = jobs_in(plan)
    assert counts["train"] == 8 and counts["evaluate"] == 12


def test_an_unknown_key_ends_in_one_message_that_names_it(project):
    (project / "wrong.yaml").write_text("training: {learnig_rate: 0.1}\n")
    output = snakemake(project, "-n", "--configfile", "wrong.yaml", status=1)
    assert "training: unknown key learnig_rate; did you mean learning_rate?" in output
    assert "Traceback" not in output


def test_a_missing_root_ends_in_one_message_that_names_it(project):
    study = yaml.safe_load((project / "config.yaml").read_text())
    study["datasets"]["clotho"]["root"] = "nowhere"
    (project / "wrong.yaml").write_text(yaml.safe_dump(study))
    output = snakemake(project, "-n", "--configfile", "wrong.yaml", status=1)
    assert "datasets.clotho.root: there is no directory nowhere" in output


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("shards", {"mix_soundscapes", "index_audio", "shard_audio", "index_shards"}),
        ("pairs", {"pair_clips"}),
        ("models", {"pretrain", "train"}),
        ("evaluations", {"embed", "evaluate"}),
        ("tables", {"compare", "tabulate"}),
    ],
)
def test_people_ask_for_a_kind_of_result_by_name(project, target, rules):
    found = jobs_in(snakemake(project, target, "-n", "--quiet", "rules"))
    assert rules <= found.keys() and found[target] == 1
    assert "report" not in found


@pytest.mark.slow  # every stage of a study, and Snakemake's report of it
def test_the_whole_study_runs_at_a_tiny_size_and_a_second_run_has_nothing_to_do(project, tiny):
    snakemake(project, "--configfile", tiny, "--until", "shard_audio")
    for dataset, split in (("clotho", "development"), ("audioset", "balanced_train")):
        assert len(list((project / "results" / "shards" / dataset / split).glob("*.tar"))) > 0
    assert not (project / "results" / "pairs").exists()

    output = snakemake(project, "--configfile", tiny)
    assert MINI_NOTE in output and "result: results/table1.csv" in output
    with (project / "results" / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [[row[name] for name in ("target", "method", "clotho", "audiocaps", "audioset", "seeds")] for row in rows]
    assert cells == [
        ["clotho", "vanilla", "-", "-", "-", "1"],
        ["clotho", "composed", "A+T", "-", "A", "1"],
        ["audiocaps", "finetune", "-", "A+T", "-", "1"],
        ["audiocaps", "concatenate", "A+T", "A+T", "-", "1"],
    ]
    assert all(
        0 <= float(row[f"{direction}_R{k}"]) <= 100 for row in rows for direction in ("t2a", "a2t") for k in (1, 5, 10)
    )
    assert [row["published_t2a_R1"] for row in rows] == ["15.75", "18.41", "33.50", "38.26"]
    facts = read_facts(project / "results" / "pairs" / "clotho_composed_audioset" / "seed0.parquet")
    assert (facts["labeled_fraction"], facts["unlabeled_fraction"]) == (0.6, 0.5)
    with (project / "results" / "curves" / "audio.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [row["value"] for row in points] == [rows[1]["t2a_R1"], rows[1]["a2t_R1"]]
    assert float(points[0]["unlabeled_hours"]) == pytest.approx(facts["unlabeled_s"] / 3600, rel=1e-3)
    assert (project / "results" / "curves" / "audio.svg").exists()
    pool, _ = read_pool(project / "results" / "pools" / "clotho" / "test")
    assert (pool.held_out, pool.labeled) == ("clotho/evaluation", ["clotho/development"])
    assert [figures.name for figures in pool.unlabeled] == ["audioset/balanced_train"]
    assert pool.whole.near_duplicates is not None
    assert "window.POOLS" in (project / "results" / "report" / "data.js").read_text()
    assert not (project / "results" / "pools" / "audiocaps").exists()  # none of its runs uses unlabeled audio
    assert "Nothing to be done" in snakemake(project, "--configfile", tiny)

    other = "comparisons/with_vanilla/table1.csv"
    snakemake(project, f"results/{other}", "--configfile", tiny)
    compared = read_comparisons(project / "results" / other).figures
    assert [(row.target, row.method) for row in compared] == [("clotho", "composed")]

    # Snakemake's own report, without a network: every table, training and the page, each with its caption.
    snakemake(project, "--configfile", tiny, "--report", "report.zip", variables=OFFLINE)
    with zipfile.ZipFile(project / "report.zip") as report:
        held = [(Path(name).name, report.read(name)) for name in report.namelist()]
    trained = [f"runs/{run}/seed0/learning_curves.svg" for run in RUNS]
    page = ["report/index.html", "report/data.js"]
    page += [f"report/audio/{clip.name}" for clip in (project / "results" / "report" / "audio").iterdir()]
    assert len(page) > 2
    shown = ["table1.csv", "table1.tex", "comparisons/table1.csv", "curves/audio.svg", *page, *trained]
    shown.append("pretrained/mini/learning_curves.svg")
    results = [project / "results" / name for name in shown]
    assert sorted(file for file in held if file[0] != "report.html") == sorted(
        (path.name, path.read_bytes()) for path in results
    )
    text = dict(held)["report.html"].decode()
    for caption in (
        "A test.",
        "percent under the protocol",
        "the amount of training data, target <em>clotho</em>",
        *(f"Training of the run <em>{run}</em>" for run in RUNS),
    ):
        assert caption in text, caption


@pytest.mark.slow  # the whole study runs before it
def test_a_stage_runs_again_when_its_version_rises_and_not_when_its_code_is_edited(project, tiny):
    with (project / "pipeline" / "results" / "table" / "csv.py").open("a") as file:
        file.write("\n# An edit.\n")
    assert "Nothing to be done" in snakemake(project, "--configfile", tiny, "-n")
    versions = project / "pipeline" / "stages" / "__init__.py"
    before = versions.read_text()
    # Of another size: Python takes a compiled file for its source when size and second are the same.
    versions.write_text(before.replace('"tabulate": 1', '"tabulate": 20'))
    try:
        assert jobs_in(snakemake(project, "--configfile", tiny, "-n", "--quiet", "rules")).keys() == {
            *("tabulate", "report", "all", "total"),
        }
    finally:
        versions.write_text(before)


@pytest.mark.slow  # the whole study runs before it
def test_touched_folders_and_lock_files_rerun_nothing(project, tiny):
    (project / "own" / "clotho" / ".~lock.clotho_captions_evaluation.csv#").touch()
    for folder in (project / "own").rglob("*"):
        if folder.is_dir():
            folder.touch()
    assert "Nothing to be done" in snakemake(project, "--configfile", tiny, "-n")


@pytest.mark.slow  # all trainings are looked at again
def test_a_corrected_caption_of_a_test_split_trains_nothing_again(project, tiny):
    path = project / "own" / "clotho" / "clotho_captions_evaluation.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",A corrected caption"]) + "\n")
    weights = [project / "results" / "pretrained" / "mini", *(project / f"results/runs/{run}/seed0" for run in RUNS)]
    before = {folder: (folder / "model.safetensors").stat().st_ino for folder in weights}
    output = snakemake(project, "--configfile", tiny)
    assert {folder: (folder / "model.safetensors").stat().st_ino for folder in weights} == before
    assert "rule train:" in output, "Snakemake plans trainings, which recognise their inputs"
    split = project / "results" / "shards" / "clotho" / "evaluation"
    captions = [text for texts in pq.read_table(split / "manifest.parquet")["captions"].to_pylist() for text in texts]
    assert "A corrected caption" in captions
    assert "Nothing to be done" in snakemake(project, "--configfile", tiny)


@pytest.mark.slow  # it trains the candidates of a sweep
def test_a_sweep_goes_on_past_a_rate_that_diverges_and_chooses_the_other(project, tiny):
    """tests/stages/test_choose_settings.py has the choice among several."""
    rates, run = [0.001, 1e14], "clotho_composed_audioset"
    rows = [{"target": "clotho", "method": "composed", "run": run}]
    asked = {"sweep": {"grid": {"learning_rate": rates}}, "tables": {"table1": rows}}
    (project / "sweep.yaml").write_text(yaml.safe_dump(asked))
    snakemake(project, "results/sweep.csv", "--configfile", tiny, "sweep.yaml")
    with (project / "results" / "sweep.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["run"], float(row["learning_rate"]), row["targets"]) for row in found] == [
        (run, 0.001, "clotho"), (run, 1e14, "")
    ]  # fmt: skip
    assert re.match(r"step \d+: .*(nan|inf|not finite)", found[1]["diverged"]) and found[1]["mAP10"] == ""
    assert found[0]["diverged"] == "" and float(found[0]["mAP10"]) >= 0
    assert [row["chosen"] for row in found] == ["True", "False"]


def test_table2_and_curves_are_planned_on_top_of_the_papers_study(project):
    roots = {name: {"root": "data"} for name in ("clotho", "audiocaps", "audioset")}
    (project / "roots.yaml").write_text(yaml.safe_dump({"datasets": roots}))
    studies = [f"experiments/{name}.yaml" for name in ("paper", "table2", "curves")]
    targets = ["results/table2.tex", "results/curves/labeled_pairs.svg", "results/curves/unlabeled_audio.csv"]
    plan = snakemake(project, "-n", "-p", "--configfile", *studies, "roots.yaml", "--", *targets)
    counts = jobs_in(plan)
    assert (counts["train"], counts["draw_curves"], counts["tabulate"]) == (25, 2, 1)
    assert "--unlabeled-fraction=0.0625" in plan and "--labeled-fraction=0.25" in plan
    together = "--unlabeled=results/shards/audiocaps/train/manifest.parquet --unlabeled=results/shards/audioset/"
    assert together in plan and "'--conjunction= followed by '" in plan
    assert "--published=data/paper_table1.csv" in plan


def test_ablations_are_planned_each_with_its_own_setting(project):
    plan = snakemake(project, "-n", "-p", "--configfile", "experiments/ablations.yaml", "--", "results/ablations.tex")
    commands = {
        (stage, run): line
        for line in plan.splitlines()
        for stage, run in re.findall(r"-m pipeline\.stages\.(\w+) .* 2> logs/\1/(\w+)/", line)
    }
    drawn = {run: line for (stage, run), line in commands.items() if stage == "pair_clips"}
    for run, flags in (
        ("clotho_finetune", "--captions-per-clip=one --partners=each_epoch --windows=random --short-clips=repeat"),
        ("ablation_all_captions", "--captions-per-clip=all --partners=each_epoch --windows=random"),
        ("ablation_fixed_partners", "--captions-per-clip=one --partners=fixed --windows=random"),
        ("ablation_center_windows", "--captions-per-clip=one --partners=each_epoch --windows=center"),
    ):
        assert flags in drawn[run], run
    assert "--epochs=6 " in drawn["ablation_all_captions"] and "--epochs=30 " in drawn["ablation_fixed_partners"]
    fixed = [run for (stage, run), line in commands.items() if stage == "train" and "--no-learn-temperature" in line]
    assert fixed == ["ablation_fixed_temperature"]


def test_the_teacher_of_a_run_is_planned_with_it(project):
    taught = {"runs": {"clotho_finetune": {"teacher": "clotho_composed_audioset"}}}
    (project / "taught.yaml").write_text(yaml.safe_dump(taught))
    plan = snakemake(
        project, "-n", "-p", "--configfile", "taught.yaml", "--", "results/runs/clotho_finetune/seed0/model.safetensors"
    )
    assert jobs_in(plan)["train"] == 2
    assert plan.count("--teacher=results/runs/clotho_composed_audioset/seed0 ") == 1


def test_a_parquet_file_that_changes_makes_the_catalog_again(project):
    path = project / "mirror" / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    clips = [{"audio": {"bytes": b"x", "path": None}, "caption": caption} for caption in ("one", "two")]
    pq.write_table(pa.Table.from_pylist(clips), path)
    dataset = {"adapter": "parquet", "root": "mirror", "captions": True, "splits": {"train": "train"}}
    dataset["splits"] |= {"test": "train"}
    runs = {"tuned": {"objective": "finetune", "labeled": ["mirror"]}}
    rows = {"table": [{"target": "mirror", "method": "finetune", "run": "tuned"}]}
    study = {"datasets": {"mirror": dataset}, "runs": runs, "tables": rows}
    (project / "mirror.yaml").write_text(yaml.safe_dump(study))
    catalog = "results/catalogs/mirror/train.parquet"
    snakemake(project, catalog, "--configfile", "mirror.yaml")
    assert pq.read_metadata(project / catalog).num_rows == 2
    pq.write_table(pa.Table.from_pylist(clips[:1]), path)  # in place: its folder does not change
    assert "index_audio" in snakemake(project, catalog, "--configfile", "mirror.yaml", "-n", "--quiet", "rules")


def test_a_labeled_set_smaller_than_a_batch_is_named_by_the_stage_that_fills_batches(project, tiny):
    (project / "large.yaml").write_text("training: {batch_size: 1000}\n")
    output = snakemake(project, "--configfile", tiny, "large.yaml", status=1)
    assert "batch_size is 1000, but the labeled set holds" in output


def test_lint_finds_nothing(project):
    assert "Congratulations" in snakemake(project, "--lint")
