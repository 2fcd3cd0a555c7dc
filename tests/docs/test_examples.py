"""The code blocks of the README and of *Getting started* work: each line of shell and each block of Python is run.

Commands that take long are planned instead: `make -n`, `snakemake -n`. The others run on the tiny study, under the
names that the pages use.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.forks import run_python

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]
SHIPPED = ["Snakefile", "config.yaml", "workflow", "pipeline", "profiles", "data", "Makefile"]
RUN, SPLITS = "clotho_composed_audioset", ("clotho/development", "clotho/evaluation")
ACTIVATES = ". .venv/bin/activate"


def blocks(language: str) -> list[str]:
    """The blocks of a language on all pages."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return [block for page in PAGES for block in pattern.findall(page.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    lines = [line.strip() for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def project(tiny_study, tmp_path_factory) -> Path:
    """A folder like the project's after the small study, with the tiny study's files under its names."""
    folder = tmp_path_factory.mktemp("project")
    for name in SHIPPED:
        (folder / name).symlink_to(ROOT / name)
    results = folder / "results"
    shutil.copytree(tiny_study.pretrained, results / "runs" / RUN / "seed0")
    for split in SPLITS:
        shutil.copytree(tiny_study.shards / "labeled" / "train", results / "shards" / split)
    for dataset in ("labeled", "unlabeled"):
        shutil.copytree(tiny_study.shards / dataset / "train", results / "shards" / dataset / "train")
    (results / "pairs" / RUN).mkdir(parents=True)
    shutil.copy(tiny_study.pairs("composed"), results / "pairs" / RUN / "seed0.parquet")
    soundfile.write(folder / "dog.wav", np.random.default_rng(0).normal(0, 0.1, (30_000, 2)), 44_100)
    return folder


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    """A folder with the project's files and the README's own study, nothing of it made."""
    folder = tmp_path_factory.mktemp("planned")
    for name in SHIPPED:
        (folder / name).symlink_to(ROOT / name)
    (block,) = (block for block in blocks("yaml") if "birds" in block)
    study = yaml.safe_load(block)
    home = folder / "home"
    for name, dataset in study["datasets"].items():
        root = Path(dataset["root"].replace("~", str(home)))
        for split in dataset["splits"].values():
            (root / split).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / split / f"{name}.wav", np.zeros(16_000), 16_000)
            if dataset["captions"]:
                (root / f"{split}.csv").write_text("file_name,caption_1\nbirds.wav,a bird sings\n")
    (folder / "mine.yaml").write_text(block)
    return folder


def run(command: list[str], folder: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    if command[0] == "make":
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    else:
        program = [Path(sys.executable).with_name("snakemake")] if command[0] == "snakemake" else []
        done = run_python(*program, *command[1:], cwd=folder, env=environment)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def commands_of(program: str) -> list[list[str]]:
    """The commands of a program as words, without comments."""
    found = [shlex.split(line, comments=True) for line in commands()]
    return [words for words in found if words[0] == program]


def plans() -> list[list[str]]:
    """Snakemake's commands, those joined that differ in their targets only, because planning takes seconds."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for words in commands_of("snakemake"):
        flags = [word for i, word in enumerate(words) if word.startswith("--") or words[i - 1].startswith("--")]
        targets = joined.setdefault(tuple(flag for flag in flags[2:]), [])
        targets += [word for word in words[1:] if word not in flags]
    return [["snakemake", "--cores", "2", *targets, *flags] for flags, targets in joined.items()]


def test_every_command_is_of_a_known_program():
    programs = {shlex.split(line, comments=True)[0] for line in commands() if line != ACTIVATES}
    assert programs == {"make", "snakemake", "composed-text"}


@pytest.mark.parametrize("words", commands_of("make"), ids=" ".join)
def test_make_target_exists(words):
    assert run(["make", "-n", *words[1:]], ROOT)


@pytest.mark.parametrize("words", plans(), ids=lambda words: " ".join(words[3:]))
def test_snakemake_plans(words, planned):
    assert words[3:] and run([*words, "-n"], planned)


@pytest.mark.parametrize("words", commands_of("composed-text"), ids=lambda words: words[1])
def test_command_works(words, project):
    assert run([sys.executable, "-m", "pipeline", *words[1:]], project)
    assert words[1] != "listen" or (project / "listen" / "index.html").is_file()


@pytest.mark.parametrize("code", blocks("python"))
def test_python_works(code, project):
    shown = run([sys.executable, "-c", code], project)
    assert shown.startswith("[[" if "cosine" in code else "1 ")


def test_every_language_has_a_test():
    found = {name for page in PAGES for name in re.findall(r"^```(\w+)$", page.read_text(), flags=re.MULTILINE)}
    assert found <= {"sh", "python", "yaml", "text"}  # text is output
    assert len(commands()) > 10 and len(blocks("python")) == 2
