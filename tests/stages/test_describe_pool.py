"""Embeddings of splits, and the description of unlabeled audio made from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.data.parquet import read_parquet, write_parquet
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import embed_audio
from pipeline.evaluation.vector_files import VectorFacts, VectorFile, vectors_writer
from pipeline.evaluation.vectors import unit_rows
from pipeline.files import read_json, write_json
from pipeline.models import load_model
from pipeline.results.maps import map_of, neighbours_kept
from pipeline.results.pools import PoolSummary, answer, read_pool
from pipeline.stages import describe_pool, embed_split
from pipeline.stages.describe_pool import MOST_DOTS, OUTPUTS, draw

NAMES = {"target/train": 6, "labeled/train": 24, "unlabeled/train": 20}


def embed(pool_study, tiny_study, out: Path, *more: str, name: str = "unlabeled/train") -> VectorFile:
    shards = pool_study.folder / "shards" / name
    embed_split.main(["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(out), *more])
    return VectorFile(out)


def at_angles(folder: Path, angles: dict[str, np.ndarray], **changes) -> None:
    """Embeddings on a circle, so that the cosine of two clips is that of the angle between them."""
    for name, angle_N in angles.items():
        given = VectorFile(folder / "embeddings" / name / "embeddings.parquet").facts
        values = {field: getattr(given, field) for field in VectorFacts.__slots__} | {"width": 2, **changes}
        unit_N2 = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
        keys = read_manifest(folder / "shards" / name / "manifest.parquet")["key"].to_pylist()
        with vectors_writer(folder / "embeddings" / name / "embeddings.parquet", VectorFacts(**values)) as write:
            write(keys, unit_N2)


@pytest.fixture
def copy(pool_study, tmp_path: Path):
    """A copy of the study that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(pool_study.folder, folder)
    return type(pool_study)(folder)


def described(study, *more: str) -> tuple[PoolSummary, Path]:
    out = study.folder / "described"
    describe_pool.main([*study.arguments(out), *more])
    return read_pool(out)[0], out


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings_of_a_split_are_those_of_its_clips_at_unit_length(pool_study, tiny_study, monkeypatch, tmp_path):
    monkeypatch.setattr(embed_split, "BLOCK", 7)
    file = embed(pool_study, tiny_study, tmp_path / "e.parquet", "--windows", "first", "--device", "cpu")
    shards = open_shards(pool_study.folder / "shards" / "unlabeled" / "train")
    expected = unit_rows(embed_audio(load_model(tiny_study.pretrained), shards, "first", 64))
    np.testing.assert_allclose(file.read(), expected, rtol=0, atol=1e-5)
    assert read_parquet(file.path, "embed_split")["key"].to_pylist() == shards.keys
    assert (file.facts.name, file.facts.windows, len(file)) == ("unlabeled/train", "first", 20)


def test_kept_embeddings_are_not_computed_again(pool_study, tiny_study, monkeypatch, tmp_path):
    embed(pool_study, tiny_study, tmp_path / "e.parquet")
    before = (tmp_path / "e.parquet").read_bytes()
    (tmp_path / "e.parquet").unlink()
    monkeypatch.setattr(embed_split, "write_split_vectors", lambda *a, **k: pytest.fail("computed again"))
    embed(pool_study, tiny_study, tmp_path / "e.parquet")
    assert (tmp_path / "e.parquet").read_bytes() == before


def test_a_clip_whose_embedding_has_no_direction_is_named(pool_study, tiny_study, monkeypatch, tmp_path):
    without = np.ones((20, 8), np.float32)
    without[3] = 0
    monkeypatch.setattr("pipeline.evaluation.embedding.embed_audio", lambda *_: without)
    key = open_shards(pool_study.folder / "shards" / "unlabeled" / "train").keys[3]
    with pytest.raises(PipelineError, match=rf"the embedding of clip {key} of .*unlabeled/train is zero"):
        embed(pool_study, tiny_study, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_a_split_of_unusable_clips_is_refused(copy, tiny_study, tmp_path):
    folder = copy.folder / "shards" / "unlabeled" / "train"
    rows = [
        {**row, "status": "dropped", "reason": "silent"}
        for row in read_manifest(folder / "manifest.parquet").to_pylist()
    ]
    rewrite_manifest(folder, rows)
    with pytest.raises(PipelineError, match=r"the split has no clip to embed; see the reasons in manifest\.parquet"):
        embed(copy, tiny_study, tmp_path / "e.parquet")


def rewrite_manifest(folder: Path, rows: list[dict]) -> None:
    from pipeline.data.shards.format import rows_table
    from pipeline.files import sha256_of

    write_parquet(rows_table(rows), folder / "manifest.parquet")
    summary = read_json(folder / "manifest.json")
    write_json({**summary, "manifest_sha256": sha256_of(folder / "manifest.parquet")}, folder / "manifest.json")


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_counted_by_hand(copy):
    """Held-out clips at 0, 1, ... 5 tenths; labeled clips near the first three, unlabeled ones near the last three."""
    held_out = np.arange(6) / 10
    labeled = np.concatenate([held_out[:3] + 0.02, np.full(21, 3.0)])
    unlabeled = np.concatenate([held_out[3:] + 0.01, np.full(17, -3.0)])
    at_angles(copy.folder, {"target/train": held_out, "labeled/train": labeled, "unlabeled/train": unlabeled})
    summary, out = described(copy)
    to_labeled = np.cos([0.02, 0.02, 0.02, 0.08, 0.18, 0.28])
    to_unlabeled = np.cos([0.31, 0.21, 0.11, 0.01, 0.01, 0.01])
    near = np.median(to_labeled)
    assert summary.near_cosine == round(float(near), 4)
    whole = summary.whole
    assert (whole.clips, whole.held_out_near, whole.held_out_nearer) == (20, (to_unlabeled >= near).sum(), 3)
    assert whole.held_out_near_drawn == 3  # there are fewer unlabeled clips than labeled ones: all are drawn
    table = pd.read_parquet(out / "held_out.parquet")
    np.testing.assert_allclose(table["labeled_cosine"], to_labeled, atol=1e-6)
    np.testing.assert_allclose(table["unlabeled_cosine"], to_unlabeled, atol=1e-6)
    keys = read_manifest(copy.folder / "shards" / "unlabeled" / "train" / "manifest.parquet")["key"].to_pylist()
    assert table["nearest_unlabeled"].tolist() == [keys[row] for row in (0, 0, 0, 0, 1, 2)]
    unlabeled_table = pd.read_parquet(out / "unlabeled.parquet")
    np.testing.assert_allclose(unlabeled_table["held_out_cosine"][:3], np.cos(0.01), atol=1e-6)
    assert "3 of" not in answer(summary, whole)[0] and "as well as" in answer(summary, whole)[0]


def test_levels_are_those_of_the_manifest(pool_study):
    manifest = read_manifest(pool_study.folder / "shards" / "unlabeled" / "train" / "manifest.parquet").to_pandas()
    table = pd.read_parquet(pool_study.folder / "pool" / "unlabeled.parquet")
    assert table["rms_dbfs"].tolist() == manifest["rms_dbfs"].tolist()
    assert table["duration_s"].sum() == pytest.approx((manifest["frames"] / 16_000).sum())
    summary = read_pool(pool_study.folder / "pool")[0]
    assert summary.whole.hours == round(table["duration_s"].sum() / 3600, 4)
    assert summary.whole.rms_dbfs[2] == pytest.approx(np.median(manifest["rms_dbfs"]), abs=0.06)


def test_quiet_and_silent_clips_are_counted(copy):
    folder = copy.folder / "shards" / "unlabeled" / "train"
    rows = read_manifest(folder / "manifest.parquet").to_pylist()
    rewrite_manifest(folder, [{**row, "rms_dbfs": -70.0 if place < 4 else -20.0} for place, row in enumerate(rows)])
    write_json({**read_json(folder / "manifest.json"), "reason": {"silent": 3}}, folder / "manifest.json")
    at_angles(
        copy.folder,
        {"unlabeled/train": np.zeros(20), "labeled/train": np.zeros(24), "target/train": np.zeros(6)},
    )
    given = VectorFile(copy.folder / "embeddings" / "unlabeled" / "train" / "embeddings.parquet").facts
    assert given.manifest_sha256 != read_json(folder / "manifest.json")["manifest_sha256"]
    with pytest.raises(PipelineError, match=r"embeddings.parquet: is of other shards than .*; make it again"):
        described(copy)
    at_angles(
        copy.folder,
        {"unlabeled/train": np.zeros(20)},
        manifest_sha256=read_json(folder / "manifest.json")["manifest_sha256"],
    )
    whole = described(copy)[0].whole
    assert (whole.quiet, whole.not_used) == (4, {"silent": 3})


def test_clips_that_leak_are_marked_and_not_counted(copy):
    """A clip with the audio of a held-out clip is no cover: no run trains on it."""
    folder = copy.folder / "shards" / "target" / "train"
    twin = read_manifest(copy.folder / "shards" / "unlabeled" / "train" / "manifest.parquet").to_pylist()[2]
    identities = read_parquet(folder / "identities.parquet", "index_shards")
    rows = [
        {**row, "sha256": twin["sha256"]} if place == 0 else row for place, row in enumerate(identities.to_pylist())
    ]
    write_parquet(pa.Table.from_pylist(rows, schema=identities.schema), folder / "identities.parquet")
    angles = {"target/train": np.zeros(6), "labeled/train": np.full(24, 1.0), "unlabeled/train": np.full(20, 2.0)}
    angles["unlabeled/train"][2] = 0  # as near as can be
    at_angles(copy.folder, angles)
    summary, out = described(copy)
    table = pd.read_parquet(out / "unlabeled.parquet")
    assert table["leaked"].tolist() == [row == 2 for row in range(20)]
    assert (summary.whole.leaked, summary.whole.clips, summary.whole.held_out_near) == (1, 19, 0)
    assert twin["key"] not in pd.read_parquet(out / "held_out.parquet")["nearest_unlabeled"].tolist()
    assert twin["key"] not in pd.read_parquet(out / "map.parquet")["key"].tolist()


def test_unlabeled_audio_that_is_all_held_out_is_refused(copy):
    identities = copy.folder / "shards" / "unlabeled" / "train" / "identities.parquet"
    with pytest.raises(PipelineError, match="all 20 clips are also in a validation or test split"):
        described(copy, "--identities", str(identities))


def test_near_duplicates_of_held_out_clips_alone_are_counted(copy):
    keys = {
        name: read_manifest(copy.folder / "shards" / name / "manifest.parquet")["key"].to_pylist() for name in NAMES
    }
    pairs = [
        {"key": keys["unlabeled/train"][1], "held_out_key": keys["target/train"][5]},
        {"key": keys["unlabeled/train"][1], "held_out_key": keys["target/train"][0]},
        {"key": keys["unlabeled/train"][2], "held_out_key": "a clip of another split"},
    ]
    write_json({"pairs": pairs}, copy.folder / "near.json")
    summary, out = described(copy, "--near-duplicates", str(copy.folder / "near.json"))
    assert summary.whole.near_duplicates == 1
    table = pd.read_parquet(out / "unlabeled.parquet")
    assert table["near_duplicate_of"][1] == keys["target/train"][5] and table["near_duplicate_of"].notna().sum() == 1
    write_json({"found": []}, copy.folder / "near.json")
    with pytest.raises(PipelineError, match=r"near\.json: has no list of pairs"):
        described(copy, "--near-duplicates", str(copy.folder / "near.json"))


def test_several_unlabeled_splits_are_described_alone_as_well_as_together(copy):
    summary, _ = described(copy, "--unlabeled", "unlabeled/train", "labeled/train")
    assert [(figures.name, figures.clips) for figures in summary.unlabeled] == [
        ("unlabeled/train", 20), ("labeled/train", 24), ("all", 44)
    ]  # fmt: skip
    assert summary.whole.held_out_near >= max(figures.held_out_near for figures in summary.unlabeled)
    assert summary.unlabeled[1].held_out_nearer == 0  # compared with themselves


def test_one_clip_of_each_kind_is_enough(copy):
    for name in NAMES:
        folder = copy.folder / "shards" / name
        rows = read_manifest(folder / "manifest.parquet").to_pylist()
        rewrite_manifest(folder, [rows[0], *({**row, "status": "dropped", "reason": "silent"} for row in rows[1:])])
        sha256 = read_json(folder / "manifest.json")["manifest_sha256"]
        given = VectorFile(copy.folder / "embeddings" / name / "embeddings.parquet").facts
        values = {field: getattr(given, field) for field in VectorFacts.__slots__}
        values |= {"width": 2, "clips": 1, "manifest_sha256": sha256}
        with vectors_writer(copy.folder / "embeddings" / name / "embeddings.parquet", VectorFacts(**values)) as write:
            write([rows[0]["key"]], np.array([[1, 0]], np.float32))
    summary, _ = described(copy)
    assert (summary.whole.clips, summary.labeled_clips, summary.held_out_clips) == (1, 1, 1)
    assert summary.dots == {"unlabeled": 1, "labeled": 1, "held_out": 1}


@pytest.mark.parametrize(("what", "value"), [("width", 3), ("weights_sha256", "another"), ("windows", "first")])
def test_embeddings_of_another_model_are_refused(copy, what, value):
    at_angles(copy.folder, {"target/train": np.zeros(6), "labeled/train": np.zeros(24)})
    path = copy.folder / "embeddings" / "unlabeled" / "train" / "embeddings.parquet"
    given = VectorFile(path).facts
    values = {field: getattr(given, field) for field in VectorFacts.__slots__} | {"width": 2} | {what: value}
    with vectors_writer(path, VectorFacts(**values)) as write:
        write(["clip"] * 20, np.zeros((20, values["width"]), np.float32))
    with pytest.raises(PipelineError, match=rf"unlabeled.*: its {what} is {value}, that of .*target.* is "):
        described(copy)


def test_same_clips_give_the_same_bytes(pool_study, tmp_path):
    describe_pool.main(pool_study.arguments(tmp_path))
    for name in OUTPUTS:
        assert (tmp_path / name).read_bytes() == (pool_study.folder / "pool" / name).read_bytes(), name


def test_the_blocks_do_not_change_the_description(pool_study, monkeypatch, tmp_path):
    monkeypatch.setattr(describe_pool, "BLOCK", 3)
    monkeypatch.setattr("pipeline.evaluation.coverage.MOST_SCORES", 12)
    describe_pool.main(pool_study.arguments(tmp_path))
    for name in ("held_out.parquet", "unlabeled.parquet"):
        expected, found = (pd.read_parquet(folder / name) for folder in (pool_study.folder / "pool", tmp_path))
        pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)


def test_clips_drawn_at_random_are_usable_and_as_many_as_asked_for():
    usable = np.arange(100) % 2 == 0
    mask = draw(30, usable)
    assert mask.sum() == 30 and not (mask & ~usable).any() and (mask == draw(30, usable)).all()
    assert draw(60, usable).sum() == 50


# --- the map ---------------------------------------------------------------------------------------------------------


def test_the_map_shows_clips_of_every_group_with_names_and_captions(pool_study):
    summary, dots = read_pool(pool_study.folder / "pool")
    rows = dots.to_pylist()
    assert summary.dots == {"unlabeled": 20, "labeled": 24, "held_out": 6}
    assert all(0 <= row["x"] <= 1 and 0 <= row["y"] <= 1 for row in rows)
    for name, group in (("target", "held_out"), ("labeled", "labeled"), ("unlabeled", "unlabeled")):
        shards = open_shards(pool_study.folder / "shards" / name / "train")
        own = [row for row in rows if row["group"] == group]
        assert [row["key"] for row in own] == shards.keys
        assert [row["captions"] for row in own] == [shards.captions(key) for key in shards.keys]


def test_a_large_pool_is_sampled_with_its_extremes(copy, monkeypatch):
    monkeypatch.setitem(MOST_DOTS, "unlabeled", 12)
    monkeypatch.setitem(MOST_DOTS, "held_out", 3)
    monkeypatch.setattr(describe_pool, "LISTED", 2)
    summary, out = described(copy)
    assert summary.dots == {"unlabeled": 12, "labeled": 24, "held_out": 3}
    shown = set(pd.read_parquet(out / "map.parquet")["key"])
    table = pd.read_parquet(out / "unlabeled.parquet")
    farness = table[["labeled_cosine", "held_out_cosine"]].max(axis=1)
    assert set(table["key"][farness.nsmallest(2).index]) <= shown
    held_out = pd.read_parquet(out / "held_out.parquet").nsmallest(2, "unlabeled_cosine")
    assert set(held_out["key"]) | set(held_out["nearest_unlabeled"]) | set(held_out["nearest_labeled"]) <= shown


def test_near_clips_are_near_dots():
    """Five groups of clips stay together."""
    centres = np.eye(5, 16).repeat(20, axis=0)
    unit_ND = unit_rows(centres + np.random.default_rng(0).normal(0, 0.05, (100, 16)))
    places = map_of(unit_ND)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 20 == np.arange(100) // 20).all()
    assert neighbours_kept(unit_ND, places) > 0.5


def test_the_share_of_neighbours_kept_is_one_in_the_same_order_and_small_in_another():
    angles = np.linspace(0, 1, 200)
    unit_N2 = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbours_kept(unit_N2, unit_N2) == 1
    assert neighbours_kept(unit_N2, np.random.default_rng(0).permutation(unit_N2)) < 0.2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("is_same", [True, False])
def test_few_or_equal_clips_have_places_too(count, is_same):
    unit_ND = unit_rows(np.ones((count, 4)) if is_same else np.random.default_rng(0).normal(size=(count, 4)))
    places = map_of(unit_ND)
    assert places.shape == (count, 2) and np.isfinite(places).all() and 0 <= neighbours_kept(unit_ND, places) <= 1


def test_a_summary_of_another_kind_is_refused(copy):
    path = copy.folder / "pool" / "summary.json"
    values = json.loads(path.read_text())
    for wrong in ({}, {"pairs": []}, {**values, "unlabeled": [{"clips": 1}]}, {**values, "unlabeled": []}):
        wrong.pop("contents_sha256", None)
        write_json(wrong, path)
        with pytest.raises(PipelineError, match=r"summary\.json: is not a summary of describe_pool; delete it"):
            read_pool(copy.folder / "pool")


@pytest.mark.parametrize(("near", "words"), [(700, "better than"), (500, "about as well as"), (300, "less well than")])
def test_the_answer_compares_with_the_labeled_audio(pool_study, near, words):
    from dataclasses import replace

    summary = read_pool(pool_study.folder / "pool")[0]
    summary = replace(summary, held_out_clips=1000)
    figures = replace(summary.whole, held_out_near=near, held_out_nearer=120)
    sentences = answer(summary, figures)
    assert f"covers the test clips {words} the labeled audio" in sentences[0]
    assert f"{near / 10:.0f} % of the 1,000 test clips" in sentences[1] and "12 % are nearer" in sentences[2]
