"""Names with all that a shell, Snakemake, LaTeX and HTML act on go through every rule as they are."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from test_workflow import SHIPPED, snakemake

from pipeline.data.shards.format import read_manifest

ROOT = Path(__file__).parents[2]
COMMANDS = "$(touch pwned)`touch pwned`;touch pwned;\"'"
TEXT = f"\\input{{/etc/passwd}} {{wildcards.run}} {COMMANDS} %s & _ # </script> {{{{ config }}}}"
FOLDER = f"-{{x}} {COMMANDS}\né %s & #"
CLIPS = [f"-{number} {{y}} {COMMANDS}\n.wav" for number in range(8)]


def record(folder: Path, names: list[str], seed: int) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        soundfile.write(folder / name, np.random.default_rng([seed, number]).normal(0, 0.1, 4_000), 16_000)


def caption(folder: Path, names: list[str], texts: list[str]) -> None:
    with folder.with_name(f"{folder.name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "caption_1"], *zip(names, texts, strict=True)])


def study(**changes: object) -> dict[str, object]:
    """Raw trees below a folder that begins with a dash, a split that does, and hostile texts wherever text is free."""
    clips = {"adapter": "folder", "root": FOLDER, "captions": True, "splits": {"train": "train", "test": "-x"}}
    sounds = {"adapter": "folder", "root": "-u {}", "captions": False, "splits": {"train": "all"}}
    return {
        "study": {"name": TEXT, "note": TEXT},
        "datasets": {"clips": clips, "sounds": sounds},
        "shards": {"jobs": 1},
        "pretrain": {"epochs": 1, "batch_size": 4, "dataset": "clips"},
        "training": {"epochs": 1, "batch_size": 4, "prompt": f"-{TEXT}"},
        "runs": {"mixed": {"objective": "composed", "labeled": ["clips"], "unlabeled": ["sounds"]}},
        "curves": {"audio": {"target": "clips", "against": "unlabeled_hours", "lines": {"mixed": ["mixed"]}}},
        "tables": {"table": [{"target": "clips", "method": "composed", "run": "mixed", "label": TEXT}]},
        **changes,
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """What ships, in a folder with a hostile name. The recordings are left out: nothing here is mixed from them."""
    folder = tmp_path_factory.mktemp("hostile") / f"-p {{x}} {COMMANDS}"
    folder.mkdir()
    for name in set(SHIPPED) - {"data"}:
        (folder / name).symlink_to(ROOT / name)
    for seed, split, names in ((0, "train", CLIPS), (1, "-x", CLIPS[:4])):
        record(folder / FOLDER / split, names, seed)
        caption(folder / FOLDER / split, names, [f"{TEXT} {split} {number}" for number in range(len(names))])
    record(folder / "-u {}" / "all", CLIPS, seed=2)
    return folder


def limited(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The variables and the command of a poor environment: C locale, no HOME, a TMPDIR that is missing, umask 077."""
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "PYTHONUTF8")}
    variables |= {"LC_ALL": "C", "TMPDIR": str(folder / "missing")}
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return variables, ["sh", "-c", 'umask 077; ulimit -n 64; exec "$@"', "sh"]


@pytest.mark.slow  # twelve rules, one after the other
def test_hostile_names_go_through_every_rule_in_a_poor_environment(project):
    (project / "hostile.yaml").write_text(yaml.safe_dump(study()), encoding="utf-8")
    variables, command = limited(project)
    done = subprocess.run(
        [*command, "snakemake", "--cores", "2", "--configfile", "hostile.yaml"],
        cwd=project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert not list(project.parent.rglob("pwned"))

    manifest = read_manifest(project / "results/shards/clips/-x/manifest.parquet")
    assert sorted(manifest["source_name"].to_pylist()) == sorted(CLIPS[:4])
    assert sorted(text for texts in manifest["captions"].to_pylist() for text in texts) == [
        f"{TEXT} -x {number}" for number in range(4)
    ]
    with (project / "results/table.csv").open(encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [TEXT]
    assert r"\input{" not in (project / "results/table.tex").read_text(encoding="utf-8").split(r"\begin{document}")[1]
    html = (project / "results/report/index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;" in html and html.count("</script>") == 2, "the two scripts of the page"
    made = [path for path in (project / "results").rglob("*") if path.stat().st_mode & 0o077]
    assert made == [], "umask 077"


def test_a_yaml_tag_in_a_configuration_runs_nothing(project):
    (project / "tagged.yaml").write_text("study: !!python/object/apply:os.system [touch pwned]\n")
    output = snakemake(project, "-n", "--configfile", "tagged.yaml", status=1)
    assert "not valid JSON or YAML" in output
    assert not list(project.parent.rglob("pwned"))


def test_every_planned_command_passes_hostile_paths_as_they_are(project):
    """Rules that the small run leaves out: published weights, published figures, ready shards."""
    weights, published = (f"-{name} {COMMANDS}\né %s & #" for name in ("weights", "published"))
    for path in (weights, published):
        (project / path).touch()
    sounds = {"shards": f"./s {COMMANDS}{{x}}", "captions": False, "splits": {"train": "all"}}
    given = study(backbone={"name": "msclap-2023", "weights": weights, "tokenizer": weights})
    given["study"] |= {"published": published}
    given["datasets"]["sounds"] = sounds
    (project / "paths.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    plan = snakemake(project, "-n", "--forceall", "--configfile", "paths.yaml")
    words = {word for line in re.split(r"\n(?=Shell command: )", plan) for word in words_of(line)}
    assert {
        *(f"--weights={weights}", f"--tokenizer={weights}", f"--published={published}", f"--root={FOLDER}"),
        *(f"--address=./s {COMMANDS}{{x}}/all", f"--study-name={TEXT}", f"--name={TEXT}", f"--prompt=-{TEXT}"),
    } <= words


def words_of(block: str) -> list[str]:
    """The words of the shell command that a block of Snakemake's output begins with."""
    if not block.startswith("Shell command: python") and not block.startswith("Shell command: exec"):
        return []
    return shlex.split(block.removeprefix("Shell command: ").split("\n[")[0].partition(" 2> logs/")[0])
