"""The wheel holds all that the package reads, and works where nothing else of the project is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, built from a copy of the sources without network."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "pipeline", folder / "source" / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [Path(sys.executable).parent / "uv", "build", "--wheel", "--offline", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--python", sys.executable, "--out-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    made = {path.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*") if "__pycache__" not in path.parts}
    found = {path.relative_to(installed) for path in (installed / "pipeline").rglob("*")}
    assert found == made


def test_installed_command_works_from_any_folder(installed: Path, tiny_study, tmp_path: Path) -> None:
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "composed-text = pipeline.commands:run" in entry.read_text()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for start in (["-m", "pipeline"], ["-c", "from pipeline.commands import run; run()"]):
        command = [sys.executable, *start, "verify", str(tiny_study.shards / "labeled" / "train")]
        shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert ": ok: shards 2" in shown.stdout
