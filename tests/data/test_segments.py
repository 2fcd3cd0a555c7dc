"""Long recordings become clips: captioned stretches and segments, from the list to the pairs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_files import RATE, noise, plan_path, tones, write_audio, write_csv

from pipeline.commands.inspect import describe
from pipeline.commands.inspection.shard_checks import verify_shards
from pipeline.data.audio import read_recording
from pipeline.data.catalogs import read_catalog
from pipeline.data.leaks import leaked_path, read_leaked
from pipeline.data.pairs import read_epoch
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.stages import index_audio, index_shards, pair_clips, shard_audio


def write_recording(path: Path, duration_s: float, seed: int = 0, rate: int = RATE, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples_S = tones(duration_s, 300, rate) + 0.1 * noise(duration_s, seed, rate)
    with soundfile.SoundFile(path, "w", rate, 1, **kind) as file:
        for first in range(0, len(samples_S), 10 * rate):
            file.write(samples_S[first : first + 10 * rate])
    return path


def index(
    root: Path, catalog: Path, *, split: str = "train", adapter: str = "folder", limit: float = 1.0, **options: Any
) -> list[dict[str, Any]]:
    """The rows of a catalog made with segments of 2 s, unless the options say otherwise."""
    options = {"segment_length_s": 2, "labeled": False, "clips_per_shard": 4, "dataset": "sounds"} | options
    flag = "--labeled" if options.pop("labeled") else "--unlabeled"
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    index_audio.main(
        [
            *("--split", split, "--adapter", adapter, "--root", str(root), flag),
            *("--max-dropped-fraction", str(limit), *arguments),
            *("--catalog", str(catalog), "--plan", str(plan_path(catalog))),
        ]
    )
    return read_catalog(catalog).to_pylist()


def shard(catalog: Path, folder: Path, *options: str, part: str = "0-of-1") -> None:
    """One part of the shards of a catalog at 16 kHz."""
    shard_audio.main(
        [
            *("--catalog", str(catalog), "--plan", str(plan_path(catalog)), "--part", part),
            *("--sample-rate-hz", str(RATE), "--format", "wav", *options),
            *("--shards", str(folder), "--done", str(folder / "parts" / f"{part}.json")),
        ]
    )


def manifest_of(catalog: Path, folder: Path, *options: str, limit: float = 1.0) -> list[dict[str, Any]]:
    """The rows of the manifest of all shards of a catalog."""
    shard(catalog, folder, *options)
    index_shards.main(
        [
            *("--plan", str(plan_path(catalog)), "--shards", str(folder), "--max-dropped-fraction", str(limit)),
            *("--manifest", str(folder / "manifest.parquet"), "--summary", str(folder / "manifest.json")),
            *("--identities", str(folder / "identities.parquet")),
        ]
    )
    return read_manifest(folder / "manifest.parquet").to_pylist()


def stretches(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("segment_start_s", "segment_end_s", *columns)) for row in rows]


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings: captioned stretches of both for training, of the first for the test, and all as segments."""
    root = tmp_path_factory.mktemp("field")
    names = ["site a/monday.wav", "site b/monday.flac"]
    for number, name in enumerate(names):
        write_recording(root / "raw" / "recordings" / name, 61 + number, seed=number, rate=48_000)
    header = ["file_name", "start_s", "end_s", "caption"]
    names = [f"recordings/{name}" for name in names]
    train = [[names[1], 3 * number, 3 * number + 4, f"tone {number}"] for number in range(10)]
    test = [[names[0], 10, 14, "a tone"], [names[0], "12.5", "15", "another tone"], [names[0], 55, 60, "the last tone"]]
    write_csv(root / "raw" / "train.csv", header, *train)
    write_csv(root / "raw" / "test.csv", header, *test)
    for dataset, split, captioned in (("near", "train", True), ("near", "test", True), ("far", "recordings", False)):
        catalog = root / "catalogs" / dataset / f"{split}.parquet"
        index(root / "raw", catalog, dataset=dataset, split=split, labeled=captioned, segment_length_s=5, limit=0)
        manifest_of(catalog, root / "shards" / dataset / split, limit=0)
    return root


def pairs_of(field: Path, *options: str) -> tuple[Path, list[dict[str, Any]]]:
    """The pairs of captioned stretches with segments, and the clips that are left out as leaked."""
    pairs = field / "pairs" / f"{'_'.join(options)}.parquet"
    pair_clips.main(
        [
            *("--labeled", str(field / "shards/near/train/manifest.parquet")),
            *("--unlabeled", str(field / "shards/far/recordings/manifest.parquet")),
            *("--held-out", str(field / "shards/near/test/identities.parquet")),
            *("--leaks", "drop", "--backbone", "mini", "--epochs", "1", "--batch-size", "4", "--seed", "0", *options),
            *("--pairs", str(pairs), "--leaked", str(leaked_path(pairs))),
        ]
    )
    return pairs, read_leaked(leaked_path(pairs)).to_pylist()


def test_captioned_stretches_become_clips_with_their_sound(field: Path) -> None:
    reader = open_shards(field / "shards" / "near" / "train")
    rows = read_manifest(field / "shards/near/train/manifest.parquet").to_pylist()
    assert stretches(rows, "captions") == [(3.0 * n, 3.0 * n + 4, [f"tone {n}"]) for n in range(10)]
    samples, rate = soundfile.read(field / "raw/recordings/site b/monday.flac", dtype="float32")
    for row in rows:
        first, end = (round(row[name] * rate) for name in ("segment_start_s", "segment_end_s"))
        alone = write_audio(field / "alone.wav", samples[first:end], rate, subtype="FLOAT")
        expected = read_recording(alone, sample_rate_hz=RATE, min_duration_s=0.1).samples_S
        assert np.array_equal(reader.read_window(row["key"], 0, row["frames"]), expected)


def test_segments_cover_the_recordings(field: Path) -> None:
    rows = read_manifest(field / "shards/far/recordings/manifest.parquet").to_pylist()
    assert {row["source_name"]: 0 for row in rows} == {"site a/monday.wav": 0, "site b/monday.flac": 0}
    for name, end in (("site a/monday.wav", 61), ("site b/monday.flac", 62)):
        found = stretches([row for row in rows if row["source_name"] == name], "reason")
        whole = [(5.0 * n, 5.0 * n + 5, None) for n in range(12)]
        assert found == [*whole, (60.0, float(end), "too_short")]


def test_no_segment_of_a_recording_is_trained_on_of_which_a_stretch_is_held_out(field: Path) -> None:
    pairs, leaked = pairs_of(field)
    assert {row["source_name"] for row in leaked} == {"site a/monday.wav"}
    assert {row["shared"] for row in leaked} == {"source_id"}
    assert len(leaked) == 12
    partners = set(read_epoch(pairs, 0)["partner_key"].to_pylist())
    assert partners and not partners & {row["key"] for row in leaked}


def test_only_overlapping_segments_are_left_out_on_demand(field: Path) -> None:
    pairs, leaked = pairs_of(field, "--leak-unit", "stretch")
    assert [(row["key"][-21:], row["held_out_key"][-21:]) for row in leaked] == [
        ("0000010000_0000015000", "0000010000_0000014000"),
        ("0000055000_0000060000", "0000055000_0000060000"),
    ]
    assert not set(read_epoch(pairs, 0)["partner_key"].to_pylist()) & {row["key"] for row in leaked}


def test_inspect_shows_and_verify_checks_stretches(field: Path) -> None:
    manifest = field / "shards/near/test/manifest.parquet"
    assert "3 clips" in verify_shards(manifest, quick=False)
    for path in (manifest, field / "catalogs/near/test.parquet"):
        sample = describe(path, shards=None, samples=3)["samples"][0]
        assert (sample["segment_start_s"], sample["segment_end_s"]) == (10.0, 14.0)


def test_json_in_the_tar_has_the_times(field: Path) -> None:
    with tarfile.open(field / "shards/near/test/00000.tar") as tar:
        facts = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]  # type: ignore[arg-type]
    assert [(fact["segment_start_s"], fact["segment_end_s"]) for fact in facts] == [(10, 14), (12.5, 15), (55, 60)]
