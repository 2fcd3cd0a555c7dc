"""What the fault injection takes for a fault: everything that a killed study has more, less or otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.faults import MARK, contents, differences, kind_of, processes_of, result_digest
from pipeline.data.shards.format import FACTS_KEY
from pipeline.files import write_json


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[str, str]:
    """The contents of a study of two results, which lies in the folder `study`."""
    results = tmp_path / "study" / "results"
    results.mkdir(parents=True)
    (results / "table.csv").write_text("target,method\n")
    write_json({"wall_s": 1.0, "steps": 6}, results / "training.json")
    return contents(tmp_path / "study")


def test_a_study_without_a_fault_differs_in_nothing(tmp_path, unbroken):
    write_json({"wall_s": 2.0, "steps": 6}, tmp_path / "study" / "results" / "training.json")
    (tmp_path / "study" / "logs").mkdir()
    (tmp_path / "study" / "logs" / "train.log").touch()
    (tmp_path / "study" / "tmp" / "snakemake1").mkdir(parents=True)
    assert differences(unbroken, tmp_path / "study") == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("results/table.csv", "target\n", "different: results/table.csv"),
        ("results/training.json", '{"steps": 7}', "different: results/training.json"),
        ("results/training.json", '{"wall', "different: results/training.json"),
        ("results/.table.csv.0123abcd.tmp", "", "left behind: results/.table.csv.0123abcd.tmp"),
        ("tmp/torchelastic", "", "left behind: tmp/torchelastic"),
        (".snakemake/locks/0.input.lock", "", "left behind: .snakemake/locks/0.input.lock"),
        (".snakemake/incomplete/dGFibGU=", "", "left behind: .snakemake/incomplete/dGFibGU="),
    ],
)
def test_a_changed_or_further_file_is_a_fault(tmp_path, unbroken, name, text, fault):
    path = tmp_path / "study" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert differences(unbroken, tmp_path / "study") == [fault]


def test_row_files_of_shards_are_the_same_for_raw_files_of_other_times(tmp_path):
    rows = pa.table({"key": ["a"]})
    digests = set()
    for sources in ("one", "two"):
        described = rows.replace_schema_metadata({FACTS_KEY: json.dumps({"sources": sources})})
        pq.write_table(described, tmp_path / "rows.parquet")
        digests.add(result_digest(tmp_path / "rows.parquet"))
    assert len(digests) == 1
    pq.write_table(pa.table({"key": ["b"]}), tmp_path / "rows.parquet")
    assert result_digest(tmp_path / "rows.parquet") not in digests


def test_a_missing_file_is_a_fault(tmp_path, unbroken):
    (tmp_path / "study" / "results" / "table.csv").unlink()
    assert differences(unbroken, tmp_path / "study") == ["missing: results/table.csv"]


def test_processes_of_a_study_are_found_by_its_mark(tmp_path):
    words = [sys.executable, "-c", "input()", "-m", "pipeline.stages.embed"]
    with subprocess.Popen(words, env=os.environ | {MARK: str(tmp_path)}, stdin=subprocess.PIPE) as process:
        assert processes_of(tmp_path) == [psutil.Process(process.pid)]
        assert kind_of(psutil.Process(process.pid)) == "embed"
        process.kill()
    assert processes_of(tmp_path) == []
