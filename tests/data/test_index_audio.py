"""Every source row ends in the catalog, under a key that stays, usable or with a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audio_files import assert_refused, make_catalog, run_stage, write_audio, write_csv, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.adapters import SourceRow
from pipeline.data.catalogs import CATALOG_SCHEMA, catalog_of, clip_key, read_catalog
from pipeline.errors import PipelineError


def arguments(root: Path, catalog: Path, *more: str, adapter: str = "folder", split: str = "train") -> list[str]:
    flags = more or ("--labeled",)
    return [
        *(
            "--dataset",
            "sounds",
            "--split",
            split,
            "--adapter",
            adapter,
            "--root",
            str(root),
            "--catalog",
            str(catalog),
        ),
        *("--clips-per-shard", "9", "--plan", str(catalog.with_suffix(".shards.parquet"))),
        *flags,
    ]


# --- keys ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1).filter(lambda name: name.isprintable()), st.integers(0, 3))
def test_any_name_makes_a_key_that_every_reader_takes(name: str, occurrence: int) -> None:
    assert re.fullmatch(r"clotho_development_[a-z0-9_]{1,45}", clip_key("clotho", "development", name, occurrence))


def test_the_key_tells_dataset_split_and_name() -> None:
    key = clip_key("clotho", "development", "Chuck-will&#39;s-widow (2).v1.wav")
    assert re.fullmatch(r"clotho_development_chuck_will_s_widow_2_v1_[0-9a-f]{8}", key)


def test_names_that_differ_get_different_keys() -> None:
    names = [
        "Train 1.wav",
        "train-1.wav",
        "Train_1.WAV",
        "train  1.wav",
        "雨.wav",
        "雪.wav",
        "a/b.wav",
        "c/b.wav",
        "." * 90,
    ]
    places = [("a", "b_c"), ("a_b", "c"), ("A", "b_c")]
    assert len({clip_key(*place, name) for name in names for place in places}) == len(names) * len(places)


def test_names_too_long_for_a_key_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"take 81 characters; shorten one, at most 54 characters fit"):
        clip_key("a" * 40, "b" * 40, "x.wav")


def test_keys_stay_when_clips_are_added() -> None:
    few = [SourceRow(source_name=name, path=name) for name in ("b.wav", "d.wav")]
    more = [SourceRow(source_name=name, path=name) for name in ("a.wav", "b.wav", "c.wav", "d.wav")]
    tables = [catalog_of(rows, dataset="x", split="y", labeled=False)[0] for rows in (few, more)]
    keys = [dict(zip(table["source_name"].to_pylist(), table["key"].to_pylist(), strict=True)) for table in tables]
    assert keys[0].items() <= keys[1].items()


# --- rows ------------------------------------------------------------------------------------------------------------


def test_every_source_row_ends_in_the_catalog(tmp_path: Path) -> None:
    rows = [["here.wav", "a dog"], ["gone.wav", "a cat"], ["mute.wav", "  "], ["here.wav", "a dog again"]]
    write_csv(tmp_path / "train.csv", ["file_name", "caption_1"], *rows)
    for name in ("here.wav", "mute.wav"):
        write_audio(tmp_path / "train" / name)
    catalog = read_catalog(make_catalog(tmp_path, tmp_path / "catalog.parquet"))
    found = {row["source_name"] + str(row["captions"]): (row["status"], row["reason"]) for row in catalog.to_pylist()}
    assert found == {
        "here.wav['a dog']": ("ok", None),
        "gone.wav['a cat']": ("dropped", "missing_file"),
        "mute.wav[]": ("dropped", "no_caption"),
        "here.wav['a dog again']": ("dropped", "duplicate"),
    }
    assert catalog.schema.equals(CATALOG_SCHEMA)
    assert catalog["key"].to_pylist() == sorted(set(catalog["key"].to_pylist()))


def test_unlabeled_clips_need_no_captions_and_keep_none(tmp_path: Path) -> None:
    write_folder(tmp_path, clips=2)
    catalog = read_catalog(make_catalog(tmp_path, tmp_path / "catalog.parquet", labeled=False))
    assert catalog["status"].to_pylist() == ["ok", "ok"]
    assert catalog["captions"].to_pylist() == [[], []]


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "raw")
    first, second = (make_catalog(tmp_path / "raw", tmp_path / name / "x.parquet") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_too_many_losses_are_named_with_their_rows_and_leave_no_catalog(tmp_path: Path) -> None:
    write_folder(tmp_path, clips=5)
    for clip in (1, 2):
        (tmp_path / "train" / f"clip {clip}.wav").unlink()
    with pytest.raises(PipelineError) as caught:
        make_catalog(tmp_path, tmp_path / "out" / "catalog.parquet", limit=0.39)
    message = str(caught.value)
    assert "2 of 5 clips cannot be used (40.0%, allowed are 39.0%): 2 missing_file" in message
    assert 'sounds/train row 3: "clip 1.wav"; sounds/train row 4: "clip 2.wav"' in message
    assert not (tmp_path / "out").exists()
    make_catalog(tmp_path, tmp_path / "out" / "catalog.parquet", limit=0.4)


def test_a_loss_is_logged_as_the_row_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path / "train.csv", ["file_name", "caption_1"], ["Rain .wav", ""], ["Wind.wav", "wind"])
    for name in ("Rain .wav", "Wind.wav"):
        write_audio(tmp_path / "train" / name)
    make_catalog(tmp_path, tmp_path / "catalog.parquet")
    assert 'sounds/train row 2: "Rain .wav" has no caption' in caplog.messages


def test_a_catalog_without_a_usable_clip_is_refused_at_any_limit(tmp_path: Path) -> None:
    write_audio(tmp_path / "train" / "a.wav")
    with pytest.raises(PipelineError, match=r"1 of 1 clips cannot be used \(none is left\): 1 no_caption"):
        make_catalog(tmp_path, tmp_path / "catalog.parquet", limit=1.0)


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"x.parquet: not found; make it with .*index_audio"):
        read_catalog(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(PipelineError, match=r"x.parquet: cannot be read"):
        read_catalog(tmp_path / "x.parquet")
    pq.write_table(
        catalog_of([SourceRow(source_name="a")], dataset="x", split="y", labeled=False)[0].select(["key"]),
        tmp_path / "x.parquet",
    )
    with pytest.raises(PipelineError, match=r"not a file of index_audio: .*found key;"):
        read_catalog(tmp_path / "x.parquet")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_catalog(tmp_path: Path) -> None:
    write_folder(tmp_path / "raw", clips=2)
    finished = run_stage("index_audio", arguments(tmp_path / "raw", tmp_path / "deep" / "catalog.parquet"))
    assert finished.returncode == 0, finished.stderr
    assert len(read_catalog(tmp_path / "deep" / "catalog.parquet")) == 2


def test_the_command_refuses_bad_input_in_one_line(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.parquet"
    assert_refused(run_stage("index_audio", arguments(tmp_path / "no", catalog)), "index_audio", str(tmp_path / "no"))
    write_csv(tmp_path / "train.csv", ["file_name", "caption_1"])
    write_audio(tmp_path / "train/a.wav")
    finished = run_stage("index_audio", arguments(tmp_path, catalog))
    assert_refused(finished, "index_audio", "sounds/train: the list of clips is empty")
    write_csv(tmp_path / "train.csv", ["file_name", "caption_1"], ["a.wav", "a tone"], ["b.wav", "gone"])
    finished = run_stage("index_audio", arguments(tmp_path, catalog))
    assert_refused(finished, "index_audio", '1 missing_file (sounds/train row 3: "b.wav")')
    assert not catalog.exists()


def test_the_audio_stages_do_not_import_torch() -> None:
    stages = ", ".join(f"pipeline.stages.{name}" for name in ("index_audio", "shard_audio", "index_shards"))
    code = f"import sys, {stages}; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
