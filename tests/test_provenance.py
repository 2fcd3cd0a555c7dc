"""A job that is run again with the same inputs keeps its outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.provenance import KEPT, remember, restore

MADE_FROM = {"stage": "embed", "version": 1, "model": {"model.json": "ab"}, "threads": None, "batch_size": 64}


@pytest.fixture
def outputs(tmp_path: Path) -> list[Path]:
    """Two outputs of a job, remembered, then deleted as Snakemake does before it runs a job again."""
    paths = [tmp_path / "embeddings.npz", tmp_path / "metrics.json"]
    for path in paths:
        path.write_text(f"bytes of {path.name}")
    remember(paths, MADE_FROM)
    for path in paths:
        path.unlink()
    return paths


def test_the_same_inputs_restore_the_same_bytes(outputs: list[Path]) -> None:
    assert restore(outputs, MADE_FROM)
    assert [path.read_text() for path in outputs] == [f"bytes of {path.name}" for path in outputs]


def test_outputs_can_be_restored_more_than_once(outputs: list[Path]) -> None:
    for _ in range(2):
        assert restore(outputs, MADE_FROM)
        outputs[0].unlink()


def test_restored_outputs_are_newer_than_their_inputs(outputs: list[Path], tmp_path: Path) -> None:
    for path in (tmp_path / KEPT).iterdir():
        os.utime(path, (0, 0))
    (tmp_path / "input").touch()
    assert restore(outputs, MADE_FROM)
    assert all(path.stat().st_mtime_ns >= (tmp_path / "input").stat().st_mtime_ns for path in outputs)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"model": {"model.json": "cd"}}, {"model": {}}, {"threads": 1}, {"more": None}]
)
def test_another_input_restores_nothing(outputs: list[Path], change: dict[str, object]) -> None:
    assert not restore(outputs, MADE_FROM | change)
    assert not any(path.exists() for path in outputs)


def test_nothing_is_restored_before_the_first_run(tmp_path: Path) -> None:
    assert not restore([tmp_path / "embeddings.npz"], MADE_FROM)


def test_an_output_that_was_not_kept_restores_nothing(outputs: list[Path], tmp_path: Path) -> None:
    assert not restore([*outputs, tmp_path / "other.npz"], MADE_FROM)


@pytest.mark.parametrize("name", ["embeddings.npz", "metrics.json", "made_from.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_text("other"), lambda path: path.unlink()])
def test_a_damaged_kept_file_restores_nothing(outputs: list[Path], tmp_path: Path, name: str, damage) -> None:
    damage(tmp_path / KEPT / name)
    assert not restore(outputs, MADE_FROM)


def test_an_output_that_was_written_into_is_not_restored(outputs: list[Path]) -> None:
    """It is a hard link: what changes the output changes the kept file."""
    assert restore(outputs, MADE_FROM)
    with outputs[0].open("a") as file:
        file.write("more")
    assert not restore(outputs, MADE_FROM)


def test_later_outputs_take_the_place_of_earlier_ones(outputs: list[Path]) -> None:
    for path in outputs:
        path.write_text("later")
    remember(outputs, MADE_FROM | {"version": 2})
    assert not restore(outputs, MADE_FROM)
    assert restore(outputs, MADE_FROM | {"version": 2})
    assert outputs[0].read_text() == "later"


def no_links(*paths: object) -> None:
    raise PermissionError(1, "Operation not permitted")  # as on exFAT and some network file systems


def test_without_hard_links_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "embeddings.npz"
    path.write_text("bytes")
    monkeypatch.setattr(os, "link", no_links)
    remember([path], MADE_FROM)
    assert not restore([path], MADE_FROM)
    assert path.read_text() == "bytes"


def test_kept_files_copied_to_where_there_are_no_hard_links_restore_nothing(
    outputs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    assert not restore(outputs, MADE_FROM)
