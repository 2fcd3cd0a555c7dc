"""A split that grows: what Snakemake makes again, and what it leaves as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from test_workflow import SHIPPED, snakemake

from pipeline.data.shards.partition import read_assignment

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
    (folder / "field.yaml").write_text(yaml.safe_dump({"datasets": {"field": field}, "shards": {"clips_per_shard": 8}}))


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
    assert plan(study, "flac.yaml")["shard_audio"] == len(shards)


def test_identical_files_that_were_written_again_rerun_nothing(study):
    """Neither what is below Snakemake's limit for checksums nor the tars above it, which no rule has as input."""
    for path in [*(study / "results/shards/field/all").iterdir(), study / "results/catalogs/field/all.parquet"]:
        path.write_bytes(path.read_bytes())
    assert "Nothing to be done" in make(study, "-n")


def test_a_thousand_shards_are_planned_from_one_reading_of_the_catalog(study):
    path = study / "results/catalogs/field/all.parquet"
    whole, table = path.read_bytes(), pq.read_table(path)
    rows = [table.slice(0, 1).to_pylist()[0] | {"key": f"field_all_{row:06d}_{row:08x}"} for row in range(20_000)]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    (study / "large.yaml").write_text("shards: {clips_per_shard: 32}\n")
    try:
        counts = plan(study, "large.yaml")
    finally:
        path.write_bytes(whole)
    assert "index_audio" not in counts and counts["shard_audio"] > 1_000
