"""A shard holds every usable clip as mono 16-bit audio at one rate, and a row for every clip, usable or not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import (
    RATE,
    assert_refused,
    index_arguments,
    make_catalog,
    noise,
    part_arguments,
    plan_path,
    run_stage,
    shard_arguments,
    shard_names,
    tone,
    write_audio,
    write_csv,
    write_folder,
)
from numpy.typing import NDArray

from pipeline.data import audio, catalogs, decoding
from pipeline.data.audio import UnusableAudio, read_recording, to_int16
from pipeline.data.catalogs import read_catalog
from pipeline.data.shards import writer
from pipeline.data.shards.format import MANIFEST_SCHEMA, read_rows
from pipeline.data.shards.partition import read_assignment
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.stages import index_shards, shard_audio


def decode(path: Path, rate: int = RATE) -> NDArray[np.int16]:
    return read_recording(path, sample_rate_hz=rate, min_duration_s=0.1).samples_S


def shard_of(root: Path, folder: Path, *, labeled: bool = True, **settings: object) -> Path:
    """The first shard of a folder dataset; the tar's path."""
    catalog = make_catalog(root, folder / "catalog.parquet", labeled=labeled)
    shard_audio.main(shard_arguments(catalog, folder, **settings))  # type: ignore[arg-type]
    return folder / "00000.tar"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of the tars and row files in a folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


# --- decoding --------------------------------------------------------------------------------------------------------

FORMATS = {
    "16.wav": {"subtype": "PCM_16"},
    "24.wav": {"subtype": "PCM_24"},
    "32.wav": {"subtype": "PCM_32"},
    "float.wav": {"subtype": "FLOAT"},
    "double.wav": {"subtype": "DOUBLE"},
    "8.wav": {"subtype": "PCM_U8"},
    "extensible.wav": {"format": "WAVEX", "subtype": "PCM_24"},
    "x.flac": {},
    "x.ogg": {},
    "x.opus": {"format": "OGG", "subtype": "OPUS"},
    "x.mp3": {},
    "x.aiff": {},
    "24.flac": {"subtype": "PCM_24"},
    "24.aiff": {"subtype": "PCM_24"},
    "x.au": {},
    "rf64.wav": {"format": "RF64"},
}


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tone(tmp_path: Path, name: str, rate: int) -> None:
    path = write_audio(tmp_path / name, tone(1.0, rate=48_000), 48_000, **FORMATS[name])
    found, expected = decode(path, rate) / 32_768, tone(1.0, rate=rate)
    assert abs(len(found) - rate) <= rate // 100
    middle = slice(rate // 4, 3 * rate // 4)
    tolerance = 0.05 if name.endswith(("ogg", "opus", "mp3")) else 0.01
    np.testing.assert_allclose(found[middle], expected[middle], atol=tolerance)


def test_16_bit_samples_at_the_same_rate_come_back_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32_768, 32_768, RATE).astype(np.int16)
    assert np.array_equal(decode(write_audio(tmp_path / "a.wav", samples)), samples)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    channels = np.stack([tone(), np.zeros(RATE // 2), -0.25 * tone(), 0.5 * np.ones(RATE // 2)], axis=1)
    path = write_audio(tmp_path / "a.wav", channels, subtype="FLOAT")
    np.testing.assert_allclose(decode(path), np.rint(channels.mean(axis=1) * 32_768), atol=1)


@pytest.mark.parametrize(
    "name", ["16.wav", "24.wav", "float.wav", "extensible.wav", "x.flac", "x.ogg", "x.opus", "x.aiff"]
)
def test_eight_channels_of_any_format_become_their_mean(tmp_path: Path, name: str) -> None:
    levels = np.array([0.8, 0, 0.4, 0, 0.2, 0.1, 0.5, 0])  # Opus takes the last for the one of low frequencies
    path = write_audio(tmp_path / name, tone(1.0, rate=48_000, level=1.0)[:, None] * levels, 48_000, **FORMATS[name])
    recording = read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    assert recording.source_channels == 8
    middle = slice(RATE // 4, 3 * RATE // 4)
    expected = tone(1.0, level=float(levels.mean()))
    np.testing.assert_allclose(recording.samples_S[middle] / 32_768, expected[middle], atol=0.02)


@pytest.mark.parametrize("rate", [RATE, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_first_channel_is_that_of_the_file_alone(tmp_path: Path, rate: int, channels: int) -> None:
    sounds = np.stack([noise(1.3, seed=seed, rate=rate) for seed in range(channels)], axis=1)
    whole, first = (
        write_audio(tmp_path / "whole.wav", sounds, rate),
        write_audio(tmp_path / "a.wav", sounds[:, 0], rate),
    )
    expected = read_recording(first, sample_rate_hz=RATE, min_duration_s=0.1)
    found = read_recording(whole, sample_rate_hz=RATE, min_duration_s=0.1, channels="first")
    assert found.wav == expected.wav and found.peak_dbfs == expected.peak_dbfs
    assert found.source_channels == channels
    mean = read_recording(whole, sample_rate_hz=RATE, min_duration_s=0.1)
    assert (mean.wav == expected.wav) is (channels == 1)
    with pytest.raises(ValueError, match="channels 'left'; one of mean, first was expected"):
        read_recording(whole, sample_rate_hz=RATE, min_duration_s=0.1, channels="left")


def test_samples_are_rounded_and_clipped() -> None:
    steps = np.array([0, 0.4, 0.6, -0.6, 32_766.7, 32_768, 60_000, -32_768, -60_000], np.float32) / 32_768
    assert to_int16(steps).tolist() == [0, 0, 1, -1, 32_767, 32_767, 32_767, -32_768, -32_768]


@pytest.mark.parametrize("block_samples", [1, 7, 4_096])
def test_blocks_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_samples: int) -> None:
    channels = np.stack([noise(0.2, seed=0, rate=22_050), noise(0.2, seed=1, rate=22_050)], axis=1)
    path = write_audio(tmp_path / "a.wav", channels, 22_050)
    whole = read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    monkeypatch.setattr(decoding, "_BLOCK_SAMPLES", block_samples)
    assert read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1) == whole


def test_the_resampler_gives_few_samples_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_audio(tmp_path / "a.wav", noise(0.2, seed=0, rate=RATE), 10)  # soxr crashes at 2 ** 31 samples
    whole = read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    sizes: list[int] = []
    monkeypatch.setattr(audio, "to_int16", lambda samples_S: (sizes.append(len(samples_S)), to_int16(samples_S))[1])
    monkeypatch.setattr(audio, "_RESAMPLED_AT_ONCE", 50 * RATE)
    assert read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1) == whole
    assert max(sizes) <= 100 * RATE < sum(sizes) / 3


def test_levels_are_those_of_a_tone(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.flac", tone(1.0, frequency_hz=1_000, level=0.5))
    recording = read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    assert recording.peak_dbfs == pytest.approx(-6.0206, abs=1e-3)  # 20 log10(0.5)
    assert recording.rms_dbfs == pytest.approx(-9.0309, abs=1e-3)  # a sine's root mean square is its peak / sqrt(2)
    assert (recording.source_sample_rate_hz, recording.source_channels) == (RATE, 1)


def half_of(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def with_sample(value: float, place: int) -> NDArray[np.float32]:
    samples = tone()
    samples[place] = value
    return samples


UNUSABLE = {
    "no bytes.wav": ("dropped", "empty", lambda path: path.write_bytes(b"")),
    "no samples.wav": ("dropped", "empty", lambda path: write_audio(path, np.zeros(0))),
    "short.wav": ("dropped", "too_short", lambda path: write_audio(path, tone(0.0999))),
    "zeros.flac": ("dropped", "silent", lambda path: write_audio(path, np.zeros(RATE))),
    "hiss below -80 dB.wav": ("dropped", "silent", lambda path: write_audio(path, tone(level=9e-5))),
    "opposite.wav": ("dropped", "out_of_phase", lambda path: write_audio(path, np.stack([tone(), -tone()], axis=1))),
    "at scale 32768.wav": ("dropped", "clipped", lambda path: write_audio(path, tone() * 32_768, subtype="FLOAT")),
    "pipe.wav": ("dropped", "missing_file", lambda path: os.mkfifo(path)),
    "text.wav": ("failed", "undecodable", lambda path: path.write_text("<html>404 not found</html>")),
    "riff.wav": ("failed", "undecodable", lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE")),
    "video.m4a": ("failed", "undecodable", lambda path: path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(99))),
    "half.wav": ("failed", "truncated", lambda path: half_of(write_audio(path))),
    "half.aiff": ("failed", "truncated", lambda path: half_of(write_audio(path))),
    "half.flac": ("failed", "undecodable", lambda path: half_of(write_audio(path, noise(2.0, seed=0)))),
    "first NaN.wav": ("failed", "not_finite", lambda path: write_audio(path, with_sample(np.nan, 0), subtype="FLOAT")),
    "last NaN.wav": ("failed", "not_finite", lambda path: write_audio(path, with_sample(np.nan, -1), subtype="FLOAT")),
    "infinite.wav": ("failed", "not_finite", lambda path: write_audio(path, with_sample(np.inf, 99), subtype="DOUBLE")),
}


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_clips_that_cannot_be_used_end_as_rows_with_a_reason(tmp_path: Path, rate: int) -> None:
    (tmp_path / "train").mkdir()
    for name, (_, _, write) in UNUSABLE.items():
        write(tmp_path / "train" / name)
    write_audio(tmp_path / "train" / "good.wav")
    tar = shard_of(tmp_path, tmp_path / "out", labeled=False, clips=99, rate=rate)
    rows = read_rows(tar.with_suffix(".parquet"))[0].to_pylist()
    expected = {name: (status, reason) for name, (status, reason, _) in UNUSABLE.items()} | {"good.wav": ("ok", None)}
    assert {row["source_name"]: (row["status"], row["reason"]) for row in rows} == expected
    assert sorted({name.split(".")[0] for name in members(tar)}) == [
        row["key"] for row in rows if row["status"] == "ok"
    ]
    audio_columns = MANIFEST_SCHEMA.names[MANIFEST_SCHEMA.names.index("data_offset") :]
    assert all(row[name] is None for row in rows if row["status"] != "ok" for name in audio_columns)


def test_a_length_that_a_pipe_left_open_is_no_truncation(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(decode(path)) == len(tone())


def test_the_least_duration_is_a_setting(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", tone(0.5))
    with pytest.raises(UnusableAudio, match=r"0.500 s of at least 0.6 s"):
        read_recording(path, sample_rate_hz=RATE, min_duration_s=0.6)
    read_recording(path, sample_rate_hz=RATE, min_duration_s=0.5)


# --- the tar ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_plain_tar_reads_pairs_of_audio_and_json(tmp_path: Path, audio_format: str) -> None:
    tar = shard_of(write_folder(tmp_path), tmp_path / "out", audio_format=audio_format)
    rows = read_rows(tar.with_suffix(".parquet"))[0].to_pylist()
    files = members(tar)
    assert list(files) == [f"{row['key']}.{extension}" for row in rows for extension in (audio_format, "json")]
    for row in rows:
        data = files[f"{row['key']}.{audio_format}"]
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert np.array_equal(samples, decode(tmp_path / "train" / row["source_name"]))
        assert (rate, len(samples), len(data)) == (RATE, row["frames"], row["data_size"])
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert data == tar.read_bytes()[row["data_offset"] : row["data_offset"] + row["data_size"]]


def test_the_json_tells_the_clip(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "train.csv", ["file_name", "caption_1", "caption_2"], ["Rain  &amp; wind .wav", 'ça "gronde"', "b"]
    )
    write_audio(tmp_path / "train" / "Rain  & wind .wav", tone(0.5, rate=8_000), 8_000)
    (facts,) = (
        json.loads(data) for name, data in members(shard_of(tmp_path, tmp_path / "out")).items() if "json" in name
    )
    assert facts == {
        "captions": ['ça "gronde"', "b"],
        "dataset": "sounds",
        "split": "train",
        "source_name": "Rain  &amp; wind .wav",
        "source_id": "",
        "start_s": -1.0,
        "frames": 8_000,
        "sample_rate_hz": RATE,
    }


@pytest.mark.parametrize("labeled", [True, False])
def test_samples_have_one_schema_without_nulls(tmp_path: Path, labeled: bool) -> None:
    tar = shard_of(write_folder(tmp_path, clips=4), tmp_path / "out", labeled=labeled, clips=99)
    samples = [json.loads(data) for name, data in members(tar).items() if name.endswith(".json")]
    schemas = {pa.Table.from_pylist([sample]).schema for sample in samples}
    assert len(samples) == 4
    assert len(schemas) == 1
    assert not any(value is None for sample in samples for value in sample.values())


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    import webdataset  # imports torch, which nothing else here needs

    tar = shard_of(write_folder(tmp_path), tmp_path / "out")
    rows = read_rows(tar.with_suffix(".parquet"))[0].to_pylist()
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        found, _ = soundfile.read(io.BytesIO(sample["wav"]), dtype="int16")
        assert np.array_equal(found, decode(tmp_path / "train" / row["source_name"]))
        assert json.loads(sample["json"])["captions"] == row["captions"]


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_the_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path, audio_format: str) -> None:
    from webdataset import TarWriter

    tar = shard_of(write_folder(tmp_path), tmp_path / "out", audio_format=audio_format)
    expected = io.BytesIO()
    with TarWriter(expected, mtime=0, encoder=False) as writer:
        for name, data in members(tar).items():
            key, extension = name.split(".")
            writer.write({"__key__": key, extension: data})
    assert tar.read_bytes() == expected.getvalue()


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_the_same_catalog_gives_the_same_bytes_anywhere(tmp_path: Path, audio_format: str) -> None:
    catalog = make_catalog(write_folder(tmp_path / "raw"), tmp_path / "catalog.parquet")
    folders = [tmp_path / "one", tmp_path / "another" / "place"]
    for folder in folders:
        shard_audio.main(shard_arguments(catalog, folder, rate=44_100, audio_format=audio_format))
        time.sleep(1.1 if folder is folders[0] else 0)  # a time stamp of whole seconds would differ
    for name in ("00000.tar", "00000.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_shards_split_the_catalog_without_gap_or_overlap(tmp_path: Path) -> None:
    write_folder(tmp_path, clips=5)
    (tmp_path / "train" / "clip 2.wav").unlink()
    catalog = make_catalog(tmp_path, tmp_path / "catalog.parquet")
    tables = []
    names = shard_names(catalog, 2)
    for shard in names:
        shard_audio.main(shard_arguments(catalog, tmp_path / "out", shard, clips=2))
        tables.append(read_rows(tmp_path / "out" / f"{shard}.parquet")[0])
    assert all(1 <= len(table) <= 2 for table in tables)
    assert [table["key"][0].as_py() for table in tables[1:]] == names[1:]
    keys = pa.concat_tables(tables)["key"].to_pylist()
    assert len(keys) == 5
    assert all(first < second for first, second in pairwise(keys))


def test_a_planned_shard_is_made_from_its_rows_of_the_catalog_and_reads_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other row group of the catalog is spoilt: a job of a large split must not read the whole."""
    whole = make_catalog(write_folder(tmp_path, clips=9), tmp_path / "catalog.parquet")
    pq.write_table(read_catalog(whole), whole, row_group_size=2)
    monkeypatch.setattr(catalogs, "ROW_GROUP_ROWS", 2)
    shards = read_assignment(whole, 2)
    for shard in shards:
        shard_audio.main(shard_arguments(whole, tmp_path / "out", shard.shard, clips=2))
        data = bytearray(whole.read_bytes())
        metadata = pq.read_metadata(whole)
        mine = range(shard.first_row // 2, (shard.first_row + shard.rows - 1) // 2 + 1)
        for group in set(range(metadata.num_row_groups)) - set(mine):
            for column in (metadata.row_group(group).column(number) for number in range(metadata.num_columns)):
                start = column.dictionary_page_offset or column.data_page_offset
                data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        spoilt = tmp_path / "spoilt.parquet"
        spoilt.write_bytes(data)
        arguments = shard_arguments(whole, tmp_path / "planned", shard.shard, clips=2)
        shard_audio.main([*arguments, "--catalog", str(spoilt)])
        with pytest.raises(PipelineError, match=r"spoilt\.parquet: cannot be read"):
            read_catalog(spoilt)
    assert contents(tmp_path / "out") == contents(tmp_path / "planned")


def test_a_catalog_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    catalog = make_catalog(write_folder(tmp_path), tmp_path / "catalog.parquet")
    arguments = shard_arguments(catalog, tmp_path / "out")
    plan = plan_path(catalog).read_bytes()
    make_catalog(write_folder(tmp_path, captions=1), catalog)
    plan_path(catalog).write_bytes(plan)
    with pytest.raises(PipelineError, match=r"catalog\.parquet: the rows of shard 00000 differ from the plan"):
        shard_audio.main(arguments)


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_equal_samples_have_equal_checksums_whatever_file_they_came_from(tmp_path: Path, audio_format: str) -> None:
    samples = np.random.default_rng(0).integers(-9_000, 9_000, RATE).astype(np.int16)
    for name in ("a.wav", "b.flac", "c.aiff"):
        write_audio(tmp_path / "train" / name, samples)
    write_audio(tmp_path / "train" / "stereo.wav", np.stack([samples, samples], axis=1))
    write_audio(tmp_path / "train" / "wide.wav", samples, format="WAVEX", subtype="PCM_16")
    tar = shard_of(tmp_path, tmp_path / "out", labeled=False, audio_format=audio_format)
    checksums = read_rows(tar.with_suffix(".parquet"))[0]["sha256"].to_pylist()
    assert len(checksums) == 5 and len(set(checksums)) == 1


def test_a_shard_without_usable_clips_is_an_empty_tar(tmp_path: Path) -> None:
    for clip in range(2):
        write_audio(tmp_path / "train" / f"{clip}.wav", np.zeros(RATE))
    tar = shard_of(tmp_path, tmp_path / "out", labeled=False)
    rows, facts = read_rows(tar.with_suffix(".parquet"))
    assert (members(tar), facts.clips, rows["reason"].to_pylist()) == ({}, 0, ["silent", "silent"])


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_file_that_went_away_fails_the_shard_instead_of_dropping_the_clip(tmp_path: Path) -> None:
    catalog = make_catalog(write_folder(tmp_path), tmp_path / "catalog.parquet")
    (tmp_path / "train" / "clip 0.wav").unlink()
    with pytest.raises(PipelineError, match=r"clip 0.wav: cannot be opened \(No such file.*delete the catalog"):
        shard_audio.main(shard_arguments(catalog, tmp_path / "out", clips=99))


def test_a_failure_midway_leaves_no_new_file_and_no_rows_beside_an_old_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = make_catalog(write_folder(tmp_path), tmp_path / "catalog.parquet")
    shard_audio.main(shard_arguments(catalog, tmp_path / "out", rate=8_000))
    tar = (tmp_path / "out" / "00000.tar").read_bytes()
    shutil.rmtree(tmp_path / "out" / "parts")  # as Snakemake does before it makes a part again
    read, count = writer.read_recording, iter(range(9))

    def fail_at_third(*args: object, **settings: object) -> audio.Recording:
        if next(count) == 2:
            raise KeyboardInterrupt
        return read(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "read_recording", fail_at_third)
    for folder in ("out", "fresh"):
        count = iter(range(9))
        with pytest.raises(KeyboardInterrupt):
            shard_audio.main(shard_arguments(catalog, tmp_path / folder))
    assert list((tmp_path / "fresh").iterdir()) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]
    assert (tmp_path / "out" / "00000.tar").read_bytes() == tar


def test_a_killed_shard_leaves_nothing_and_can_be_made_again(tmp_path: Path) -> None:
    catalog = make_catalog(write_folder(tmp_path), tmp_path / "catalog.parquet")
    shard_audio.main(shard_arguments(catalog, tmp_path / "unbroken"))
    last = tmp_path / "train" / read_rows(tmp_path / "unbroken/00000.parquet")[0]["source_name"][2].as_py()
    shutil.copy2(last, tmp_path / "kept.wav")
    with last.open("r+b") as file:  # ten hours of zeros: it is killed between its second and third clip
        file.seek(40)
        file.write((RATE * 2 * 36_000).to_bytes(4, "little"))
        file.truncate(44 + RATE * 2 * 36_000)
    command = [sys.executable, "-m", "pipeline.stages.shard_audio", *shard_arguments(catalog, tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not list((tmp_path / "out").glob(".*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        temporary = list((tmp_path / "out").glob(".*"))
        process.send_signal(signal.SIGKILL)
    assert temporary, "it was killed before it began"
    assert not (tmp_path / "out/00000.tar").exists()
    assert not (tmp_path / "out/00000.parquet").exists()
    shutil.copy2(tmp_path / "kept.wav", last)
    shard_audio.main(shard_arguments(catalog, tmp_path / "out"))
    for name in ("00000.tar", "00000.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


# --- parts -----------------------------------------------------------------------------------------------------------


def places(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each tar in a folder, which change when it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*.tar")}


def rewritten(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    """The tars that were written since."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Of seven clips, which at most two per shard make at least four shards."""
    return make_catalog(write_folder(tmp_path / "raw", clips=7), tmp_path / "catalog.parquet")


@pytest.fixture
def shards(catalog: Path, tmp_path: Path) -> Path:
    """The finished shards of that catalog."""
    shard_audio.main(part_arguments(catalog, tmp_path / "shards", clips=2))
    return tmp_path / "shards"


@pytest.mark.parametrize("jobs", [2, 3, 9])
def test_any_number_of_parts_gives_the_same_files(catalog: Path, shards: Path, tmp_path: Path, jobs: int) -> None:
    for part in range(jobs):
        shard_audio.main(part_arguments(catalog, tmp_path / "out", f"{part}-of-{jobs}", clips=2))
    assert contents(tmp_path / "out") == contents(shards)
    assert len(contents(shards)) == 2 * len(shard_names(catalog, 2)) >= 8


def test_another_number_of_parts_keeps_all_shards(catalog: Path, shards: Path) -> None:
    before = places(shards)
    for part in range(2):
        shard_audio.main(part_arguments(catalog, shards, f"{part}-of-2", clips=2))
    assert rewritten(before, places(shards)) == set()


def test_a_killed_part_goes_on_after_the_shards_that_it_had_finished(
    catalog: Path, shards: Path, tmp_path: Path
) -> None:
    names = shard_names(catalog, 2)
    raw = tmp_path / "raw" / "train" / read_rows(shards / f"{names[2]}.parquet")[0]["source_name"][0].as_py()
    raw.rename(tmp_path / "kept.wav")
    with raw.open("wb") as file:  # ten hours of zeros: it is killed in its third shard
        file.write((tmp_path / "kept.wav").read_bytes()[:40] + (RATE * 2 * 36_000).to_bytes(4, "little"))
        file.truncate(44 + RATE * 2 * 36_000)
    out = tmp_path / "out"
    arguments = part_arguments(catalog, out, clips=2)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.shard_audio", *arguments], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 30
        while not list(out.glob(f".{names[2]}.tar.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = places(out)
    assert before.keys() == {f"{name}.tar" for name in names[:2]}
    assert not (out / "parts").exists()
    raw.unlink()
    (tmp_path / "kept.wav").rename(raw)
    shard_audio.main(arguments)
    after = places(out)
    assert {name: after[name] for name in before} == before
    found, expected = contents(out), contents(shards)
    assert {name: found[name] for name in expected} == expected
    assert (out / "parts/0-of-1.json").read_bytes() == (shards / "parts/0-of-1.json").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [("--sample-rate-hz", "8000"), ("--format", "flac"), ("--channels", "first"), ("--min-duration-s", "0.3")],
    ids=lambda flags: flags[0],
)
def test_other_settings_make_all_shards_again(catalog: Path, shards: Path, flags: tuple[str, str]) -> None:
    before, arguments = places(shards), [*part_arguments(catalog, shards, clips=2), *flags]
    shard_audio.main(arguments)
    after = places(shards)
    assert rewritten(before, after) == before.keys()
    shard_audio.main(arguments)
    assert rewritten(after, places(shards)) == set()


DAMAGES = {
    "deleted": lambda tar: tar.unlink(),
    "cut": lambda tar: os.truncate(tar, tar.stat().st_size - 512),
    "replaced": lambda tar: tar.write_bytes(b"another file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_tar_is_made_again_and_no_other(catalog: Path, shards: Path, damage: str) -> None:
    whole, before = contents(shards), places(shards)
    tar = sorted(shards.glob("*.tar"))[1]
    DAMAGES[damage](tar)
    shard_audio.main(part_arguments(catalog, shards, clips=2))
    assert contents(shards) == whole
    assert rewritten(before, places(shards)) == {tar.name}


def test_a_part_records_the_checksums_of_its_tars(catalog: Path, shards: Path) -> None:
    record = read_json(shards / "parts/0-of-1.json")
    assert record == {
        "part": "0-of-1",
        "shards": {
            shard.shard: {
                "sha256": hashlib.sha256((shards / f"{shard.shard}.tar").read_bytes()).hexdigest(),
                "rows_digest": shard.digest,
            }
            for shard in read_assignment(catalog, 2)
        },
    }


def test_shards_of_an_earlier_version_are_kept(catalog: Path, shards: Path) -> None:
    for path in shards.glob("*.parquet"):
        table, _ = read_rows(path)
        facts = json.loads(table.schema.metadata[b"shard"])
        del facts["min_duration_s"], facts["version"]
        pq.write_table(table.replace_schema_metadata({"shard": json.dumps(facts)}), path)
    before = places(shards)
    shard_audio.main(part_arguments(catalog, shards, clips=2))
    assert rewritten(before, places(shards)) == set()


@pytest.fixture
def damaged(catalog: Path, tmp_path: Path) -> Iterator[Path]:
    """A tar with a wrong bit, of a split in a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "split"
        for part in range(2):
            shard_audio.main(part_arguments(catalog, out, f"{part}-of-2", clips=2))
        index_shards.main(index_arguments(catalog, out, 2))
        tar = out / f"{shard_names(catalog, 2)[0]}.tar"
        data = bytearray(tar.read_bytes())
        data[600] ^= 1
        tar.write_bytes(data)
        Path(folder).chmod(0o755)
        yield tar


def test_verification_has_a_damaged_tar_made_again(catalog: Path, damaged: Path) -> None:
    folder, before = damaged.parent, places(damaged.parent)
    with pytest.raises(PipelineError, match=r"SHA-256 .* expected; run the same Snakemake command again"):
        open_shards(folder, verify=True)
    assert not damaged.with_suffix(".parquet").exists()
    assert [path.name for path in (folder / "parts").glob("*.repairs")] == ["0-of-2.repairs"]
    shard_audio.main(part_arguments(catalog, folder, "0-of-2", clips=2))
    assert rewritten(before, places(folder)) == {damaged.name}
    open_shards(folder, verify=True)


def test_a_damaged_tar_in_a_folder_that_may_only_be_read_gives_a_message(damaged: Path) -> None:
    folder = damaged.parent
    before = contents(folder)
    for path in (folder, folder / "parts"):
        path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # nobody: root may write everywhere
    try:
        with pytest.raises(PipelineError, match=r"expected; delete it, and run the same .* --forcerun shard_audio"):
            open_shards(folder, verify=True)
    finally:
        os.seteuid(user)
        for path in (folder, folder / "parts"):
            path.chmod(0o755)
    assert contents(folder) == before
    assert len(list((folder / "parts").iterdir())) == 2


def test_the_command_works_and_refuses_in_one_line(tmp_path: Path) -> None:
    catalog = make_catalog(write_folder(tmp_path, clips=2), tmp_path / "catalog.parquet")
    finished = run_stage("shard_audio", shard_arguments(catalog, tmp_path / "out"))
    assert finished.returncode == 0, finished.stderr
    assert len(members(tmp_path / "out/00000.tar")) == 4
    arguments = part_arguments(catalog, tmp_path / "out")
    finished = run_stage("shard_audio", [*arguments, "--plan", tmp_path / "no.parquet"])
    assert_refused(finished, "shard_audio", "no.parquet: not found", "index_audio")
    finished = run_stage("shard_audio", [*arguments, "--part", "4-of-4"])
    assert_refused(finished, "shard_audio", "there is no part '4-of-4'; parts are 0-of-4, 1-of-4, ...")


def test_the_log_has_a_line_a_clip_whatever_its_file_is_called(tmp_path: Path) -> None:
    name = "rain\non a \x1b[31mroof.wav"
    write_csv(tmp_path / "train.csv", ["file_name", "caption_1"], [name, "rain on a roof"])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name).write_bytes(b"no audio")
    catalog = make_catalog(tmp_path, tmp_path / "catalog.parquet")
    finished = run_stage("shard_audio", shard_arguments(catalog, tmp_path / "out"))
    assert finished.returncode == 0, finished.stderr
    (told,) = [line for line in finished.stderr.splitlines() if "WARNING" in line]
    assert r"rain\non a \x1b[31mroof.wav cannot be decoded" in told


def test_the_energy_of_the_loudest_clip_is_exact():
    samples = np.full((1 << 22) + 3, -audio.FULL_SCALE, np.int16)
    samples[::2] = audio.FULL_SCALE - 1
    pairs = len(samples) // 2
    assert audio._energy(samples) == pairs * audio.FULL_SCALE**2 + (pairs + 1) * (audio.FULL_SCALE - 1) ** 2
