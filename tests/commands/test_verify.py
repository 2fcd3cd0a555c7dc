"""verify accepts undamaged shards and pairs, and names the first damage of others."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import SECOND, agree, change_manifest, flip, refused, verified

from pipeline.__main__ import main
from pipeline.data.shards.format import read_manifest
from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json

# --- verify: shards --------------------------------------------------------------------------------------------------


def test_undamaged_shards_are_ok(split: Path, lossy: Path, capsys) -> None:
    size = sum(tar.stat().st_size for tar in split.glob("*.tar"))
    for path in (split, split / "manifest.parquet", split / "manifest.json"):
        line = verified(capsys, path)
        assert line == (
            f"{split}: ok: shards 2, {size:,} bytes (SHA-256 of all and of each of 24 clips); "
            "manifest 24 rows, 24 usable\n"
        )
    assert "shards 4" in verified(capsys, lossy) and "5 rows, 3 usable" in verified(capsys, lossy)
    assert "sizes alone" in verified(capsys, split, "--quick")


def test_a_flipped_byte_of_any_member_is_named(split: Path, capsys) -> None:
    """Of every part of a member: header, WAV header, samples, and the JSON member's header and text."""
    rows = read_manifest(split / "manifest.parquet").to_pylist()
    row, whole = rows[18], (split / f"{SECOND}.tar").read_bytes()
    after = -(-(row["data_offset"] + row["data_size"]) // 512) * 512
    for place, member in {
        row["data_offset"] - 500: "wav",
        row["data_offset"] + 30: "wav",
        row["pcm_offset"] + 1001: "wav",
        row["data_offset"] + row["data_size"] - 1: "wav",
        after + 3: "json",
        after + 512 + 20: "json",
    }.items():
        flip(split / f"{SECOND}.tar", place)
        message = refused("verify", split)
        assert f"{split}: 1 of 2 shards and 1 of 48 members damaged; the first: {SECOND}.tar: " in message
        assert f"{row['key']}.{member}: " in message, place
        assert "sizes alone" in verified(capsys, split, "--quick")
        (split / f"{SECOND}.tar").write_bytes(whole)


def test_the_first_of_several_damaged_shards_and_members_is_named(split: Path) -> None:
    rows = read_manifest(split / "manifest.parquet").to_pylist()
    for row in (rows[20], rows[9], rows[5]):
        flip(split / f"{row['shard']}.tar", row["pcm_offset"] + 10)
    message = refused("verify", split)
    assert "2 of 2 shards and 3 of 48 members damaged; the first: 00000.tar: " in message
    assert rows[5]["key"] in message and rows[9]["key"] not in message and rows[20]["key"] not in message


def test_a_flipped_byte_between_members_is_found(split: Path) -> None:
    rows = read_manifest(split / "manifest.parquet").to_pylist()
    row = next(row for row in rows if (row["data_offset"] + row["data_size"]) % 512)
    flip(split / f"{row['shard']}.tar", row["data_offset"] + row["data_size"])
    message = refused("verify", split)
    assert "1 of 2 shards and 0 of 48 members damaged" in message
    assert f"{row['shard']}.tar: SHA-256 " in message and "though every member is as the manifest says" in message


def test_a_tar_cut_at_any_byte_is_named_with_its_first_lost_member(split: Path) -> None:
    tar = split / f"{SECOND}.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        members = [(member.name, member.offset_data + member.size) for member in archive]
    generator = np.random.default_rng(0)
    ends = [end for _, end in members]
    cuts = {0, 1, 511, 512, 513, len(whole) - 1, ends[3], ends[3] - 1, ends[-1], *generator.integers(0, len(whole), 40)}
    for cut in sorted(map(int, cuts)):
        tar.write_bytes(whole[:cut])
        message = refused("verify", split)
        assert f"1 of 2 shards and {sum(end > cut for end in ends)} of 48 members damaged" in message, cut
        assert f"{SECOND}.tar: {cut:,} bytes, manifest.json says {len(whole):,}" in message
        lost = [name for name, end in members if end > cut]
        assert not lost or f"; {lost[0]}: " in message
        assert f"{SECOND}.tar: {cut:,} bytes" in refused("verify", split, "--quick")
    tar.unlink()
    assert f"{SECOND}.tar: not found" in refused("verify", split)
    assert f"{SECOND}.tar: not found" in refused("verify", split, "--quick")


def rewritten(tar: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> None:
    """Write a tar anew with other members."""
    with tarfile.open(tar) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_members_that_are_missing_swapped_or_too_many_are_named(split: Path) -> None:
    """Also when manifest.json was made to agree with the tar."""
    tar = split / f"{SECOND}.tar"
    keys = [row["key"] for row in read_manifest(split / "manifest.parquet").to_pylist() if row["shard"] == SECOND]
    whole, summary = tar.read_bytes(), (split / "manifest.json").read_bytes()

    def swap(members: list[tuple[str, bytes]]) -> None:
        members[4], members[6] = members[6], members[4]

    for change, expected in (
        (lambda members: members.pop(0), f"{SECOND}.tar: {keys[0]}.wav: "),
        (lambda members: members.pop(3), f"{SECOND}.tar: {keys[1]}.json: "),
        (lambda members: members.pop(), f"{SECOND}.tar: {keys[-1]}.json: "),
        (swap, f"{SECOND}.tar: {keys[2]}.wav: byte "),
        (lambda members: members.append(("more.wav", b"data")), f"{SECOND}.tar: more members than the manifest has"),
        (lambda members: members.append(members[-1]), f"{SECOND}.tar: more members than the manifest has"),
    ):
        rewritten(tar, change)
        agree(split)
        assert f"the first: {expected}" in refused("verify", split)
        tar.write_bytes(whole)
        (split / "manifest.json").write_bytes(summary)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sha256": "0" * 64}, "the manifest says 0000"),
        ({"frames": 7}, "is not a WAV file of 7 frames"),
        ({"pcm_offset": 44}, "from byte 44 on"),
        ({"data_size": 12}, "bytes, the manifest says 12"),
        ({"data_offset": 512}, "byte 512 belongs to "),
        ({"data_offset": 10**9}, "lies at byte 1,000,000,000, beyond the end"),
        ({"captions": ["another"]}, ".json: differs from the manifest in captions"),
        ({"source_name": "another", "start_s": 3.0}, ".json: differs from the manifest in source_name, start_s"),
    ],
)
def test_a_manifest_that_disagrees_with_its_tar_is_named(split: Path, changes: dict[str, Any], expected: str) -> None:
    change_manifest(split, 18, **changes)
    if "frames" in changes:
        frames = sum(row["frames"] for row in read_manifest(split / "manifest.parquet").to_pylist())
        agree(split, duration_s=round(frames / 16_000, 3))
    message = refused("verify", split)
    assert "1 of 2 shards" in message and f"{SECOND}.tar: " in message and expected in message


def test_flac_shards_are_checked_alike(lossy: Path) -> None:
    row = next(
        row for row in read_manifest(lossy / "manifest.parquet").to_pylist() if row["source_name"] == "clip 4.wav"
    )
    flip(lossy / f"{row['shard']}.tar", row["data_offset"] + row["data_size"] // 2)
    assert f"{row['shard']}.tar: SHA-256 " in refused("verify", lossy)
    assert f"{row['key']}.flac: SHA-256 " in refused("verify", lossy)


def test_a_manifest_and_summary_that_disagree_are_refused(split: Path) -> None:
    summary = read_json(split / "manifest.json")
    shards = summary["shards"]
    for changes, expected in (
        ({"clips": 23}, "clips is 23, manifest.parquet has 24"),
        ({"rows": 25}, "rows is 25, manifest.parquet has 24"),
        ({"reason": {"silent": 1}}, "reason is {'silent': 1}, manifest.parquet has {}"),
        ({"duration_s": 1.0}, "duration_s is 1.0, manifest.parquet has "),
        ({"sample_rate_hz": 8_000}, "sample_rate_hz is 8000, manifest.parquet has 16000"),
        ({"shards": shards[:1]}, f"shards is [('00000', 6)], manifest.parquet has [('00000', 6), ('{SECOND}', 18)]"),
        ({"shards": [shards[0] | {"clips": 7}, shards[1]]}, "shards is [('00000', 7)"),
        ({"shards": None}, "has no shards.shard"),
    ):
        write_json(summary | changes, split / "manifest.json")
        for arguments in ([], ["--quick"]):
            assert expected in refused("verify", split, *arguments)
    write_json(summary, split / "manifest.json")
    flip(split / "manifest.parquet", 100)
    assert f"manifest.json says {summary['manifest_sha256']}" in refused("verify", split)


def test_a_damaged_or_missing_manifest_is_refused(split: Path) -> None:
    whole = (split / "manifest.parquet").read_bytes()
    for cut in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        (split / "manifest.parquet").write_bytes(whole[:cut])
        assert str(split / "manifest.parquet") in refused("verify", split)
        assert str(split / "manifest.parquet") in refused("inspect", split)
    (split / "manifest.parquet").unlink()
    for arguments in (("verify", split), ("inspect", split), ("verify", split / "manifest.json")):
        assert f"{split / 'manifest.parquet'}: not found" in refused(*arguments)
    (split / "manifest.parquet").write_bytes(whole)
    (split / "manifest.json").write_text("{")
    assert "manifest.json: is not JSON" in refused("verify", split)
    (split / "manifest.json").unlink()
    assert "manifest.json: not found" in refused("verify", split)


def test_a_tar_that_the_manifest_does_not_know_is_named(split: Path) -> None:
    shutil.copy(split / f"{SECOND}.tar", split / "00002.tar")
    assert "00002.tar is not in manifest.json" in refused("verify", split)


# --- verify: pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["finetune", "composed", "concatenate"])
def test_undamaged_pairs_are_ok(tiny_study, capsys, objective: str) -> None:
    path = tiny_study.pairs(objective)
    line = verified(capsys, path)
    assert line.startswith(f"{path}: ok: 2 epochs of 3 steps of 8 pairs, 48 rows; ") and line.count("\n") == 1
    assert f"{20 if objective == 'composed' else 0} unlabeled clips" in line
    assert "labeled/train" in verified(capsys, path, "--quick")


def changed_pairs(source: Path, path: Path, change: Callable[[list[list[dict[str, Any]]]], None]) -> Path:
    """A pairs file with other rows and the same footer."""
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        epochs = [file.read_row_group(epoch).to_pylist() for epoch in range(file.num_row_groups)]
    change(epochs)
    with pq.ParquetWriter(path, schema) as writer:
        for rows in epochs:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labeled_key": "no_such_clip"}, "labeled_key no_such_clip is no usable clip of the labeled splits"),
        ({"labeled_key": None}, "labeled_key None is no usable clip"),
        ({"partner_key": "no_such_clip"}, "partner_key no_such_clip is no usable clip of the {role} splits"),
        ({"partner_key": None}, "partner_key None is no usable clip"),
        ({"caption": 2}, "has no caption 2"),
        ({"caption": -1}, "has no caption -1"),
        ({"partner_caption": 7}, "has no caption 7"),
        ({"labeled_start": -1}, "labeled_start -1 is outside "),
        ({"labeled_start": 10**6}, "labeled_start 1000000 is outside "),
        ({"partner_start": 10**6}, "partner_start 1000000 is outside "),
        ({"slot": 4}, "is in the file as epoch 1, step 2, slot 4"),
        ({"step": 0}, "is in the file as epoch 1, step 0, slot 5"),
        ({"epoch": 0}, "is in the file as epoch 0, step 2, slot 5"),
    ],
)
@pytest.mark.parametrize("objective", ["composed", "concatenate"])
def test_a_wrong_row_of_pairs_is_named(
    tiny_study, tmp_path: Path, objective: str, changes: dict[str, Any], expected: str
) -> None:
    path = changed_pairs(
        tiny_study.pairs(objective), tmp_path / "pairs.parquet", lambda epochs: epochs[1][2 * 8 + 5].update(changes)
    )
    message = refused("verify", path, "--shards", tiny_study.shards)
    expected = expected.format(role="unlabeled" if objective == "composed" else "labeled")
    assert "1 of 48 rows are wrong; the first: epoch 1, step 2, slot 5: " in message and expected in message


def test_rows_that_repeat_a_clip_or_mix_it_with_itself_are_named(tiny_study, tmp_path: Path) -> None:
    def repeat(epochs: list[list[dict[str, Any]]]) -> None:
        epochs[0][9] |= {name: epochs[0][1][name] for name in ("labeled_key", "labeled_start")}

    def mix_with_itself(epochs: list[list[dict[str, Any]]]) -> None:
        row = epochs[1][0]
        row |= {"partner_key": row["labeled_key"], "partner_start": row["labeled_start"]}

    source = tiny_study.pairs("concatenate")
    for change, expected in (
        (repeat, "epoch 0, step 1, slot 1: labeled_key .* is in this epoch before"),
        (mix_with_itself, "epoch 1, step 0, slot 0: .* is its own partner"),
    ):
        path = changed_pairs(source, tmp_path / "pairs.parquet", change)
        assert re.search(expected, refused("verify", path, "--shards", tiny_study.shards))


def test_pairs_with_rows_or_epochs_missing_are_refused(tiny_study, tmp_path: Path) -> None:
    source, path = tiny_study.pairs("composed"), tmp_path / "pairs.parquet"
    for change, expected in (
        (lambda epochs: epochs.pop(), "1 epochs of the 2"),
        (lambda epochs: epochs[1].pop(), "epoch 1 has 23 rows, its footer says 24"),
    ):
        changed_pairs(source, path, change)
        for arguments in ([], ["--quick"]):
            assert expected in refused("verify", path, "--shards", tiny_study.shards, *arguments)


def test_pairs_of_another_manifest_or_without_shards_are_refused(tiny_study, split: Path, tmp_path: Path) -> None:
    path = tiny_study.pairs("finetune")
    assert "draws from labeled/train, whose manifest.parquet was not found" in refused(
        "verify", path, "--shards", tmp_path
    )
    change_manifest(split, 0, captions=["another", "one"])
    for arguments in ([], ["--quick"]):
        message = refused("verify", path, "--shards", tmp_path / "shards", *arguments)
        assert f"was made from another {split / 'manifest.parquet'}" in message


def test_pairs_cut_anywhere_are_refused_by_name(tiny_study, tmp_path: Path) -> None:
    whole = tiny_study.pairs("composed").read_bytes()
    path = tmp_path / "pairs.parquet"
    for cut in (0, 3, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert refused("verify", path, "--shards", tiny_study.shards).startswith(f"{path}: ")
    path.write_bytes(whole)
    for place in range(10, len(whole), len(whole) // 60):  # a flip may change a value, break a page or hit a checksum
        flip(path, place)
        for arguments in (["verify", path, "--shards", tiny_study.shards], ["inspect", path]):
            try:
                main([str(argument) for argument in arguments])
            except PipelineError as error:
                assert str(path) in str(error)
        path.write_bytes(whole)
