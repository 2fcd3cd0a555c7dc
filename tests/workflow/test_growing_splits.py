"""A split that grows: what Snakemake makes again, and what it leaves as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from test_workflow import SHIPPED, snakemake

from pipeline.data.shards.partition import read_assignment
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[2]
SUMMARY = "results/shards/field/all/manifest.json"


def record(folder: Path, first: int, count: int) -> None:
    """A quarter of a second of noise a file, named by minute."""
    for minute in range(first, first + count):
        samples = np.random.default_rng(minute).normal(0, 0.1, 4_000)
        soundfile.write(folder / f"20260501_{minute // 60:02d}{minute % 60:02d}00.wav", samples, 16_000)


def make_study(folder: Path) -> None:
    """A copy of what ships with one unlabeled dataset of 24 recordings more, sharded by at most 8."""
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "raw" / "all").mkdir(parents=True)
    record(folder / "raw" / "all", 0, 24)
    field = {"adapter": "folder", "root": "raw", "captions": False, "splits": {"train": "all"}}
    datasets = {**yaml.safe_load((ROOT / "config.yaml").read_text())["datasets"], "field": field}
    study = {**yaml.safe_load((ROOT / "config.yaml").read_text()), "datasets": datasets}
    (folder / "field.yaml").write_text(yaml.safe_dump({**study, "shards": {"clips_per_shard": 8, "jobs": 3}}))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growing")
    make_study(folder)
    return folder


def make(study, *arguments, settings="field.yaml"):
    configuration = dict.fromkeys(["field.yaml", settings])
    return snakemake(study, SUMMARY, "--configfile", *configuration, *arguments)


def plan(study, settings="field.yaml"):
    """How many jobs of each rule would run."""
    lines = [line.split() for line in make(study, "-n", "--quiet", "rules", settings=settings).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


def modified(study):
    return {path.name: path.stat().st_mtime_ns for path in (study / "results/shards/field/all").glob("*.tar")}


def test_only_the_shards_that_new_clips_fall_into_are_made_again(study):
    make(study)
    before = modified(study)
    assert len(before) >= 4

    record(study / "raw" / "all", 24, 4)
    make(study)
    after = modified(study)
    shards = read_assignment(study / "results/catalogs/field/all.parquet", 8)
    assert {f"{shard.shard}.tar" for shard in shards} <= after.keys()
    made = {name for name, changed in after.items() if before.get(name) != changed}
    assert 1 <= len(made) <= 3 and len(before.keys() - made) >= 2

    # Other settings are other shards.
    (study / "flac.yaml").write_text("shards: {format: flac}\n")
    assert plan(study, "flac.yaml")["shard_audio"] == 3


def test_another_number_of_jobs_makes_no_shard_again(study):
    before = modified(study)
    (study / "jobs.yaml").write_text("shards: {jobs: 2}\n")
    make(study, settings="jobs.yaml")
    assert modified(study) == before


def test_a_tar_that_is_deleted_or_cut_is_made_again_by_the_command_that_failed(study):
    folder = study / "results/shards/field/all"
    before = {path: path.read_bytes() for path in folder.glob("*.tar")}
    deleted, cut, *others = sorted(before)
    kept = {path: path.stat().st_mtime_ns for path in others}
    for damage in (deleted.unlink, lambda: cut.write_bytes(before[cut][:1000])):
        damage()
        with pytest.raises(PipelineError, match="run the same Snakemake command again"):
            open_shards(folder)
        make(study)
    assert "Nothing to be done" in make(study, "-n")
    assert {path: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert {path: path.stat().st_mtime_ns for path in others} == kept


def test_identical_files_that_were_written_again_rerun_nothing(study):
    """Neither what is below Snakemake's limit for checksums nor the tars above it, which no rule has as input."""
    files = [path for path in (study / "results/shards/field/all").iterdir() if path.is_file()]
    for path in [*files, study / "results/catalogs/field/all.parquet"]:
        path.write_bytes(path.read_bytes())
    assert "Nothing to be done" in make(study, "-n")


def test_the_plan_does_not_grow_with_the_data(study):
    """Neither the number of jobs nor what is read of the catalog: it is not there yet."""
    record(study / "raw" / "all", 28, 30)
    assert plan(study)["shard_audio"] == 3


def test_a_replaced_recording_remakes_its_tar(study):
    make(study)
    before = modified(study)
    recording = study / "raw" / "all" / "20260501_000300.wav"
    soundfile.write(recording, np.random.default_rng(99).normal(0, 0.1, 6_000), 16_000)  # of another size
    make(study)
    after = modified(study)
    assert sum(before[name] != after[name] for name in before) == 1

    soundfile.write(recording, np.random.default_rng(98).normal(0, 0.1, 6_000), 16_000)  # of the same size
    make(study, "--forcerun", "index_audio")
    assert sum(after[name] != changed for name, changed in modified(study).items()) == 1
