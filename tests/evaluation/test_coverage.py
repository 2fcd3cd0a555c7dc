"""Nearest clips in blocks are those of one whole product, and files of embeddings give back what was written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation import coverage
from pipeline.evaluation.coverage import NearestSoFar, nearest_among, scores_of
from pipeline.evaluation.vector_files import BLOCK, VectorFacts, VectorFile, vectors_writer
from pipeline.evaluation.vectors import unit_rows


def vectors(count, width=8, seed=0):
    return unit_rows(np.random.default_rng(seed).normal(size=(count, width)))


def test_nearest_in_blocks_is_the_nearest_of_all(monkeypatch):
    monkeypatch.setattr(coverage, "MOST_SCORES", 100)  # blocks of 2 clips
    clips, others = vectors(33), vectors(41, seed=1)
    scores = clips.astype(np.float64) @ others.T.astype(np.float64)
    found = nearest_among(clips, others)
    assert found.rows.tolist() == scores.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.cosines, scores.max(axis=1), rtol=0, atol=1e-6)


def test_of_equally_near_clips_the_first_counts():
    assert nearest_among(vectors(1), np.repeat(vectors(1), 3, axis=0)).rows.tolist() == [0]
    so_far = NearestSoFar.of_none(1)
    for row in (4, 7):
        so_far.add(np.array([[0.5]], np.float32), np.array([row]))
    assert so_far.rows.tolist() == [4]


def test_a_pool_read_in_blocks_has_the_nearest_of_the_whole():
    pool, clips = vectors(50), vectors(9, seed=1)
    so_far = NearestSoFar.of_none(len(clips))
    for first in range(0, 50, 7):
        rows = np.arange(first, min(first + 7, 50))
        so_far.add(scores_of(pool[rows], clips), rows)
    so_far.add(np.empty((0, len(clips)), np.float32), np.empty(0, np.int64))
    assert so_far.rows.tolist() == nearest_among(clips, pool).rows.tolist()


def test_a_cosine_is_at_most_one():
    clips = vectors(200, width=1024)
    assert scores_of(clips, clips).max() <= 1


def facts(count, width):
    return VectorFacts(
        dataset="birds",
        split="train",
        manifest_sha256="m",
        weights_sha256="w",
        windows="mean",
        width=width,
        clips=count,
    )


def write(path, unit_ND):
    with vectors_writer(path, facts(*unit_ND.shape)) as add:
        for first in range(0, len(unit_ND), BLOCK):
            block = unit_ND[first : first + BLOCK]
            add([f"clip_{first + row}" for row in range(len(block))], block)


def test_embeddings_are_read_as_they_were_written(tmp_path):
    unit_ND = vectors(BLOCK + 10, width=3)
    write(tmp_path / "e.parquet", unit_ND)
    file = VectorFile(tmp_path / "e.parquet")
    assert file.facts == facts(BLOCK + 10, 3) and file.facts.name == "birds/train"
    np.testing.assert_array_equal(file.read(), unit_ND)
    rows = np.array([0, 5, BLOCK - 1, BLOCK, BLOCK + 9])
    np.testing.assert_array_equal(file.read(rows), unit_ND[rows])


@pytest.mark.parametrize("sizes", [[1, BLOCK, 9], [BLOCK + 10], [7] * 700])
def test_blocks_have_the_sizes_asked_for(tmp_path, sizes):
    unit_ND = vectors(BLOCK + 10, width=3)
    write(tmp_path / "e.parquet", unit_ND)
    blocks = list(VectorFile(tmp_path / "e.parquet").blocks(sizes))
    np.testing.assert_array_equal(np.concatenate(blocks), unit_ND)
    assert [len(block) for block in blocks][:-1] == sizes[: len(blocks) - 1]


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_parquet(pa.table({"key": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(PipelineError, match=r"e\.parquet: holds no embeddings of a split; delete it"):
        VectorFile(tmp_path / "e.parquet")
