"""Parquet mirrors and WebDataset tars are read where they lie: every row accounted for, no byte read in vain."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, make_catalog, make_shards, noise, shard_arguments, write_audio, write_csv, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.adapters import ADAPTERS, SourceRow
from pipeline.data.catalogs import catalog_of, read_catalog
from pipeline.data.containers import Members
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_rows
from pipeline.data.shards.partition import read_assignment
from pipeline.errors import PipelineError
from pipeline.stages import shard_audio

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(samples: NDArray[Any], kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=kind)
    return buffer.getvalue()


def read(adapter: str, root: Path, split: str) -> list[SourceRow]:
    return list(ADAPTERS[adapter](root, split))


def write_rows(path: Path, rows: Sequence[dict[str, Any]], group: int = 2, **types: pa.DataType) -> Path:
    """A Parquet file as `datasets` writes it; types: of the columns that inference would get wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inferred = pa.Table.from_pylist(list(rows)).schema
    fields = [(name, types.get(name, AUDIO if name == "audio" else inferred.field(name).type)) for name in rows[0]]
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(fields)), path, row_group_size=group)
    return path


def audiocaps_mirror(root: Path, clips: int = 5, captions: int = 2, files: int = 2) -> Path:
    """The columns and file names of OpenSound/AudioCaps: a row a caption, the audio repeated in each."""
    rows = [
        {
            "youtube_id": f"-{clip:09d}_",
            "audiocap_id": 100 * caption + clip,
            "start_time": 30 * clip,
            "audio": {"bytes": encoded(noise(0.2 + 0.1 * clip, seed=clip)), "path": f"-{clip:09d}_.flac"},
            "audio_length": 1,
            "caption": f"noise {clip}, told {caption}",
        }
        for clip in range(clips)
        for caption in range(captions)
    ]
    each = -(-len(rows) // files)
    for file in range(files):
        write_rows(root / "data" / f"test-{file:05d}-of-{files:05d}.parquet", rows[file * each : (file + 1) * each])
    return root


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def catalog_file(root: Path, adapter: str, split: str, path: Path, *, labeled: bool = True) -> Path:
    catalog, _ = catalog_of(ADAPTERS[adapter](root, split), dataset="sounds", split=split, labeled=labeled)
    write_parquet(catalog, path)
    return path


def samples_of(folder: Path) -> dict[str, tuple[bytes, list[str]]]:
    """Audio and captions of every clip in a folder's tars, by their captions."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, data in files.items():
            if name.endswith(".json"):
                captions = json.loads(data)["captions"]
                found[" ".join(captions)] = files[name.removesuffix("json") + "wav"], captions
    return found


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_rows_of_one_audiocaps_clip_are_its_captions(tmp_path: Path) -> None:
    rows = read("parquet", audiocaps_mirror(tmp_path), "test")
    assert [row.captions for row in rows] == [tuple(f"noise {clip}, told {k}" for k in (0, 1)) for clip in range(5)]
    assert [(row.source_id, row.start_s, row.reason) for row in rows] == [
        (f"-{clip:09d}_", 30.0 * clip, None) for clip in range(5)
    ]
    assert rows[0].source_name == "data/test-00000-of-00002 000000 -000000000__0"
    assert rows[3].member == "audio.bytes[1]"  # its file begins with the second caption of the third clip
    assert rows[3].path == (tmp_path / "data/test-00001-of-00002.parquet").as_posix()


def test_a_mirror_gives_the_audio_and_captions_of_the_same_files(tmp_path: Path) -> None:
    audiocaps_mirror(tmp_path / "mirror")
    for clip in range(5):
        samples = noise(0.2 + 0.1 * clip, seed=clip)
        write_audio(tmp_path / f"files/test/-{clip:09d}__{30 * clip}.flac", samples)
    listed = [
        [100 * caption + clip, f"-{clip:09d}_", 30 * clip, f"noise {clip}, told {caption}"]
        for clip in range(5)
        for caption in range(2)
    ]
    write_csv(tmp_path / "files/test.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], *listed)
    found = []
    for adapter, root in (("parquet", "mirror"), ("audiocaps", "files")):
        catalog = catalog_file(tmp_path / root, adapter, "test", tmp_path / adapter / "catalog.parquet")
        found.append(samples_of(make_shards(catalog, tmp_path / adapter, 2)))
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_audioset_mirrors_give_ids_and_no_captions(tmp_path: Path) -> None:
    rows = [
        {
            "video_id": video,
            "audio": {"bytes": encoded(noise(0.3, seed=1)), "path": f"{video}.flac"},
            "labels": ["/m/09x0r"],
            "human_labels": ["Speech"],
        }
        for video in ("--PJHxphWEs", "-0p7hKXZ1ww", "--PJHxphWEs")
    ]
    write_rows(tmp_path / "data/bal_train/00.parquet", rows)
    write_rows(tmp_path / "data/eval/00.parquet", rows[:1])
    found = read("parquet", tmp_path, "bal_train")
    assert [(row.source_id, row.captions, row.reason) for row in found] == [
        ("--PJHxphWEs", (), None),
        ("-0p7hKXZ1ww", (), None),
        ("--PJHxphWEs", (), "duplicate"),
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"caption_2": "two", "caption_1": "one", "text": "other"}, ("one", "two")),
        ({"captions": ["one", None, " ", "two"]}, ("one", "two")),
        ({"text": "one"}, ("one",)),
        ({"label": "one"}, ()),
        ({"caption": None}, ()),
    ],
)
def test_captions_stand_in_any_known_column(tmp_path: Path, columns: dict[str, Any], expected: tuple[str, ...]) -> None:
    write_rows(tmp_path / "train.parquet", [{"audio": {"bytes": b"x", "path": None}, **columns}])
    assert [row.captions for row in read("parquet", tmp_path, "train")] == [expected]


def test_a_row_that_repeats_a_caption_is_a_duplicate_and_without_ids_none_is(tmp_path: Path) -> None:
    audio = {"bytes": b"x", "path": None}
    captions = ["a", "b", "a", None]
    rows = [{"file_name": "x.wav", "caption": caption, "audio": audio} for caption in captions]
    write_rows(tmp_path / "named/train.parquet", rows)
    write_rows(tmp_path / "bare/train.parquet", [{"caption": caption, "audio": audio} for caption in captions])
    named, bare = (read("parquet", tmp_path / name, "train") for name in ("named", "bare"))
    assert [(row.captions, row.reason) for row in named] == [
        (("a", "b"), None),
        (("a",), "duplicate"),
        ((), "duplicate"),
    ]
    assert [(row.captions, row.reason) for row in bare] == [(("a",), None), (("b",), None), (("a",), None), ((), None)]


def test_audio_columns_are_found_by_type(tmp_path: Path) -> None:
    write_rows(tmp_path / "a/train.parquet", [{"sound": b"x", "caption": "one"}])
    write_rows(tmp_path / "b/train.parquet", [{"cover": b"x", "flac": b"y"}])
    assert read("parquet", tmp_path / "a", "train")[0].member == "sound[0]"
    assert read("parquet", tmp_path / "b", "train")[0].member == "flac[0]"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"caption": "one", "audio": "a.wav"},
            r"no column of audio; found caption \(string\), audio \(string\); expected",
        ),
        ({"one": b"x", "two": b"y"}, r"more than one column of audio; found one \(binary\), two \(binary\); expected"),
        ({"audio": b"x", "caption": 7}, r"column caption holds int64; captions are text or lists of text"),
        ({"audio": b"x", "ytid": "a", "start_s": "0:30"}, r'x/train.parquet row 0: start time "0:30" is not a number'),
        ({"audio": b"x", "ytid": "a", "start_s": float("nan")}, r'row 0: start time "nan" is not a number'),
    ],
)
def test_columns_that_cannot_be_meant_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    types = {"audio": pa.array([row["audio"]]).type} if "audio" in row else {}
    write_rows(tmp_path / "x/train.parquet", [row], **types)
    with pytest.raises(PipelineError, match=message):
        read("parquet", tmp_path, "train")


def test_rows_without_audio_end_with_a_reason(tmp_path: Path) -> None:
    good = encoded(noise(0.3, seed=0))
    values = [{"bytes": good, "path": "a"}, None, {"bytes": None, "path": "b"}, {"bytes": b"", "path": "c"},
              {"bytes": b"no audio", "path": "d"}, {"bytes": good[: len(good) // 2], "path": "e"}]  # fmt: skip
    write_rows(tmp_path / "train.parquet", [{"audio": value} for value in values])
    catalog = catalog_file(tmp_path, "parquet", "train", tmp_path / "catalog.parquet", labeled=False)
    shard_audio.main(shard_arguments(catalog, tmp_path / "out", clips=9))
    rows = read_rows(tmp_path / "out/00000.parquet")[0].to_pylist()
    reasons = [None, "missing_file", "missing_file", "empty", "undecodable", "undecodable"]
    assert [row["reason"] for row in rows] == reasons


def test_each_row_group_is_read_once_a_shard_and_shards_follow_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"audio": {"bytes": encoded(noise(0.11, seed=row)), "path": None}} for row in range(24)]
    for file in range(2):
        write_rows(tmp_path / f"train-{file:05d}-of-00002.parquet", rows[12 * file : 12 * file + 12], group=3)
    catalog = catalog_file(tmp_path, "parquet", "train", tmp_path / "catalog.parquet", labeled=False)
    groups: list[tuple[str, int]] = []

    class Counting(pq.ParquetFile):
        def __init__(self, path: str, **options: Any) -> None:
            super().__init__(path, **options)
            self.path = str(path)

        def iter_batches(self, *arguments: Any, row_groups: list[int] | None = None, **options: Any) -> Any:
            if self.path != str(catalog):
                assert row_groups is not None, f"{self.path} was read from its beginning"
                groups.extend((self.path, group) for group in row_groups)
            return super().iter_batches(*arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    for shard in read_assignment(catalog, 6):
        groups.clear()
        shard_audio.main(shard_arguments(catalog, tmp_path / "out", shard.shard, clips=6))
        rows_of_shard = range(shard.first_row, shard.first_row + shard.rows)  # 12 a file, 3 a group
        places = {(str(tmp_path / f"train-{row // 12:05d}-of-00002.parquet"), row % 12 // 3) for row in rows_of_shard}
        assert sorted(groups) == sorted(places)


def test_rows_in_any_order_are_read_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(
        tmp_path / "x.parquet", [{"audio": {"bytes": b"%d" % row, "path": None}} for row in range(90)], 40
    )
    wanted = [int(row) for row in np.random.default_rng(0).permutation(90)[:50]]
    with (tmp_path / "spool").open("w+b") as spool:
        members = Members([(str(path), f"audio.bytes[{row}]") for row in wanted], spool)
        assert [members.read(str(path), f"audio.bytes[{row}]") for row in wanted] == [b"%d" % row for row in wanted]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts read bytes as Linux does")
def test_only_the_bytes_that_are_needed_are_read(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    random = np.random.default_rng(0)
    audio = [{"bytes": random.bytes(100_000), "path": None} for _ in range(40)]
    path = write_rows(
        tmp_path / "train.parquet", [{"audio": value, "video": random.bytes(100_000)} for value in audio], group=4
    )
    before = bytes_read()
    assert len(read("parquet", tmp_path, "train")) == 40
    assert bytes_read() - before < 200_000, "the catalog needs none of eight million bytes"
    before = bytes_read()
    with (tmp_path / "spool").open("w+b") as spool:
        Members([(str(path), f"audio.bytes[{row}]") for row in (5, 7, 4)], spool)
    assert bytes_read() - before < 700_000, "one row group of the audio"


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test", [1]),
        (["balanced/train/0000.parquet", "balanced/test/0000.parquet"], "train", [0]),
        (["train.parquet", "train_2.parquet", "training.parquet", "pretrain-0.parquet"], "train", [0, 1]),
        (["bal_train/a/1.PARQUET", "bal_train/b/1.parquet", ".cache/bal_train/x.parquet"], "bal_train", [0, 1]),
    ],
)
def test_the_files_of_a_split_are_found_by_folder_or_name(
    tmp_path: Path, names: list[str], split: str, expected: list[int]
) -> None:
    for name in names:
        write_rows(tmp_path / name, [{"audio": {"bytes": b"x", "path": None}}])
    found = [row.path for row in read("parquet", tmp_path, split)]
    assert found == [(tmp_path / names[index]).as_posix() for index in expected]


def test_a_split_in_two_configurations_or_in_none_is_refused(tmp_path: Path) -> None:
    for name in ("balanced/train/0.parquet", "full/train/0.parquet"):
        write_rows(tmp_path / name, [{"audio": {"bytes": b"x", "path": None}}])
    with pytest.raises(PipelineError, match=r"in several places: balanced/train/, full/train/; set the dataset's root"):
        read("parquet", tmp_path, "train")
    with pytest.raises(
        PipelineError, match=r"no .parquet files of the split eval; .* found balanced/train/0.parquet, "
    ):
        read("parquet", tmp_path, "eval")
    with pytest.raises(PipelineError, match=r"no .tar files of the split train; .* found none at all"):
        read("webdataset", tmp_path, "train")


def test_parts_that_were_not_fetched_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path / "train-00001-of-00004.parquet", [{"audio": {"bytes": b"x", "path": None}}])
    read("parquet", tmp_path, "train")
    assert any("3 of 4 parts are not there, the first is number 0" in message for message in caplog.messages)


def ids_again(root: Path, column: str = "id", ids: Sequence[Sequence[Any]] = ((0, 1), (0, 1))) -> list[SourceRow]:
    """What is read from files whose rows have these ids, each row with audio and a caption of its own."""
    for part, numbers in enumerate(ids):
        rows = [
            {column: number, "audio": {"bytes": b"%d %d" % (part, row), "path": None}, "caption": f"{part} {row}"}
            for row, number in enumerate(numbers)
        ]
        write_rows(root / f"train-{part:05d}-of-{len(ids):05d}.parquet", rows)
    return read("parquet", root, "train")


@pytest.mark.parametrize("column", ["id", "file_name", "fname", "video_id"])
def test_ids_that_begin_again_in_every_file_are_other_clips(tmp_path: Path, column: str) -> None:
    rows = ids_again(tmp_path, column)
    assert [row.captions for row in rows] == [("0 0",), ("0 1",), ("1 0",), ("1 1",)]
    assert [(Path(row.path or "").name[:11], row.member) for row in rows] == [
        (f"train-{part:05d}", f"audio.bytes[{row}]") for part in range(2) for row in range(2)
    ]


def test_ids_that_repeat_inside_a_file_are_other_clips_unless_the_audio_is_the_same(tmp_path: Path) -> None:
    audio = [b"x", b"y", b"x", None, b"z", b"y"]
    rows = [{"id": 7, "audio": {"bytes": data, "path": None}, "caption": f"{n}"} for n, data in enumerate(audio)]
    write_rows(tmp_path / "train.parquet", rows)
    found = read("parquet", tmp_path, "train")
    assert [(row.captions, row.reason) for row in found] == [
        (("0", "2", "3"), None),  # a row without audio adds its caption to the first clip
        (("1", "5"), None),
        (("4",), None),
    ]


def test_keys_stay_where_ids_do_not_repeat(tmp_path: Path) -> None:
    names = [row.source_name for row in ids_again(tmp_path, ids=((0, 1), (2, 1)))]
    assert names == [f"train-{part:05d}-of-00002 {row:06d} {2 * (part > row) + row}" for part, row in
                     ((0, 0), (0, 1), (1, 0))] + ["train-00001-of-00002 000001 1"]  # fmt: skip


def test_dotted_columns_are_read_as_those_of_a_struct(tmp_path: Path) -> None:
    audio = [encoded(noise(0.2, seed=seed)) for seed in range(3)]
    rows = [{"audio.bytes": data, "audio.path": f"x/{n}.flac", "caption": f"noise {n}"} for n, data in enumerate(audio)]
    write_rows(tmp_path / "train.parquet", rows)
    found = read("parquet", tmp_path, "train")
    assert [row.source_name for row in found] == [f"train 00000{n} {n}.flac" for n in range(3)]
    with (tmp_path / "spool").open("w+b") as spool:
        members = Members([(row.path or "", row.member or "") for row in found], spool)
        assert [members.read(row.path or "", row.member or "") for row in found] == audio


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int32(), pa.string()),
        pa.large_string(),
        pa.string_view(),
        pa.list_(pa.string(), 1),
        pa.list_(pa.string()),
        pa.large_list(pa.string()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
@pytest.mark.parametrize("audio", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_columns_of_pandas_and_polars_are_read(tmp_path: Path, kind: pa.DataType, audio: pa.DataType) -> None:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    captions = [["dog"], ["cat"]] if is_list else ["dog", "cat"]
    plain = pa.list_(pa.string()) if is_list else pa.string()
    columns = [pa.array([b"x", b"y"], pa.binary()).cast(audio)]
    columns.append(pa.array(captions, kind) if "dictionary" not in str(kind) or not is_list else
                   pa.ListArray.from_arrays([0, 1, 2], pa.array(["dog", "cat"]).dictionary_encode()))  # fmt: skip
    assert columns[1].to_pylist() == pa.array(captions, plain).to_pylist()
    pq.write_table(pa.table(columns, ["audio", "caption"]), tmp_path / "train.parquet")
    found = read("parquet", tmp_path, "train")
    assert [row.captions for row in found] == [("dog",), ("cat",)]
    with (tmp_path / "spool").open("w+b") as spool:
        members = Members([(row.path or "", row.member or "") for row in found], spool)
        assert [members.read(row.path or "", row.member or "") for row in found] == [b"x", b"y"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array([b"x"]), pa.array(["dog"]), pa.array(["cat"])]
    pq.write_table(pa.table(columns, ["audio", "caption", "caption"]), tmp_path / "train.parquet")
    with pytest.raises(PipelineError, match=r"train.parquet: two columns are named caption"):
        read("parquet", tmp_path, "train")


def test_links_to_the_files_of_a_split_are_no_second_place(tmp_path: Path) -> None:
    write_rows(tmp_path / "data/train-00000-of-00001.parquet", [{"audio": {"bytes": b"x", "path": None}}])
    (tmp_path / "latest").symlink_to(tmp_path / "data")
    assert [row.path for row in read("parquet", tmp_path, "train")] == [
        (tmp_path / "data/train-00000-of-00001.parquet").as_posix()
    ]


@pytest.mark.parametrize(("adapter", "extension"), [("parquet", "parquet"), ("webdataset", "tar")])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone"), os.mkfifo], ids=["broken link", "named pipe"])
def test_a_container_that_is_no_file_is_refused(tmp_path: Path, adapter: str, extension: str, make: Any) -> None:
    make(tmp_path / f"train.{extension}")
    with pytest.raises(PipelineError, match=rf"train.{extension}: is no file, or a link that leads nowhere"):
        read(adapter, tmp_path, "train")


# --- WebDataset ------------------------------------------------------------------------------------------------------


def test_tars_give_captions_of_json_or_text(tmp_path: Path) -> None:
    audio = encoded(noise(0.2, seed=0))
    laion = {"text": ["one", "two"], "tag": ["x"], "original_data": {"title": "t"}}
    write_tar(
        tmp_path / "train/name0.tar",
        ("1.flac", audio),
        ("1.json", json.dumps(laion).encode()),
        ("2.json", json.dumps({"text": "only", "youtube_id": "abc", "start_time": 3}).encode()),
        ("2.flac", audio),
        ("3.ogg", audio),
        ("3.txt", b"\xef\xbb\xbf plain\n text "),
        ("4.wav", audio),
        ("sub/v1.2 x.mp3", audio),
        ("sub/v1.2 x.json", b'{"caption": "dotted"}'),
        ("5.opus", audio), ("5.wav", audio), ("6.json", b'{"text": "gone"}'), (".hidden.wav", audio), ("7.png", b"x"),
    )  # fmt: skip
    rows = read("webdataset", tmp_path, "train")
    assert {row.source_name.removeprefix("train/name0/"): (row.captions, row.reason) for row in rows} == {
        "1": (("one", "two"), None),
        "2": (("only",), None),
        "3": (("plain text",), None),
        "4": ((), None),
        "sub/v1.2 x": (("dotted",), None),
        "5": ((), "ambiguous_file"),
        "6": (("gone",), "missing_file"),
    }
    assert (rows[1].source_id, rows[1].start_s) == ("abc", 3.0)
    assert rows[0].path == (tmp_path / "train/name0.tar").as_posix()


def test_the_projects_own_shards_can_be_read_again(tmp_path: Path) -> None:
    catalog = make_catalog(write_folder(tmp_path / "raw"), tmp_path / "catalog.parquet")
    first = make_shards(catalog, tmp_path / "results/train", 2)
    again = catalog_file(tmp_path / "results", "webdataset", "train", tmp_path / "again.parquet")
    assert read_catalog(again)["source_id"].null_count == len(read_catalog(again)) == 5
    assert samples_of(make_shards(again, tmp_path / "again", 2)) == samples_of(first)


def test_names_that_lead_out_of_a_tar_become_clips_in_the_shards(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    stems = ["../up", "../../../far", f"{tmp_path}/absolute", "a/../../b", "-x$(touch y)"]
    audio = {stem: encoded(noise(0.2, seed)) for seed, stem in enumerate(stems)}
    texts = [(f"{stem}.txt", f"clip {number}".encode()) for number, stem in enumerate(stems)]
    write_tar(raw / "train.tar", *((f"{stem}.wav", data) for stem, data in audio.items()), *texts)
    rows = read("webdataset", raw, "train")
    assert audio_of(rows, raw) == audio

    shards = make_shards(catalog_file(raw, "webdataset", "train", tmp_path / "catalog.parquet"), tmp_path / "shards")
    assert sorted(samples_of(shards)) == [f"clip {number}" for number in range(len(stems))]
    names = []
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert all(re.fullmatch(r"\w+\.(wav|json)", name) for name in names), names
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "catalog.parquet", "catalog.shards.parquet", "shards"}


def test_keys_may_repeat_between_tars(tmp_path: Path) -> None:
    for tar in range(2):
        write_tar(tmp_path / f"train-{tar:06d}.tar", *((f"{key}.wav", b"x") for key in range(3)))
    rows = read("webdataset", tmp_path, "train")
    assert [row.source_name for row in rows] == [f"train-{tar:06d}/{key}" for tar in range(2) for key in range(3)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.json", b"{", r"train.tar: 1.json is not JSON"),
        ("1.json", b"[" * 100_000, r"train.tar: 1.json is not JSON"),
        ("1.json", b'{"text": "\\ud800"}', r"train.tar: 1.json is not JSON .*surrogates"),
        ("caf\udce9.json", b"{}", r"train.tar: the member name 'caf.udce9.json' is not UTF-8"),
        ("1.json", b'{"text": "a", "text": "b"}', r"train.tar: 1.json is not JSON \(the key text has two values\)"),
        ("1.json", b'["one"]', r"train.tar: 1.json holds no JSON object but list"),
        ("1.json", b'{"text": {"en": "one"}}', r"train.tar 1: captions are text or a list of text, found .*'en'"),
        ("1.json", b'{"ytid": "a", "start_s": "0:30"}', r'train.tar 1.*start time "0:30"'),
    ],
)
def test_json_that_tells_no_clip_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write_tar(tmp_path / "train.tar", ("1.wav", b"x"), (name, data))
    with pytest.raises(PipelineError, match=message):
        read("webdataset", tmp_path, "train")


def audio_of(rows: Sequence[SourceRow], folder: Path) -> dict[str, bytes | str | None]:
    """The bytes of every row's audio, or the reason why there are none, by the end of its name."""
    with (folder / "spool").open("w+b") as spool:
        members = Members([], spool)
        return {
            row.source_name.removeprefix("train/"): row.reason or members.read(row.path or "", row.member or "")
            for row in rows
        }


def add_member(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, to: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(data), kind, to
    tar.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_type_of_member_is_read_or_counted(tmp_path: Path, layout: int) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=layout) as tar:
        add_member(tar, "early.wav", kind=tarfile.SYMTYPE, to="sub/../a.wav")
        add_member(tar, "./a.wav", b"sound a")
        add_member(tar, "hard.wav", kind=tarfile.LNKTYPE, to="a.wav")
        add_member(tar, "sub/soft.wav", kind=tarfile.SYMTYPE, to="../a.wav")
        add_member(tar, "twice.wav", kind=tarfile.SYMTYPE, to="hard.wav")
        add_member(tar, "store/0815", b"sound b")
        add_member(tar, "b.flac", kind=tarfile.SYMTYPE, to="store/0815")
        add_member(tar, "circle.wav", kind=tarfile.SYMTYPE, to="circle.wav")
        add_member(tar, "outside.wav", kind=tarfile.SYMTYPE, to="/etc/passwd")
        add_member(tar, "above.wav", kind=tarfile.LNKTYPE, to="../../a.wav")
        add_member(tar, "pipe.wav", kind=tarfile.FIFOTYPE)
        add_member(tar, "device.wav", kind=tarfile.CHRTYPE)
        add_member(tar, "folder.wav", kind=tarfile.DIRTYPE)
        add_member(tar, "contiguous.wav", b"sound c", kind=tarfile.CONTTYPE)
        add_member(tar, "unknown.wav", b"sound d", kind=b"Z")  # tar reads unknown types as files
        add_member(tar, "rest.wav", b"of a file in another tar", kind=b"M")
        add_member(tar, "last.wav", b"sound e")
    rows = read("webdataset", tmp_path, "train")
    assert audio_of(rows, tmp_path) == {
        "early": b"sound a", "./a": b"sound a", "hard": b"sound a", "sub/soft": b"sound a", "twice": b"sound a",
        "b": b"sound b", "contiguous": b"sound c", "unknown": b"sound d", "last": b"sound e", "circle": "missing_file",
        "outside": "missing_file", "above": "missing_file", "pipe": "missing_file", "device": "missing_file",
        "rest": "missing_file",
    }  # fmt: skip


def test_a_linked_text_is_that_of_its_target(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add_member(tar, "a.wav", b"x")
        add_member(tar, "a.json", b'{"text": "dog", "youtube_id": "abc"}')
        add_member(tar, "b.wav", b"y")
        add_member(tar, "b.json", kind=tarfile.LNKTYPE, to="a.json")
    assert [(row.captions, row.source_id) for row in read("webdataset", tmp_path, "train")] == [(("dog",), "abc")] * 2


def test_a_text_that_is_a_link_out_of_the_tar_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add_member(tar, "a.wav", b"x")
        add_member(tar, "a.json", kind=tarfile.SYMTYPE, to="../a.json")
    with pytest.raises(PipelineError, match=r"train.tar: a.json is a link to a file that is not in the tar"):
        read("webdataset", tmp_path, "train")


@pytest.mark.parametrize("layout", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix"])
@pytest.mark.parametrize("holes", [0, 1, 30])  # four fit into the first header of GNU tar
def test_sparse_members_are_what_tar_gives(tmp_path: Path, layout: str, holes: int) -> None:
    random = np.random.default_rng(0)
    block = 1 << 16
    sparse = b"".join(random.bytes(block) + bytes(block) for _ in range(holes)) + bytes(block)
    sounds = {"a.wav": random.bytes(777), "b.wav": sparse, "c.wav": sparse + b"end", "d.wav": random.bytes(1000)}
    for name, data in sounds.items():
        with (tmp_path / name).open("wb") as file:
            for start in range(0, len(data), block):
                if data[start : start + block].strip(b"\0"):
                    file.seek(start)
                    file.write(data[start : start + block])
            file.truncate(len(data))
    options = f"--sparse --format={layout}".split()
    subprocess.run(["tar", *options, "-cf", "train.tar", *sounds], cwd=tmp_path, check=True)
    rows = read("webdataset", tmp_path, "train")
    assert all("zeros+" in (row.member or "") for row in rows[1:3])
    assert audio_of(rows, tmp_path) == {name.removesuffix(".wav"): data for name, data in sounds.items()}


@pytest.mark.parametrize("size", [600, 1100, 3000])
def test_a_sparse_member_that_is_cut_off_is_named(tmp_path: Path, size: int) -> None:
    with (tmp_path / "a.wav").open("wb") as file:
        for piece in range(30):  # more than the first header holds
            file.seek(piece << 16)
            file.write(b"sound" * 1000)
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", "train.tar", "a.wav"], cwd=tmp_path, check=True)
    os.truncate(tmp_path / "train.tar", size)
    with pytest.raises(PipelineError, match=r"train.tar: cannot be read .*; is it cut off"):
        read("webdataset", tmp_path, "train")


def test_a_sparse_member_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    os.truncate(write_tar(tmp_path / "a.wav"), 1 << 40)
    subprocess.run(["tar", "--sparse", "-cf", "train.tar", "a.wav"], cwd=tmp_path, check=True)
    with pytest.raises(PipelineError, match=r"train.tar: a.wav is a sparse file of 1099511627776 bytes"):
        read("webdataset", tmp_path, "train")


def test_joined_tars_are_read_to_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = [
        write_tar(tmp_path / f"{n}.tar", (f"{k}.wav", b"sound %d %d" % (n, k))) for n in range(3) for k in (n % 2,)
    ]
    (tmp_path / "train.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    rows = read("webdataset", tmp_path, "train")
    assert audio_of(rows, tmp_path) == {
        "0": b"sound 0 0", "train part 2/1": b"sound 1 1", "train part 3/0": b"sound 2 0",
    }  # fmt: skip
    assert any("train.tar: is 3 archives that were joined; all are read" in message for message in caplog.messages)


def test_a_joined_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    part = write_tar(tmp_path / "0.tar", ("0.wav", b"x" * 2000)).read_bytes()
    (tmp_path / "train.tar").write_bytes(part + part[:1500])
    with pytest.raises(PipelineError, match=r"train.tar: .*is it cut off"):
        read("webdataset", tmp_path, "train")


def test_what_is_no_archive_after_the_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "train.tar", ("0.wav", b"x"))
    path.write_bytes(path.read_bytes() + b"rest")
    assert len(read("webdataset", tmp_path, "train")) == 1
    assert any("4 bytes after its end are no archive" in message for message in caplog.messages)


def test_texts_that_are_not_utf_8_are_read_as_windows_1252(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [("0.json", '{"text": "café"}'.encode("latin-1")), ("1.txt", "café".encode("latin-1"))]
    texts += [("2.txt", "café".encode()), ("3.txt", "café".encode("utf-16"))]
    write_tar(tmp_path / "train.tar", *((f"{n}.wav", b"x") for n in range(4)), *texts)
    assert [row.captions for row in read("webdataset", tmp_path, "train")] == [("café",)] * 4
    assert [message for message in caplog.messages if "2 texts are not UTF-8, the first is 0.json" in message]


def test_sound_next_to_a_video_is_the_clip(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", ("0.mkv", b"video"), ("0.flac", b"sound"), ("1.mkv", b"video"))
    assert audio_of(read("webdataset", tmp_path, "train"), tmp_path) == {"0": b"sound", "1": b"video"}


@pytest.mark.parametrize(("kind", "program"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_a_compressed_tar_is_refused(tmp_path: Path, kind: str, program: str) -> None:
    with tarfile.open(tmp_path / "train.tar", f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.addfile(tarfile.TarInfo("1.wav"))
    with pytest.raises(PipelineError, match=rf"train.tar: is compressed with .* {program} < .*train.tar > NEW.tar"):
        read("webdataset", tmp_path, "train")


# --- damage ----------------------------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))  # a deeper search by hand
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(root: Path, adapter: str) -> list[tuple[str, str | None]] | str:
    """Status and reason of every row of what is below the root, or the message of the one error that is allowed."""
    shutil.rmtree(root / "out", ignore_errors=True)  # shards of these rows would be kept
    try:
        catalog = catalog_file(root, adapter, "train", root / "out/catalog.parquet")
        shard_audio.main(shard_arguments(catalog, root / "out", clips=99))
    except PipelineError as error:
        return str(error)
    rows = read_rows(root / "out/00000.parquet")[0].to_pylist()
    return sorted((row["status"], row["reason"]) for row in rows)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file of each kind, of three clips of 0.2 s."""
    folder = tmp_path_factory.mktemp("containers")
    audio = [encoded(noise(0.2, seed=seed), "WAV") for seed in range(3)]
    rows = [{"audio": {"bytes": data, "path": None}, "caption": "noise"} for data in audio]
    members = [(f"{i}.{kind}", data) for i in range(3) for kind, data in (("wav", audio[i]), ("txt", b"noise"))]
    return {
        "parquet": write_rows(folder / "x.parquet", rows).read_bytes(),
        "webdataset": write_tar(folder / "x.tar", *members).read_bytes(),
    }


@pytest.mark.parametrize("adapter", ["parquet", "webdataset"])
@QUICK
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_container_cut_at_any_byte_is_named(
    tmp_path: Path, containers: dict[str, bytes], adapter: str, share: float
) -> None:
    whole = containers[adapter]
    content = whole[: int(share * len(whole))]
    path = tmp_path / ("train.parquet" if adapter == "parquet" else "train.tar")
    path.write_bytes(content)
    found = outcome(tmp_path, adapter)
    if isinstance(found, list):  # the zeros after a tar's end mark may go
        assert adapter == "webdataset" and not whole[len(content) :].strip(b"\0")
        assert found == [("ok", None)] * 3
    else:
        assert str(path) in found


@pytest.mark.parametrize("adapter", ["parquet", "webdataset"])
@QUICK
@given(share=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_wrong_byte_anywhere_is_an_error_with_a_name_or_costs_no_row(
    tmp_path: Path, containers: dict[str, bytes], adapter: str, share: float, value: int
) -> None:
    content = bytearray(containers[adapter])
    content[int(share * len(content))] = value
    path = tmp_path / ("train.parquet" if adapter == "parquet" else "train.tar")
    path.write_bytes(content)
    found = outcome(tmp_path, adapter)
    if isinstance(found, list):
        assert len(found) == 3
    else:
        assert str(path) in found or "sounds/train" in found
