"""The reader gives any window of any clip, from any process, and refuses shards that are not whole."""

from __future__ import annotations

import gc
import io
import multiprocessing
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from audio_files import RATE, make_catalog, make_shards, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.parquet import write_parquet
from pipeline.data.shards import reader as shards
from pipeline.data.shards.format import MANIFEST_SCHEMA, read_manifest, rows_table
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_json

CLIPS = 7  # of 0.2, 0.4, ... 1.4 s, in shards of at most 3


@pytest.fixture(scope="module", params=["wav", "flac"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reader")
    catalog = make_catalog(write_folder(root / "raw", clips=CLIPS), root / "catalog.parquet")
    return make_shards(catalog, root / "shards", 3, audio_format=request.param)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """WAV shards that a test may damage; the second clip of the list is not audio."""
    write_folder(tmp_path / "raw", clips=CLIPS)
    (tmp_path / "raw/train/clip 1.wav").write_text("no audio")
    return make_shards(make_catalog(tmp_path / "raw", tmp_path / "catalog.parquet"), tmp_path / "shards", 3)


def whole_clips(folder: Path) -> dict[str, NDArray[np.int16]]:
    """Every clip decoded from its member, without the reader."""
    clips = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                if extension != "json":
                    data = tar.extractfile(member)
                    assert data is not None
                    clips[key], _ = soundfile.read(io.BytesIO(data.read()), dtype="int16")
    return clips


def tars(folder: Path) -> list[Path]:
    """The tars of a split in the order of their keys."""
    return [folder / shard["tar"] for shard in read_json(folder / "manifest.json")["shards"]]


def all_windows(reader: ShardReader, frames: int = 1_000) -> NDArray[np.int16]:
    return np.stack([reader.read_window(key, start, frames) for key in reader.keys for start in (0, 17, 2_000)])


def test_the_keys_are_those_of_the_tars_in_order(folder: Path) -> None:
    assert open_shards(folder).keys == list(whole_clips(folder)) == sorted(whole_clips(folder))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_window_equals_the_slice_of_the_decoded_member(folder: Path, data: st.DataObject) -> None:
    reader, clips = open_shards(folder), whole_clips(folder)
    key = data.draw(st.sampled_from(reader.keys))
    frames = data.draw(st.integers(1, len(clips[key])))
    start = data.draw(st.integers(0, len(clips[key]) - frames))
    window = reader.read_window(key, start, frames)
    assert window.dtype == np.int16
    assert window.flags.writeable
    assert np.array_equal(window, clips[key][start : start + frames])


def test_only_the_window_is_read(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, asked = open_shards(own_folder), []
    read = shards.os.preadv
    monkeypatch.setattr(
        shards.os, "preadv", lambda file, buffers, offset: asked.append(len(buffers[0])) or read(file, buffers, offset)
    )
    reader.read_window(reader.keys[-1], 100, 1_000)
    assert asked == [2_000]


def test_a_short_clip_is_repeated(folder: Path) -> None:
    reader = open_shards(folder)
    clips = whole_clips(folder)
    key = min(clips, key=lambda name: len(clips[name]))
    length = len(clips[key])
    assert length == RATE // 5
    expected = np.concatenate([clips[key], clips[key], clips[key][:77]])
    assert np.array_equal(reader.read_window(key, 0, 2 * length + 77), expected)
    assert np.array_equal(reader.read_window(key, 5, length + 10), expected[5 : length + 15])


def test_a_short_clip_is_padded_where_that_is_asked(folder: Path) -> None:
    reader, clips = open_shards(folder), whole_clips(folder)
    key = min(clips, key=lambda name: len(clips[name]))
    silence = np.zeros(77, np.int16)
    window = reader.read_window(key, 0, len(clips[key]) + 77, "pad")
    assert np.array_equal(window, np.concatenate([clips[key], silence]))
    reader.read_into(int(reader.rows_of(pa.array([key]))[0]), 0, window := np.full_like(window, 9), "pad")
    assert np.array_equal(window[-77:], silence)
    assert np.array_equal(reader.read_window(key, 3, 100, "pad"), clips[key][3:103]), "no shorter than the window"
    with pytest.raises(ValueError, match="short_clips 'zeros'; one of repeat, pad was expected"):
        reader.read_window(key, 0, len(clips[key]) + 1, "zeros")


def test_facts_of_clips_and_split(folder: Path) -> None:
    reader, clips = open_shards(folder), whole_clips(folder)
    assert (reader.dataset, reader.split, reader.sample_rate_hz, len(reader)) == ("sounds", "train", RATE, CLIPS)
    assert reader.manifest_sha256 == read_json(folder / "manifest.json")["manifest_sha256"]
    for key in reader.keys:
        number = len(clips[key]) // (RATE // 5) - 1
        assert reader.frames(key) == len(clips[key])
        assert reader.captions(key) == [f"noise {number}, told caption_{column}" for column in (1, 2)]


def test_a_window_beyond_the_clip_is_refused(folder: Path) -> None:
    reader = open_shards(folder)
    key = reader.keys[0]
    length = reader.frames(key)
    for start in (-1, 1, length):
        with pytest.raises(PipelineError, match=rf"{key} has {length} frames, asked for {start} to {start + length}"):
            reader.read_window(key, start, length)


def test_a_dropped_or_unknown_clip_is_refused_by_name(own_folder: Path) -> None:
    reader = open_shards(own_folder)
    rows = read_manifest(own_folder / "manifest.parquet").to_pylist()
    (dropped,) = (row["key"] for row in rows if row["status"] != "ok")
    assert len(reader) == CLIPS - 1
    for key in (dropped, "clotho_test_rain_01234567"):
        with pytest.raises(PipelineError, match=rf"shards: {key} is not among the \d+ usable clips"):
            reader.read_window(key, 0, 10)
        with pytest.raises(PipelineError, match=rf"shards: {key} is not among the \d+ usable clips"):
            reader.captions(key)


# --- processes and threads -------------------------------------------------------------------------------------------


def test_a_pickled_reader_reads_the_same(folder: Path) -> None:
    reader = open_shards(folder)
    expected = all_windows(reader)  # also opens the tars, whose descriptors must not travel
    assert np.array_equal(all_windows(pickle.loads(pickle.dumps(reader))), expected)


def _read_in_child(reader: ShardReader, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send_bytes(all_windows(reader).tobytes())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes_read_at_once_from_inherited_files(folder: Path) -> None:
    reader = open_shards(folder)
    expected = all_windows(reader).tobytes()
    context = multiprocessing.get_context("fork")
    children = []
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_read_in_child, args=(reader, sender))
        process.start()
        children.append((process, receiver))
    assert all(receiver.recv_bytes() == expected for _, receiver in children)
    for process, _ in children:
        process.join()
    assert all_windows(reader).tobytes() == expected, "the parent's files stay open"


def test_threads_read_at_once_while_files_are_closed_and_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every change of shard closes a file that others may be reading.
    monkeypatch.setattr(shards, "most_open_tars", lambda: 1)
    reader = open_shards(folder)
    expected = all_windows(reader)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: all_windows(reader), range(24)))
    assert all(np.array_equal(windows, expected) for windows in found)


def test_files_are_closed_with_the_reader(folder: Path) -> None:
    def open_tars() -> int:
        targets = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return sum(target.suffix == ".tar" for target in targets)

    before = open_tars()
    reader = open_shards(folder)
    assert open_tars() == before, "opening reads no audio"
    all_windows(reader)
    assert open_tars() == before + len(tars(folder)) > before + 1
    del reader
    assert open_tars() == before


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_truncated_or_missing_tar_is_found_at_opening(own_folder: Path) -> None:
    tar = tars(own_folder)[1]
    size = tar.stat().st_size
    with tar.open("rb+") as file:
        file.truncate(size - 10_240)
    with pytest.raises(PipelineError, match=rf"{tar.name}: {size - 10_240} bytes, {size} expected; run the same"):
        open_shards(own_folder)
    tar.unlink()
    with pytest.raises(PipelineError, match=rf"{tar.name}: not found"):
        open_shards(own_folder)


def test_verification_finds_a_flipped_bit(own_folder: Path) -> None:
    tar = tars(own_folder)[-1]
    data = bytearray(tar.read_bytes())
    data[1_000] ^= 1
    tar.write_bytes(data)
    open_shards(own_folder)
    with pytest.raises(PipelineError, match=rf"{tar.name}: SHA-256 [0-9a-f]{{64}}, [0-9a-f]{{64}} expected"):
        open_shards(own_folder, verify=True)


def test_whole_shards_pass_verification(folder: Path) -> None:
    assert len(open_shards(folder, verify=True)) == CLIPS


def test_a_manifest_of_other_shards_is_refused(own_folder: Path) -> None:
    manifest = read_manifest(own_folder / "manifest.parquet")
    write_parquet(manifest.slice(1), own_folder / "manifest.parquet")
    with pytest.raises(PipelineError, match=r"manifest.parquet: is damaged, or not the manifest that"):
        open_shards(own_folder)
    (own_folder / "manifest.json").unlink()
    with pytest.raises(PipelineError, match=r"manifest.json: not found; make it with .*index_shards"):
        open_shards(own_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"shards": 3}', "null"])
def test_a_damaged_summary_is_named(own_folder: Path, text: str) -> None:
    (own_folder / "manifest.json").write_text(text)
    with pytest.raises(PipelineError, match=r"manifest\.json: (is not JSON|holds a JSON|has no)"):
        open_shards(own_folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [("shard", "other"), ("pcm_offset", 1), ("pcm_offset", None), ("data_offset", 1 << 40), ("data_size", 0)]
    + [("frames", None), ("frames", 1 << 40)],
)
def test_a_manifest_that_its_tars_cannot_be_true_to_is_refused(own_folder: Path, column: str, value: object) -> None:
    """One whose checksum is right: whoever wrote it wrote it wrong."""
    manifest, summary = own_folder / "manifest.parquet", own_folder / "manifest.json"
    rows = read_manifest(manifest).to_pylist()
    usable = next(row for row in rows if row["status"] == "ok")
    usable[column] = value
    write_parquet(rows_table(rows), manifest)
    write_json(read_json(summary) | {"manifest_sha256": sha256_of(manifest)}, summary)
    with pytest.raises(PipelineError, match=rf"manifest\.parquet: {usable['key']} cannot lie where .*{column} {value}"):
        open_shards(own_folder)


def test_a_tar_cut_or_deleted_while_in_use_is_named(own_folder: Path) -> None:
    reader = open_shards(own_folder)
    tar = own_folder / "00000.tar"
    key = reader.keys[0]
    reader.read_window(key, 0, 100)
    with tar.open("rb+") as file:
        file.truncate(500)
    with pytest.raises(PipelineError, match=rf"00000.tar: asked for 200 bytes at \d+, found 0; .*\(asked for {key}\)"):
        reader.read_window(key, 0, 100)
    other = tars(own_folder)[-1]
    other.unlink()
    key = reader.keys[-1]
    with pytest.raises(
        PipelineError, match=rf"{other.name}: cannot be read any more \(No such file or directory\), asked for {key};"
    ):
        reader.read_window(key, 0, 100)


MEMORY = Path("/proc/self/mem")  # opens, and then fails to be read where nothing is mapped, as a failing disk does


@pytest.mark.skipif(not MEMORY.exists(), reason="Linux has a file whose reading fails")
def test_a_disk_that_fails_is_named_with_tar_clip_and_what_to_do(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "shards"))
    reader = open_shards(own)
    key, tar = reader.keys[0], own / "00000.tar"
    whole = tar.rename(tmp_path / "whole")
    tar.symlink_to(MEMORY)
    failure = rf"00000.tar: cannot be read any more \(Input/output error\), asked for {key}; check the disk"
    with pytest.raises(PipelineError, match=failure):
        reader.read_window(key, 0, 100)
    manifest = (own / "manifest.parquet").rename(tmp_path / "manifest")  # the same disk failing under both
    with pytest.raises(PipelineError, match=r"00000.tar: cannot be read any more \(Input/out.*, asked for clip 0;"):
        pickle.loads(pickle.dumps(reader)).read_into(0, 0, np.empty(100, np.int16))
    manifest.rename(own / "manifest.parquet")
    tar.unlink()
    whole.rename(tar)
    again = pickle.loads(pickle.dumps(reader))  # as another process opens it, which goes on from the checkpoint
    assert np.array_equal(all_windows(again), all_windows(open_shards(folder)))


def test_flac_with_a_wrong_bit_or_more_is_named(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "shards"))
    reader = open_shards(own)
    if reader.format == "wav":
        pytest.skip("PCM decodes whatever it holds")
    row = read_manifest(own / "manifest.parquet").to_pylist()[0]
    whole = (own / "00000.tar").read_bytes()
    first, end = row["data_offset"], row["data_offset"] + row["data_size"]
    middle = (first + end) // 2
    for damaged in (range(middle, middle + 1), range(middle, end), range(first, middle)):
        data = bytearray(whole)
        for place in damaged:
            data[place] ^= 1
        (own / "00000.tar").write_bytes(data)
        with pytest.raises(PipelineError, match=rf"00000.tar: {row['key']} cannot be decoded \(.*pipeline verify"):
            reader.read_clip(0)


# --- scale -----------------------------------------------------------------------------------------------------------


def large_split(folder: Path, clips: int, count: int) -> Path:
    """A split of many clips of 100 samples in many tars that share one file: links, so that only the index is large."""
    audio = np.arange(100, dtype="<i2")
    (folder / "data").write_bytes(bytes(556) + audio.tobytes())
    names = [f"sounds_train_{number:05d}_00000000" for number in range(count)]
    for name in names:
        (folder / f"{name}.tar").hardlink_to(folder / "data")
    null = pa.nulls(clips, pa.string())
    columns = {
        "key": [f"sounds_train_some_longer_name_{row:010d}_{row % 2**32:08x}" for row in range(clips)],
        **{name: ["x"] * clips for name in ("dataset", "split", "source_name")},
        "status": ["ok"] * clips,
        "captions": pa.array([[]] * clips, pa.list_(pa.string())),
        "shard": [names[row * count // clips] for row in range(clips)],
        "data_offset": [512] * clips,
        "data_size": [244] * clips,
        "pcm_offset": [556] * clips,
        "frames": [100] * clips,
    }
    schema = MANIFEST_SCHEMA
    table = pa.table(
        [pa.array(columns[name], type_) if name in columns else null.cast(type_)
         for name, type_ in zip(schema.names, schema.types, strict=True)], schema=schema.empty_table().schema,
    )  # fmt: skip
    write_parquet(table, folder / "manifest.parquet")
    size = (folder / "data").stat().st_size
    summary = {"dataset": "sounds", "split": "train", "format": "wav", "sample_rate_hz": RATE, "rows": clips}
    summary |= {"clips": clips, "duration_s": clips * 100 / RATE, "status": {"ok": clips}, "reason": {}}
    summary["manifest_sha256"] = sha256_of(folder / "manifest.parquet")
    summary["shards"] = [
        {"shard": name, "tar": f"{name}.tar", "bytes": size, "sha256": "", "clips": 1} for name in names
    ]
    write_json(summary, folder / "manifest.json")
    return folder


def test_more_tars_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    folder = large_split(tmp_path, 200, 100)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import pipeline
split = pipeline.open_split({str(folder)!r})
print(sum(len(split.read(key)) for key in split.keys))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert finished.returncode == 0, finished.stderr
    split = open_shards(folder)
    assert int(finished.stdout) == sum(split.frames(key) for key in split.keys) > 0


def test_too_few_files_is_not_taken_for_a_broken_disk(folder: Path) -> None:
    split, limits = open_shards(folder), resource.getrlimit(resource.RLIMIT_NOFILE)
    key = split.keys[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(PipelineError, match=r"tar: cannot be read \(Too many open files\); raise the limit"):
            split.read(key)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_reader_holds_numbers_of_a_clip_and_a_bounded_number_of_open_tars(tmp_path: Path) -> None:
    """30 bytes a clip, none of them Python objects; reading from every tar leaves as many open as from 128."""
    clips, count = 20_000, 600
    folder = large_split(tmp_path, clips, count)
    open_shards(folder)  # what is imported and cached once does not count
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    reader = open_shards(folder)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 64 * clips + 200 * count
    assert len(gc.get_objects()) - objects < 200
    assert len(pickle.dumps(reader)) < 64 * clips + 200 * count
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    window = np.empty(50, np.int16)
    for row in range(0, clips, 20):
        reader.read_into(row, 7, window)
    assert window[0] == 7
    assert len(list(Path("/proc/self/fd").iterdir())) - descriptors <= shards.most_open_tars()
    assert "keys" not in vars(reader), "no read has listed the keys"
    assert reader.rows_of(pa.array([reader.keys[77], "another", reader.keys[0]])).tolist() == [77, -1, 0]
