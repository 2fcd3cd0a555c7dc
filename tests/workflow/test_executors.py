"""The same rules on another batch system: a queue made of a shell script, through the executor `cluster-generic`."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from test_growing_splits import record
from test_workflow import SHIPPED, snakemake

from pipeline.assignment import read_assignment

ROOT = Path(__file__).parents[2]
SUBMIT = """#!/bin/sh
# What sbatch, qsub or bsub do: take a job script, start it somewhere else, print its number and return at once.
echo "$1" >> submitted.txt
nohup sh "$1" > /dev/null 2>&1 &
echo $!
"""


def test_a_split_is_sharded_in_groups_through_another_batch_system(tmp_path):
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "raw" / "all").mkdir(parents=True)
    record(tmp_path / "raw" / "all", 0, 24)
    field = {"adapter": "folder", "root": "raw", "captions": False, "splits": {"train": "all"}}
    (tmp_path / "field.yaml").write_text(
        yaml.safe_dump({"datasets": {"field": field}, "shards": {"clips_per_shard": 8}})
    )
    submit = tmp_path / "submit.sh"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    queue = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", submit, "--jobs", "2"]
    queue += ["--seconds-between-status-checks", "1"]
    groups = ["--groups", "shard_audio=shards", "--group-components", "shards=2"]
    snakemake(tmp_path, "results/shards/field/all/manifest.json", "--configfile", "field.yaml", *queue, *groups)

    shards = read_assignment(tmp_path / "results/catalogs/field/all.parquet", 8)
    made = {path.stem for path in (tmp_path / "results/shards/field/all").glob("*.tar")}
    assert made == {shard.shard for shard in shards}
    submissions = (tmp_path / "submitted.txt").read_text().split()
    assert len(submissions) == 1 + (len(shards) + 1) // 2 + 1, "the catalog, the groups of two shards, the manifest"
