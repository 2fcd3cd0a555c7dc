"""Long recordings become clips: captioned stretches and segments, from the list to the pairs."""

from __future__ import annotations

import functools
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, noise, plan_path, tones, with_bytes, write_audio, write_csv

from pipeline.commands.inspect import describe
from pipeline.commands.inspection.shard_checks import verify_shards
from pipeline.data.audio import read_recording
from pipeline.data.catalogs import read_catalog
from pipeline.data.leaks import leaked_path, read_leaked
from pipeline.data.pairs import read_epoch
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.stages import index_audio, index_shards, pair_clips, shard_audio


@functools.cache
def encoded(suffix: str, duration_s: float, seed: int, rate: int, **kind: str) -> bytes:
    samples_S = tones(duration_s, 300, rate) + 0.1 * noise(duration_s, seed, rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        with soundfile.SoundFile(path, "w", rate, 1, **kind) as file:
            for first in range(0, len(samples_S), 10 * rate):
                file.write(samples_S[first : first + 10 * rate])
        return path.read_bytes()


def write_recording(path: Path, duration_s: float, seed: int = 0, rate: int = RATE, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix, duration_s, seed, rate, **kind))
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


# --- lists of stretches ----------------------------------------------------------------------------------------------


STRETCHES = ("file_name", "start_s", "end_s", "caption")


def listed(root: Path, *rows: list[object], header: tuple[str, ...] = STRETCHES) -> Path:
    """A recording of 20 s, and a list of stretches of it."""
    write_recording(root / "train" / "a.wav", 20)
    write_csv(root / "train.csv", header, *rows)
    return root


def test_stretches_that_cannot_be_are_dropped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [(1, 3), (2, 4), (5, 5), (7, 6), (-1, 2), (19, 21), (25, 26), (18, 20.05), (1, 3), (0, 0.05)]
    root = listed(tmp_path, *(["a.wav", *pair, "a tone"] for pair in times), ["b.wav", 0, 1, "none"])
    index(root, tmp_path / "c.parquet", labeled=True, segment_length_s=None)
    assert 'sounds/train row 5: "a.wav" 7-6 s has an end_s that is not behind its start_s' in caplog.text
    rows = manifest_of(tmp_path / "c.parquet", tmp_path / "shards")
    found = sorted((start, end, reason or "ok") for start, end, reason in stretches(rows, "reason"))
    assert found == [
        (-1, 2, "bad_stretch"),
        (0, 0.05, "too_short"),
        (0, 1, "missing_file"),
        (1, 3, "duplicate"),
        (1, 3, "ok"),
        (2, 4, "ok"),
        (5, 5, "bad_stretch"),
        (7, 6, "bad_stretch"),
        (18, 20.05, "ok"),
        (19, 21, "beyond_end"),
        (25, 26, "beyond_end"),
    ]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (("file_name", "start_s", "caption"), ["a.wav", 1, "x"], "train.csv: has a column start_s and no end_s; add"),
        (("file_name", "end_s", "caption"), ["a.wav", 1, "x"], "train.csv: has a column end_s and no start_s; add"),
        (("file_name", "start_s", "end_s"), ["a.wav", "", 3], "train.csv row 2: no start_s; fill it in"),
        (("file_name", "start_s", "end_s"), ["a.wav", 3, ""], "train.csv row 2: no end_s; fill it in"),
        (("file_name", "start_s", "end_s"), ["a.wav", "0:30", 40], 'train.csv row 2: start_s "0:30" is not a number'),
        (("file_name", "start_s", "end_s"), ["a.wav", 1, "inf"], 'train.csv row 2: end_s "inf" is not a number'),
    ],
)
def test_a_list_with_half_a_stretch_is_refused(
    tmp_path: Path, header: tuple[str, ...], row: list[object], message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        index(listed(tmp_path, row, header=header), tmp_path / "c.parquet")


def test_rows_without_times_are_whole_files_or_cut(tmp_path: Path) -> None:
    root = listed(tmp_path, ["a.wav", "", "", "all of it"], ["a.wav", 3, 4, "a part"])
    whole = index(root, tmp_path / "c.parquet", labeled=True, segment_length_s=None)
    assert sorted(stretches(whole, "captions"), key=str) == [(3, 4, ["a part"]), (None, None, ["all of it"])]
    assert {row["status"] for row in manifest_of(tmp_path / "c.parquet", tmp_path / "shards")} == {"ok"}
    cut = index(root, tmp_path / "c.parquet", labeled=True, segment_length_s=10)
    assert stretches(cut, "captions") == [(0, 10, ["all of it"]), (3, 4, ["a part"]), (10, 20, ["all of it"])]
    assert len({row["source_id"] for row in cut}) == 1


# --- segments --------------------------------------------------------------------------------------------------------


def test_keys_stay_when_recordings_are_added(tmp_path: Path) -> None:
    for name in ("b.wav", "d.wav"):
        write_recording(tmp_path / "train" / name, 9)
    before = index(tmp_path, tmp_path / "c.parquet")
    for name in ("a.wav", "c.wav", "e.flac"):
        write_recording(tmp_path / "train" / name, 7)
    after = index(tmp_path, tmp_path / "c.parquet")
    assert [row for row in after if row["source_name"] in ("b.wav", "d.wav")] == before
    assert len(after) == 2 * 5 + 3 * 4
    keys = [row["key"] for row in after]
    assert keys == sorted(keys) and max(map(len, keys)) <= 64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 2, None), (2, 4, None), (4, 5, None)]),
        ({"segment_min_share": 0.6}, [(0, 2, None), (2, 4, None), (4, 5, "too_short")]),
        ({"segment_hop_s": 1.5}, [(0, 2, None), (1.5, 3.5, None), (3, 5, None), (4.5, 5, "too_short")]),
        ({"segment_hop_s": 3}, [(0, 2, None), (3, 5, None)]),
        ({"segment_length_s": 7}, [(0, 5, None)]),
        ({"segment_length_s": 20}, [(0, 5, "too_short")]),
    ],
)
def test_segments_have_the_length_and_the_hop_asked_for(
    tmp_path: Path, options: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    write_recording(tmp_path / "train" / "a.wav", 5)
    write_recording(tmp_path / "train" / "b.wav", 60)  # so that some are left
    rows = [row for row in index(tmp_path, tmp_path / "c.parquet", **options) if row["source_name"] == "a.wav"]
    assert stretches(rows, "reason") == expected


def test_silence_and_last_pieces_are_no_reason_to_fail(tmp_path: Path) -> None:
    samples_S = np.concatenate([noise(4, 0), np.zeros(4 * RATE, np.float32), 0.01 * noise(4.5, 1)])
    write_audio(tmp_path / "train" / "a.wav", samples_S)
    index(tmp_path, tmp_path / "c.parquet", limit=0)
    rows = manifest_of(tmp_path / "c.parquet", tmp_path / "all", limit=0)
    assert [row["reason"] for row in rows] == [None, None, "silent", "silent", None, None, "too_short"]
    rows = manifest_of(tmp_path / "c.parquet", tmp_path / "loud", "--min-level-dbfs=-50", limit=0)
    assert [row["reason"] for row in rows] == [None, None, *["silent"] * 4, "too_short"]
    manifest_of(tmp_path / "c.parquet", tmp_path / "loud")  # another limit: the shards are made again
    assert read_manifest(tmp_path / "loud" / "manifest.parquet").equals(
        read_manifest(tmp_path / "all" / "manifest.parquet")
    )
    with pytest.raises(PipelineError, match="none is left"):
        manifest_of(tmp_path / "c.parquet", tmp_path / "none", "--min-level-dbfs=-5")


def test_recordings_that_are_empty_or_no_sound_are_one_row_with_a_reason(tmp_path: Path) -> None:
    write_recording(tmp_path / "train" / "a.wav", 5)
    write_audio(tmp_path / "train" / "no samples.wav", np.zeros(0, np.float32))
    write_audio(tmp_path / "train" / "tenth.wav", noise(0.1, 0))
    (tmp_path / "train" / "empty.flac").touch()
    (tmp_path / "train" / "text.mp3").write_text("no sound")
    rows = index(tmp_path, tmp_path / "c.parquet")
    assert {row["source_name"]: (row["status"], row["reason"]) for row in rows} == {
        "a.wav": ("ok", None),
        "no samples.wav": ("dropped", "empty"),
        "tenth.wav": ("dropped", "too_short"),
        "empty.flac": ("dropped", "empty"),
        "text.mp3": ("failed", "undecodable"),
    }


def test_a_folder_of_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(PipelineError, match="no audio files below"):
        index(tmp_path, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("name", "reason", "least"),
    [("a.wav", "truncated", 10), ("a.flac", "undecodable", 5), ("a.ogg", "truncated", 8), ("a.mp3", "truncated", 8)],
)
def test_a_recording_that_breaks_off_keeps_the_segments_before(
    tmp_path: Path, name: str, reason: str, least: int
) -> None:
    path = write_recording(tmp_path / "train" / name, 40, rate=44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 7777])
    index(tmp_path, tmp_path / "c.parquet")
    rows = manifest_of(tmp_path / "c.parquet", tmp_path / "shards")
    reasons = [row["reason"] for row in rows]
    usable = reasons.index(reason)
    assert least <= usable <= 12
    assert reasons == [None] * usable + [reason] * (len(reasons) - usable)


def test_a_header_of_years_is_no_reason_for_millions_of_rows(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "train" / "a.wav", 9, format="W64")
    data = path.read_bytes()
    size_at = data.index(b"data") + 16
    path.write_bytes(with_bytes(data, size_at, (1 << 60).to_bytes(8, "little")))
    rows = index(tmp_path, tmp_path / "c.parquet")
    assert stretches(rows, "reason") == [*((2.0 * n, 2.0 * n + 2, None) for n in range(4)), (8.0, 9.0, "truncated")]


def test_a_recording_that_was_cut_after_indexing_loses_its_end(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "train" / "a.flac", 20)
    index(tmp_path, tmp_path / "c.parquet")
    write_recording(path, 11)
    rows = manifest_of(tmp_path / "c.parquet", tmp_path / "shards")
    assert [row["reason"] for row in rows] == [None] * 5 + ["beyond_end"] * 5


def test_a_recording_that_grows_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recording(tmp_path / "train" / "a.wav", 20)
    index(tmp_path, tmp_path / "c.parquet", clips_per_shard=100)
    original, calls = soundfile.SoundFile.read, []

    def read_while_growing(self: soundfile.SoundFile, *args: object, **options: object) -> object:
        calls.append(None)
        with path.open("ab") as file:
            file.write(bytes(1000))
        return original(self, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read_while_growing)
    with pytest.raises(PipelineError, match=r"train/a\.wav: changed while it was read; wait until it is complete"):
        shard(tmp_path / "c.parquet", tmp_path / "shards")
    assert calls


# --- jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
@pytest.mark.parametrize("hop_s", [2, 1.3])
def test_any_number_of_jobs_gives_the_same_tars(tmp_path: Path, name: str, hop_s: float) -> None:
    write_recording(tmp_path / "train" / name, 50, rate=44_100)
    write_recording(tmp_path / "train" / "other.flac", 10, rate=44_100)
    index(tmp_path, tmp_path / "c.parquet", segment_hop_s=hop_s)
    shard(tmp_path / "c.parquet", tmp_path / "one")
    for number in range(3):
        shard(tmp_path / "c.parquet", tmp_path / "three", part=f"{number}-of-3")
    tars = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.tar")}
    assert len(tars) > 5
    assert {path.name: path.read_bytes() for path in (tmp_path / "three").glob("*.tar")} == tars
    for path in sorted((tmp_path / "three").glob("*.tar"))[1::2]:
        path.unlink()
    shard(tmp_path / "c.parquet", tmp_path / "three")
    assert {path.name: path.read_bytes() for path in (tmp_path / "three").glob("*.tar")} == tars


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "a.wav", "a.flac"])
def test_a_job_decodes_a_recording_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recording(tmp_path / "train" / name, 50, rate=44_100)
    index(tmp_path, tmp_path / "c.parquet", segment_hop_s=1)
    original, decoded = soundfile.SoundFile.read, []

    def counted(self: soundfile.SoundFile, *args: object, **options: object) -> object:
        block = original(self, *args, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    shard(tmp_path / "c.parquet", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 5
    assert 49 * 44_100 < sum(decoded) < 51 * 44_100


# --- recordings in tars and in Parquet files -------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["webdataset", "parquet"])
def test_recordings_in_larger_files_are_cut_as_files_are(tmp_path: Path, adapter: str) -> None:
    names = ["a.wav", "b.flac", "c.ogg"]
    paths = [write_recording(tmp_path / "folder" / "train" / name, 9 + n, n) for n, name in enumerate(names)]
    root = tmp_path / adapter
    root.mkdir()
    if adapter == "webdataset":
        with tarfile.open(root / "train-000000.tar", "w") as tar:
            for path in paths:
                tar.add(path, path.name)
    else:
        pq.write_table(
            pa.table({"audio": [path.read_bytes() for path in paths], "file_name": names}), root / "train.parquet"
        )
    found = {}
    for kind in ("folder", adapter):
        index(tmp_path / kind, tmp_path / f"{kind}.parquet", adapter=kind, segment_length_s=3)
        rows = manifest_of(tmp_path / f"{kind}.parquet", tmp_path / f"{kind} shards")
        found[kind] = sorted(stretches(rows, "source_id", "sha256", "reason", "frames"), key=str)
    assert found[adapter] == found["folder"]
    assert len(found[adapter]) == 3 + 4 + 4
