"""The manifest accounts for every row of every shard, and the summary for the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from audio_files import (
    RATE,
    assert_refused,
    index_arguments,
    make_catalog,
    make_shards,
    noise,
    run_stage,
    shard_arguments,
    shard_names,
    write_folder,
)

from pipeline.commands.inspection.shard_checks import verify_shards
from pipeline.data.catalogs import read_catalog, regrouped
from pipeline.data.leaks import AudioForm, read_audio_form
from pipeline.data.shards.format import MANIFEST_SCHEMA, ShardFacts, read_manifest
from pipeline.data.shards.partition import read_assignment
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of
from pipeline.stages import index_shards, shard_audio


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Five clips of 0.2 to 1.0 s, one of them missing and one no audio."""
    write_folder(tmp_path / "raw", clips=5)
    (tmp_path / "raw/train/clip 1.wav").unlink()
    (tmp_path / "raw/train/clip 3.wav").write_text("no audio")
    return make_catalog(tmp_path / "raw", tmp_path / "catalog.parquet")


def test_the_manifest_has_a_row_for_every_row_of_the_catalog(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    manifest = read_manifest(folder / "manifest.parquet")
    assert manifest.schema.equals(MANIFEST_SCHEMA)
    for name in ("key", "source_name", "captions", "dataset", "split"):
        assert manifest[name].to_pylist() == read_catalog(catalog)[name].to_pylist()
    shards = [(shard.shard, shard.rows) for shard in read_assignment(catalog, 2)]
    assert len(shards) >= 3 and max(rows for _, rows in shards) == 2
    assert manifest["shard"].to_pylist() == [shard for shard, rows in shards for _ in range(rows)]
    reasons = dict(zip(manifest["source_name"].to_pylist(), manifest["reason"].to_pylist(), strict=True))
    assert reasons == {
        **dict.fromkeys(["clip 0.wav", "clip 2.wav", "clip 4.wav"]),
        "clip 1.wav": "missing_file",
        "clip 3.wav": "undecodable",
    }


def test_the_summary_tells_the_manifest_and_the_tars(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2, audio_format="flac")
    summary = read_json(folder / "manifest.json")
    shards = summary.pop("shards")
    assert summary == {
        "dataset": "sounds",
        "split": "train",
        "sample_rate_hz": RATE,
        "format": "flac",
        "channels": "mean",
        "rows": 5,
        "clips": 3,
        "duration_s": 1.8,  # 0.2 + 0.6 + 1.0
        "status": {"ok": 3, "dropped": 1, "failed": 1},
        "reason": {"missing_file": 1, "undecodable": 1},
        "manifest_sha256": sha256_of(folder / "manifest.parquet"),
    }
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    for name, shard in zip(shard_names(catalog, 2), shards, strict=True):
        tar = folder / f"{name}.tar"
        clips = sum(row["shard"] == name and row["status"] == "ok" for row in manifest)
        expected = {
            "shard": name,
            "tar": tar.name,
            "bytes": tar.stat().st_size,
            "sha256": sha256_of(tar),
            "clips": clips,
        }
        assert shard == expected


def test_the_same_shards_give_the_same_bytes(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    before = [(folder / f"manifest.{kind}").read_bytes() for kind in ("parquet", "json")]
    shutil.rmtree(folder)
    make_shards(catalog, folder, 2)
    assert [(folder / f"manifest.{kind}").read_bytes() for kind in ("parquet", "json")] == before


def test_a_split_of_many_row_groups_is_the_same_manifest(
    tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    whole, summary = read_manifest(folder / "manifest.parquet"), read_json(folder / "manifest.json")
    assert pq.read_metadata(folder / "manifest.parquet").num_row_groups == 1
    monkeypatch.setattr(index_shards, "ROW_GROUP_ROWS", 2)
    index_shards.main(index_arguments(catalog, folder, 2))
    metadata = pq.read_metadata(folder / "manifest.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]
    assert read_manifest(folder / "manifest.parquet").equals(whole)
    expected = summary | {"manifest_sha256": sha256_of(folder / "manifest.parquet")}
    assert read_json(folder / "manifest.json") == expected


def test_the_card_names_the_tars_for_the_datasets_library(tmp_path: Path, catalog: Path) -> None:
    card = (make_shards(catalog, tmp_path / "out", 2) / "README.md").read_text()
    _, header, text = card.split("---\n")
    assert yaml.safe_load(header) == {"configs": [{"config_name": "default", "data_files": "*.tar"}]}
    assert text.startswith("3 clips of sounds/train")


def test_no_more_shards_are_read_than_a_row_group_needs(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    shards = read_assignment(catalog, 2)
    facts: list[ShardFacts] = []
    paths = [folder / f"{shard.shard}.parquet" for shard in shards]
    groups = regrouped(index_shards.joined(paths, shards, facts), [1, 1, 3])
    assert len(facts) == 0
    for group, rows in zip(groups, (1, 2, 5), strict=True):
        read = [sum(shard.rows for shard in shards[:count]) for count in (len(facts) - 1, len(facts))]
        assert read[0] < rows <= read[1], "the last shard read was needed"
        assert group["key"].to_pylist() == read_catalog(catalog)["key"].to_pylist()[rows - len(group) : rows]


def test_too_many_losses_are_named_and_leave_no_manifest(tmp_path: Path, catalog: Path) -> None:
    for shard in shard_names(catalog):
        shard_audio.main(shard_arguments(catalog, tmp_path, shard, clips=3))
    with pytest.raises(
        PipelineError, match=r'2 of 5 clips cannot be used \(40.0%.* 1 undecodable \("clip 3.wav" \(sounds_'
    ):
        index_shards.main(index_arguments(catalog, tmp_path, limit=0.39))
    assert not list(tmp_path.glob("manifest*"))
    index_shards.main(index_arguments(catalog, tmp_path, limit=0.4))


def test_a_tar_cut_at_a_sample_boundary_is_refused(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    last = max(read_manifest(folder / "manifest.parquet").to_pylist(), key=lambda row: row["data_offset"] or 0)
    tar = folder / f"{last['shard']}.tar"
    size = tar.stat().st_size
    with tar.open("rb+") as file:
        file.truncate(last["data_offset"] - 512)
    with pytest.raises(PipelineError, match=rf"{tar.name}: {last['data_offset'] - 512} bytes, {size} expected"):
        index_shards.main(index_arguments(catalog, folder, 2))
    make_shards(catalog, folder, 2)
    tar.unlink()
    with pytest.raises(PipelineError, match=rf"{tar.name}: not found; run the same Snakemake command again"):
        index_shards.main(index_arguments(catalog, folder, 2))


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    name = shard_names(catalog, 2)[1]
    whole = (folder / f"{name}.parquet").read_bytes()
    shutil.copy(folder / "00000.parquet", folder / f"{name}.parquet")
    with pytest.raises(
        PipelineError, match=rf"{name}.parquet: was made from other rows than the catalog has for shard"
    ):
        index_shards.main(index_arguments(catalog, folder, 2))
    shard_audio.main(shard_arguments(catalog, folder, name, clips=2, rate=8_000))
    with pytest.raises(PipelineError, match=rf"{name}.parquet: has wav at 8000 Hz, shard 00000 has wav at 16000 Hz"):
        index_shards.main(index_arguments(catalog, folder, 2))
    (folder / f"{name}.parquet").write_bytes(whole)
    with pytest.raises(PipelineError, match=rf"00000.parquet: was made from other rows|{name}.parquet: not found"):
        index_shards.main(index_arguments(catalog, folder, 9))


def test_tars_of_earlier_shards_are_left_out_and_named(
    tmp_path: Path, catalog: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    earlier = shard_names(catalog, 2)[1:]
    make_shards(catalog, folder, 9)
    assert f"{len(earlier)} tars (0.0 GB) belong to no shard of the catalog" in caplog.text
    assert all(f"{name}.tar" in caplog.text for name in earlier)
    assert set(read_manifest(folder / "manifest.parquet")["shard"].to_pylist()) == {"00000"}
    assert set(open_shards(folder).keys) == {row["key"] for row in usable(folder)}
    with pytest.raises(PipelineError, match=rf"{min(earlier)}.tar is not in manifest.json"):
        verify_shards(folder / "manifest.parquet", quick=False)


def usable(folder: Path) -> list[dict]:
    return [row for row in read_manifest(folder / "manifest.parquet").to_pylist() if row["status"] == "ok"]


def test_the_command_works_and_refuses_in_one_line(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    for name in ("manifest.parquet", "manifest.json"):
        (folder / name).unlink()
    finished = run_stage("index_shards", index_arguments(catalog, folder, 2, 0.1))
    assert_refused(finished, "index_shards", "2 of 5 clips", "clip 3.wav")
    (folder / "00000.parquet").rename(folder / "kept")
    finished = run_stage("index_shards", index_arguments(catalog, folder, 2))
    assert_refused(finished, "index_shards", "00000.parquet: not found")
    (folder / "kept").rename(folder / "00000.parquet")
    finished = run_stage("index_shards", index_arguments(catalog, folder, 2))
    assert finished.returncode == 0, finished.stderr
    assert (folder / "manifest.json").exists()


def test_the_split_says_what_it_kept_of_the_channels_and_keeps_one_thing(tmp_path: Path) -> None:
    (tmp_path / "raw/train").mkdir(parents=True)
    left, right = noise(0.5, seed=0), noise(0.5, seed=1)
    for number in range(3):
        soundfile.write(tmp_path / f"raw/train/clip {number}.wav", np.stack([left, right], axis=1), RATE)
    catalog = make_catalog(tmp_path / "raw", tmp_path / "catalog.parquet", labeled=False)
    default = make_shards(catalog, tmp_path / "default", 2)
    mean, first = (make_shards(catalog, tmp_path / name, 2, channels=name) for name in ("mean", "first"))
    assert (mean / "manifest.json").read_bytes() == (default / "manifest.json").read_bytes()
    kept = {"mean": (left + right) / 2, "first": left}
    for folder in (mean, first):
        reader = open_shards(folder)
        assert reader.channels == folder.name
        np.testing.assert_allclose(reader.read_clip(0) / 32_768, kept[folder.name], atol=2 / 32_768)
    names = shard_names(catalog, 2)
    for suffix in ("tar", "parquet"):
        shutil.copy(first / f"{names[-1]}.{suffix}", mean)
    with pytest.raises(
        PipelineError, match=rf"{names[-1]}\.parquet: has the first of the channels, shard 00000 has the mean"
    ):
        index_shards.main(index_arguments(catalog, mean, 2))


def test_shards_of_a_version_that_knew_one_way_with_channels_kept_their_mean(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    before = (folder / "manifest.json").read_bytes()
    for name in shard_names(catalog, 2):
        table = pq.read_table(folder / f"{name}.parquet")
        facts = json.loads(table.schema.metadata[b"shard"])
        del facts["channels"]
        pq.write_table(table.replace_schema_metadata({"shard": json.dumps(facts)}), folder / f"{name}.parquet")
    index_shards.main(index_arguments(catalog, folder, 2))
    assert (folder / "manifest.json").read_bytes() == before
    summary = read_json(folder / "manifest.json")
    assert summary.pop("channels") == "mean"
    (folder / "manifest.json").write_text(json.dumps(summary))
    assert open_shards(folder).channels == "mean"


def test_a_corrected_caption_leaves_the_identities_byte_identical(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "raw", clips=4)
    catalog, folder = tmp_path / "catalog.parquet", tmp_path / "out"
    make_shards(make_catalog(root, catalog), folder, 2)
    manifest, identities = ((folder / f"{name}.parquet").read_bytes() for name in ("manifest", "identities"))
    table = root / "train.csv"
    table.write_text(table.read_text().replace("noise 1, told caption_1", "a corrected caption"))
    make_shards(make_catalog(root, catalog), folder, 2)
    assert (folder / "manifest.parquet").read_bytes() != manifest
    assert (folder / "identities.parquet").read_bytes() == identities


def test_identities_are_those_of_the_usable_clips(tmp_path: Path, catalog: Path) -> None:
    folder = make_shards(catalog, tmp_path / "out", 2)
    found = pq.read_table(folder / "identities.parquet")
    expected = [{name: row[name] for name in found.schema.names} for row in usable(folder)]
    assert found.to_pylist() == expected and len(expected) == 3
    assert read_audio_form(folder / "identities.parquet") == AudioForm(
        sample_rate_hz=RATE, format="wav", channels="mean"
    )
