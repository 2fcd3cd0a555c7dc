"""The lists as AudioCaps and AudioSet publish them, at their true size: adapters, pairing and the leak guard.

The lists are not part of the project. They are read from `../shared/metadata` beside the repository where it is there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from audio_files import noise, write_audio

from pipeline.commands.verify import verify
from pipeline.data.adapters import ADAPTERS
from pipeline.data.catalogs import read_catalog
from pipeline.data.leaks import AudioForm, leaked_path, write_identities
from pipeline.data.pairs import read_epoch, read_facts
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import MANIFEST_SCHEMA, ShardFacts, read_manifest
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_json
from pipeline.stages import index_audio, index_shards, pair_clips, shard_audio

LISTS = Path(__file__).resolve().parents[3] / "shared" / "metadata"
AUDIOSET = "audioset_balanced_train_segments.csv"
SIZES = {"train": (49_838, 1), "val": (495, 5), "test": (975, 5)}
"""Clips of AudioCaps version 1 and captions of each, as its paper has them."""

pytestmark = pytest.mark.skipif(not LISTS.is_dir(), reason="the publishers' lists are not beside the repository")


def names_of(rows: list[dict[str, str]]) -> Iterator[str]:
    """A file name a clip, in the ways that are in use by turns."""
    clips = {(row["youtube_id"], row["start_time"]): row for row in reversed(rows)}
    for number, row in enumerate(clips.values()):
        video = row["youtube_id"]
        ways = (f"{video}_{row['start_time']}.flac", f"Y{video}.wav", f"{row['audiocap_id']}.wav", f"{video}.wav")
        yield f"{number % 7}/{ways[number % 4]}"


def make_empty(folder: Path, names: Iterator[str]) -> None:
    for part in range(7):
        (folder / str(part)).mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def read_list(name: str) -> list[dict[str, str]]:
    with (LISTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both datasets in their publishers' layouts, with an empty file for every clip: adapters open none."""
    root = tmp_path_factory.mktemp("published")
    for split in SIZES:
        make_empty(root / "audiocaps" / split, names_of(read_list(f"audiocaps_v1_{split}.csv")))
        (root / "audiocaps" / f"{split}.csv").symlink_to(LISTS / f"audiocaps_v1_{split}.csv")
    lines = (LISTS / AUDIOSET).read_text(encoding="utf-8").splitlines()
    ids = [line.split(",")[0] for line in lines if not line.startswith("#")]
    ways = ("Y{}.wav", "{}.flac")
    names = (f"{number % 7}/{ways[number % 2].format(video)}" for number, video in enumerate(ids))
    make_empty(root / "audioset" / "balanced_train", names)
    (root / "audioset" / "balanced_train_segments.csv").symlink_to(LISTS / AUDIOSET)
    return root


def make_catalog(folder: Path, root: Path, adapter: str, split: str, limit: float = 0.0) -> Path:
    path = folder / "catalogs" / adapter / f"{split}.parquet"
    index_audio.main(
        [
            *("--dataset", adapter, "--split", split, "--adapter", adapter, "--root", str(root / adapter)),
            "--unlabeled" if adapter == "audioset" else "--labeled",
            *("--max-dropped-fraction", str(limit), "--catalog", str(path)),
            *("--clips-per-shard", "200", "--plan", str(path.with_suffix(".shards.parquet"))),
        ]
    )
    return path


def make_manifest(catalog: Path, folder: Path) -> Path:
    """The manifest of clips of about ten seconds, each of its own sound, none of which was ever made."""
    table = read_catalog(catalog)
    generator = np.random.default_rng(len(table))
    columns = {name: table[name] for name in table.schema.names if name in MANIFEST_SCHEMA.names} | {
        "shard": ["00000"] * len(table),
        "frames": generator.integers(300_000, 442_000, len(table)),
        "sample_rate_hz": np.full(len(table), 44_100),
        "sha256": [f"{catalog.stem}{row}" for row in range(len(table))],
    }
    nulls = {field.name: pa.nulls(len(table), field.type) for field in MANIFEST_SCHEMA if field.name not in columns}
    path = folder / "shards" / catalog.parent.name / catalog.stem / "manifest.parquet"
    write_parquet(pa.table(columns | nulls).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA), path)
    tar = ShardFacts(
        shard="00000", format="wav", sample_rate_hz=44_100, clips=len(table), bytes=0, sha256="", rows_digest=""
    )
    summary = index_shards.summarize(path, [tar])
    write_json(summary, path.with_suffix(".json"))
    write_identities(path, AudioForm.of(summary), path.with_name("identities.parquet"))
    return path


@pytest.fixture(scope="module")
def manifests(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("results")
    splits = [("audiocaps", split) for split in SIZES] + [("audioset", "balanced_train")]
    return {split: make_manifest(make_catalog(folder, root, *names), folder) for names in splits for split in names[1:]}


def pair(manifests: dict[str, Path], path: Path, policy: str) -> Path:
    held_out = [str(manifests[split].with_name("identities.parquet")) for split in ("val", "test")]
    plan = ["--backbone", "msclap-2023", "--epochs", "1", "--batch-size", "256", "--seed", "0", "--pairs", str(path)]
    plan += ["--leaked", str(leaked_path(path))]
    splits = ["--labeled", str(manifests["train"]), "--unlabeled", str(manifests["balanced_train"])]
    pair_clips.main([*splits, "--held-out", *held_out, "--leaks", policy, *plan])
    return path


def test_every_listed_clip_is_found_with_its_captions_and_video(manifests: dict[str, Path]) -> None:
    for split, (clips, captions) in SIZES.items():
        table = read_manifest(manifests[split])
        assert len(table) == clips == pc.count_distinct(table["source_id"]).as_py()
        assert set(pc.list_value_length(table["captions"]).to_pylist()) == {captions}
    table = read_manifest(manifests["balanced_train"])
    assert len(table) == 22_160 == pc.count_distinct(table["source_id"]).as_py()
    assert not pc.list_value_length(table["captions"]).to_numpy().any()


def test_audioset_in_the_spelling_of_the_original_gives_the_same_clips(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "audioset"
    other.mkdir()
    (other / "balanced_train").symlink_to(root / "audioset" / "balanced_train")
    lines = ["# Segments csv created Sun Mar  5 10:54:31 2017"]
    for line in (LISTS / AUDIOSET).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            video, start, end, labels = line.split(",", 3)
            line = f"{video}, {float(start):.3f}, {float(end):.3f}, {labels}"
        lines.append(line)
    (other / "balanced_train_segments.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mirror, original = (list(ADAPTERS["audioset"](path, "balanced_train")) for path in (root / "audioset", other))
    assert [(row.source_name, row.source_id, row.start_s) for row in mirror] == [
        (row.source_name, row.source_id, row.start_s) for row in original
    ]
    assert [Path(row.path or "").name for row in mirror] == [Path(row.path or "").name for row in original]


def test_the_guard_finds_no_video_of_the_test_splits_and_pairs_are_complete(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    pairs = pair(manifests, tmp_path / "pairs.parquet", "fail")
    assert read_facts(pairs)["left_out_as_leaked"] == {}
    assert len(read_epoch(pairs, 0)) == 49_838 // 256 * 256
    shards = manifests["train"].parents[2]
    assert "49,664 rows; their keys, captions and windows are those of 49,838 labeled and 22,160 unlabeled" in verify(
        pairs, shards=shards, quick=False
    )


def test_videos_of_the_test_splits_among_the_unlabeled_are_left_out_and_no_others(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    """As in the unbalanced part of AudioSet, from which AudioCaps was taken."""
    table = read_manifest(manifests["balanced_train"])
    videos = [read_manifest(manifests[split])["source_id"].to_pylist()[:20] for split in ("val", "test")]
    ids = [*videos[0], *videos[1], *table["source_id"].to_pylist()[40:]]
    mixed = tmp_path / "shards" / "audioset" / "mixed" / "manifest.parquet"
    place = table.schema.get_field_index("source_id")
    write_parquet(table.set_column(place, MANIFEST_SCHEMA.field(place), pa.array(ids)), mixed)
    summary = read_json(manifests["balanced_train"].with_suffix(".json"))
    write_json(summary | {"manifest_sha256": sha256_of(mixed)}, mixed.with_suffix(".json"))
    with pytest.raises(PipelineError, match=r"40 of 22160 clips are also in a validation or test split"):
        pair(manifests | {"balanced_train": mixed}, tmp_path / "pairs.parquet", "fail")
    pairs = pair(manifests | {"balanced_train": mixed}, tmp_path / "pairs.parquet", "drop")
    assert read_facts(pairs)["left_out_as_leaked"] == {str(mixed.parent): 40}
    used, leaked = read_epoch(pairs, 0)["partner_key"], table["key"].combine_chunks()[:40]
    assert pc.count_distinct(used).as_py() == 22_160 - 40
    assert not pc.any(pc.is_in(used, leaked)).as_py()


def test_clips_that_are_gone_are_counted_and_those_there_end_in_shards(root: Path, tmp_path: Path) -> None:
    """Twelve clips of the validation list, sounds made up; the other 483 are missing, as videos go missing."""
    source = tmp_path / "audiocaps"
    rows = read_list("audiocaps_v1_val.csv")
    (source / "val").mkdir(parents=True)
    (source / "val.csv").symlink_to(LISTS / "audiocaps_v1_val.csv")
    for number, name in zip(range(12), names_of(rows), strict=False):
        write_audio(source / "val" / name, noise(0.3, seed=number))
    catalog = make_catalog(tmp_path, tmp_path, "audiocaps", "val", limit=1.0)
    shards = tmp_path / "shards" / "audiocaps" / "val"
    plan = ["--plan", str(catalog.with_suffix(".shards.parquet"))]
    settings = ["--sample-rate-hz", "16000", "--format", "wav", "--done", str(shards / "parts" / "0-of-1.json")]
    shard_audio.main(["--catalog", str(catalog), *plan, "--shards", str(shards), *settings])
    outputs = ["--manifest", str(shards / "manifest.parquet"), "--summary", str(shards / "manifest.json")]
    outputs += ["--identities", str(shards / "identities.parquet")]
    index_shards.main([*plan, "--shards", str(shards), *outputs, "--max-dropped-fraction", "1"])
    summary = read_json(shards / "manifest.json")
    assert summary["status"] == {"ok": 12, "dropped": 483} and summary["reason"] == {"missing_file": 483}
    found = pq.read_table(shards / "manifest.parquet", filters=[("status", "=", "ok")])["source_id"].to_pylist()
    clips = list(dict.fromkeys((row["youtube_id"], row["start_time"]) for row in reversed(rows)))
    assert sorted(found) == sorted(video for video, _ in clips[:12])
