"""Vectors and real shards in, the clips to caption next out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.data.shards.format import read_manifest
from pipeline.errors import PipelineError
from pipeline.evaluation import selection
from pipeline.evaluation.selection import KERNEL_VARIANCE, Coverage, choose, rarities, suggest
from pipeline.evaluation.vectors import unit_rows


@pytest.fixture
def run_folder(tmp_path, tiny_study) -> Path:
    return Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))


def split(tiny_study, dataset: str = "unlabeled") -> Path:
    return tiny_study.shards / dataset / "train"


def random_units(count: int, seed: int = 0, width: int = 8) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, width)) + 0.5)


def kernel(one: np.ndarray, other: np.ndarray, variance: float = KERNEL_VARIANCE) -> np.ndarray:
    squares = ((one[:, None].astype(np.float64) - other[None]) ** 2).sum(axis=2)
    return np.exp(-squares / (2 * variance))


def weights_of(pool: np.ndarray) -> np.ndarray:
    cosines = pool.astype(np.float64) @ pool.T
    variance = np.mean([1 - np.delete(row, place).max() for place, row in enumerate(cosines)])
    weights = 1 / kernel(pool, pool, variance).sum(axis=1)
    return weights / weights.sum()


def brute_force(pool: np.ndarray, captioned: np.ndarray, allowed: np.ndarray, count: int) -> tuple[list, list]:
    """The definition: of all candidates, the one that raises the weighted mean of the nearest kernel values most."""
    similarity, weights = kernel(pool, pool), weights_of(pool)
    covered = kernel(pool, captioned).max(axis=1, initial=0)
    rows, reached = [], []
    for _ in range(count):
        values = weights @ np.maximum(similarity, covered[:, None])
        values[~allowed] = -1
        values[rows] = -1
        rows.append(int(values.argmax()))
        covered = np.maximum(covered, similarity[:, rows[-1]])
        reached.append(weights @ covered)
    return rows, reached


@pytest.mark.parametrize("captioned", [0, 5])
def test_choice_is_the_greedy_one_of_the_definition(monkeypatch, captioned):
    monkeypatch.setattr(selection, "BLOCK_ROWS", 7)
    pool, known = random_units(100), random_units(captioned, seed=1)
    allowed = np.arange(100) % 3 > 0
    coverage = Coverage(pool)
    if captioned:
        coverage.add(known, Coverage.CAPTIONED)
    rows, reached = choose(pool, coverage, allowed, 20)
    expected_rows, expected = brute_force(pool, known, allowed, 20)
    assert rows == expected_rows
    assert reached == pytest.approx(expected, abs=1e-6)


def test_all_clips_of_a_split_can_be_chosen():
    pool = random_units(30)
    rows, reached = choose(pool, Coverage(pool), np.ones(30, bool), 30)
    assert sorted(rows) == list(range(30))
    assert reached[-1] == pytest.approx(1)


def test_more_equal_clips_than_a_block_holds_are_chosen_in_order(monkeypatch):
    monkeypatch.setattr(selection, "BLOCK_ROWS", 4)
    pool = np.repeat(random_units(1), 20, axis=0)
    rows, _ = choose(pool, Coverage(pool), np.ones(20, bool), 6)
    assert rows == list(range(6))


def test_groups_come_before_outliers():
    """Three groups of 30 and five clips far from all: the farthest-first choice would take the five."""
    width = 16
    groups = np.repeat(np.eye(width)[:3], 30, axis=0) + np.random.default_rng(0).normal(0, 0.05, (90, width))
    pool = unit_rows(np.concatenate([np.eye(width)[3:8], groups]))
    rows, _ = choose(pool, Coverage(pool), np.ones(95, bool), 3)
    assert sorted((row - 5) // 30 for row in rows) == [0, 1, 2]


def test_a_kind_counts_the_same_however_often_it_was_recorded():
    """A wide group of 300 clips and four groups of three: five choices take one of each."""
    width, generator = 16, np.random.default_rng(0)
    large = np.eye(width)[0] + generator.normal(0, 0.1, (300, width))
    small = np.repeat(np.eye(width)[1:5], 3, axis=0) + generator.normal(0, 0.02, (12, width))
    pool = unit_rows(np.concatenate([large, small]))
    rows, _ = choose(pool, Coverage(pool), np.ones(312, bool), 5)
    assert sorted(0 if row < 300 else 1 + (row - 300) // 3 for row in rows) == [0, 1, 2, 3, 4]


def test_equal_clips_weigh_the_same():
    assert rarities(np.repeat(random_units(1), 20, axis=0)) == pytest.approx([0.05] * 20)
    assert rarities(random_units(1)) == pytest.approx([1])


def test_a_group_that_is_captioned_is_left_out():
    width = 16
    groups = np.repeat(np.eye(width)[:3], 30, axis=0) + np.random.default_rng(0).normal(0, 0.05, (90, width))
    pool = unit_rows(groups)
    coverage = Coverage(pool)
    coverage.add(unit_rows(np.eye(width)[1:2]), Coverage.CAPTIONED)
    rows, _ = choose(pool, coverage, np.ones(90, bool), 2)
    assert sorted(row // 30 for row in rows) == [0, 2]


def test_suggestions_are_the_choice_among_the_clips_of_the_split(tiny_study, run_folder):
    found = suggest(run_folder, split(tiny_study), captioned=[split(tiny_study, "labeled")], count=6)
    (pool_index, labeled_index) = sorted(run_folder.glob("index/*/audio.npy"), key=lambda path: len(np.load(path)))
    rows, reached = brute_force(np.load(pool_index), np.load(labeled_index), np.ones(20, bool), 6)
    manifest = read_manifest(tiny_study.manifest("unlabeled")).to_pylist()
    assert [clip.key for clip in found] == [manifest[row]["key"] for row in rows]
    assert [clip.source_name for clip in found] == [manifest[row]["source_name"] for row in rows]
    assert [clip.coverage for clip in found] == pytest.approx(reached, abs=1e-6)
    assert [clip.rank for clip in found] == list(range(1, 7))


def test_shares_of_all_clips_are_one_of_each(tiny_study, run_folder):
    found = suggest(run_folder, split(tiny_study), count=20)
    assert sum(clip.share for clip in found) == pytest.approx(1)
    assert found[-1].coverage == pytest.approx(1)


def test_second_call_embeds_nothing(tiny_study, run_folder, tmp_path):
    shards = Path(shutil.copytree(split(tiny_study), tmp_path / "shards"))
    before = suggest(run_folder, shards, count=5)
    for tar in shards.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))  # no audio is left to embed
    assert suggest(run_folder, shards, count=5) == before


def test_coverage_of_a_large_split_is_measured_on_a_part_of_it(tiny_study, run_folder, monkeypatch):
    whole = suggest(run_folder, split(tiny_study), count=4)
    monkeypatch.setattr(selection, "MEASURED_CLIPS", 7)
    part = suggest(run_folder, split(tiny_study), count=4)
    assert {round(clip.share * 7, 6) % 1 for clip in part} == {0}
    assert part[0].coverage != whole[0].coverage
    assert len({clip.key for clip in part}) == 4


def test_clips_whose_audio_is_captioned_are_not_suggested(tiny_study, run_folder):
    with pytest.raises(PipelineError, match="asked for 1 clips, but 0 can be captioned, 20 others are captioned alrea"):
        suggest(run_folder, split(tiny_study), captioned=[split(tiny_study)], count=1)


def test_more_clips_than_the_split_has_are_refused(tiny_study, run_folder):
    with pytest.raises(PipelineError, match="asked for 21 clips, but 20 can be captioned; ask for at most 20"):
        suggest(run_folder, split(tiny_study), count=21)
    with pytest.raises(PipelineError, match="asked for 0 clips; ask for at least 1"):
        suggest(run_folder, split(tiny_study), count=0)


def test_a_folder_without_shards_is_named(tiny_study, run_folder, tmp_path):
    with pytest.raises(PipelineError, match=r"nowhere/manifest\.json: not found"):
        suggest(run_folder, tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"nowhere/manifest\.json: not found"):
        suggest(run_folder, split(tiny_study), captioned=[tmp_path / "nowhere"])


def test_suggest_is_public():
    assert pipeline.suggest is suggest
