"""The notebook's cells, run in order, on the tiny study and on the small study's results where they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
import soundfile

from tests.forks import run_python

ROOT = Path(__file__).parents[1]
RUN, SPLIT = "clotho_composed_audioset", "clotho/evaluation"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder like the project's, whose results are still missing."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    return tmp_path


def run_notebook(project: Path) -> str:
    """The output of the notebook's code, in a process of its own."""
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_python("-c", code, cwd=project / "examples", env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_outputs(project: Path, shown: str) -> None:
    assert "clips;" in shown and "composed.wav" in shown
    assert soundfile.info(project / "examples" / "found.wav").frames > 0
    assert (project / "examples" / "pair" / "index.html").is_file()


def test_quickstart_runs_on_the_tiny_study(tiny_study, project: Path) -> None:
    results = project / "results"
    shutil.copytree(tiny_study.pretrained, results / "runs" / RUN / "seed0")
    shutil.copytree(tiny_study.shards / "labeled" / "train", results / "shards" / SPLIT)
    for dataset in ("labeled", "unlabeled"):
        shutil.copytree(tiny_study.shards / dataset / "train", results / "shards" / dataset / "train")
    (results / "pairs" / RUN).mkdir(parents=True)
    shutil.copy(tiny_study.pairs("composed"), results / "pairs" / RUN / "seed0.parquet")
    check_outputs(project, run_notebook(project))


@pytest.mark.skipif(not (ROOT / "results" / "table1.tex").exists(), reason="the small study has not been run here")
def test_quickstart_runs_on_the_small_study(project: Path) -> None:
    for name in ("shards", "pairs"):
        (project / "results").mkdir(exist_ok=True)
        (project / "results" / name).symlink_to(ROOT / "results" / name)
    shutil.copytree(ROOT / "results" / "runs" / RUN, project / "results" / "runs" / RUN)
    check_outputs(project, run_notebook(project))
