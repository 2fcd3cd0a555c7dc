"""The same rules on another batch system: a queue made of a shell script, through the executor `cluster-generic`."""

from __future__ import annotations

import sys

from test_growing_splits import make_study
from test_workflow import snakemake

from pipeline.data.shards.partition import read_assignment

SUBMIT = f"""#!/bin/sh
# What sbatch, qsub or bsub do: take a job script, start it somewhere else, print its number and return at once.
sed -i 's|{sys.executable}|python|' "$1"  # from PATH, where it is a fork
echo "$1" >> submitted.txt
nohup sh "$1" > /dev/null 2>&1 &
echo $!
"""


def test_a_split_is_sharded_in_groups_through_another_batch_system(tmp_path):
    make_study(tmp_path)
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
    assert len(submissions) == 1 + 2 + 1, "the catalog, three parts in groups of two, the manifest"
