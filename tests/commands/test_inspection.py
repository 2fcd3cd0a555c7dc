"""What is inspected is told as it is, what is damaged is named, and what is heard is what training hears."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import assert_refused, index_arguments, make_catalog, make_shards, run_stage, write_folder

from pipeline.__main__ import main
from pipeline.data.leaks import AudioForm, leaked_path, read_leaked, write_identities
from pipeline.data.pairs import read_epoch
from pipeline.data.shards.format import read_manifest, read_summary
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_json, write_parquet
from pipeline.stages import index_shards, pair_clips, train


def inspected(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    main(["inspect", str(path), "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def verified(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    main(["verify", str(path), *arguments])
    return capsys.readouterr().out


SECOND = "labeled_train_clip_15_8c1362bf"
"""The second shard of the labeled split, named by its first key."""


def refused(*arguments: object) -> str:
    with pytest.raises(PipelineError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


@pytest.fixture
def split(tiny_study, tmp_path: Path) -> Path:
    """A copy of the labeled split, to be damaged: shards of 6 and 18 clips."""
    return Path(shutil.copytree(tiny_study.shards / "labeled" / "train", tmp_path / "shards" / "labeled" / "train"))


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """FLAC shards of five clips, of which one has no file and one is no audio."""
    write_folder(tmp_path / "raw", clips=5)
    (tmp_path / "raw/train/clip 1.wav").unlink()
    (tmp_path / "raw/train/clip 3.wav").write_text("no audio")
    return make_shards(
        make_catalog(tmp_path / "raw", tmp_path / "catalog.parquet"), tmp_path / "out", 2, audio_format="flac"
    )


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def agree(folder: Path, **changes: Any) -> None:
    """Make manifest.json tell of the tars and the manifest as they are now, so that only what they hold is wrong."""
    summary = json.loads((folder / "manifest.json").read_text())
    for shard in summary["shards"]:
        tar = folder / shard["tar"]
        shard |= {"bytes": tar.stat().st_size, "sha256": sha256_of(tar)}
    summary["manifest_sha256"] = sha256_of(folder / "manifest.parquet")
    write_json(summary | changes, folder / "manifest.json")


def change_manifest(folder: Path, row: int, **values: Any) -> None:
    table = read_manifest(folder / "manifest.parquet")
    rows = table.to_pylist()
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "manifest.parquet")
    agree(folder)


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_a_split_is_told_as_its_audio_and_captions_are(tiny_study, capsys) -> None:
    folder = tiny_study.shards / "labeled" / "train"
    reader = open_shards(folder)
    clips = [reader.read_window(key, 0, reader.frames(key)) / 32768 for key in reader.keys]
    captions = [caption for key in reader.keys for caption in reader.captions(key)]
    facts = inspected(capsys, folder, "--samples", "4")
    assert facts["kind"] == "shards"
    assert facts["split"] | facts["counts"]["status"] == {
        "dataset": "labeled",
        "split": "train",
        "format": "wav",
        "channels": "mean",
        "sample_rate_hz": 16_000,
        "shards": 2,
        "shards_beside": 2,
        "bytes": sum(tar.stat().st_size for tar in folder.glob("*.tar")),
        "manifest_json": "agrees",
        "rows": 24,
        "clips": 24,
        "duration_h": round(sum(map(len, clips)) / 16_000 / 3600, 4),
        "clips_at_full_scale": 0,
        "captions": 48,
        "distinct_captions": 4,
        "captions_in_use_more_than_once": 4,
        "ok": 24,
    }
    told = facts["distributions"]
    for name, values in {
        "duration_s": [len(clip) / 16_000 for clip in clips],
        "peak_dbfs": [20 * np.log10(np.abs(clip).max()) for clip in clips],
        "rms_dbfs": [10 * np.log10((clip**2).mean()) for clip in clips],
        "captions_a_clip": [2] * 24,
        "words_a_caption": [len(caption.split()) for caption in captions],
    }.items():
        expected = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        np.testing.assert_allclose(list(told[name].values()), expected, atol=2e-4, err_msg=name)
    duplicates = {row["caption"]: row["times"] for row in facts["duplicate_captions"]}
    assert duplicates == {caption: captions.count(caption) for caption in captions}
    assert list(duplicates.values()) == sorted(duplicates.values(), reverse=True)
    assert [row["key"] for row in facts["samples"]] == [reader.keys[row] for row in (0, 7, 15, 23)]
    assert facts["samples"][0]["captions"] == reader.captions(reader.keys[0])


def test_what_was_lost_is_told_with_its_reason(lossy: Path, capsys) -> None:
    facts = inspected(capsys, lossy)
    assert facts["counts"]["status"] == {"ok": 3, "dropped": 1, "failed": 1}
    assert facts["counts"]["reason"] == {"missing_file": 1, "undecodable": 1}
    assert [(row["reason"], row["source_name"]) for row in facts["lost"]] == [
        ("missing_file", "clip 1.wav"),
        ("undecodable", "clip 3.wav"),
    ]
    assert facts["distributions"]["duration_s"]["max"] == 1.0
    catalog = inspected(capsys, lossy.parent / "catalog.parquet")
    assert catalog["kind"] == "catalog"
    assert catalog["counts"]["reason"] == {"missing_file": 1}
    assert catalog["counts"]["file_type"] == {".wav": 4}
    assert catalog["catalog"]["rows"] == 5


def test_a_manifest_is_inspected_without_its_tars_and_summary(split: Path, tmp_path: Path, capsys) -> None:
    for tar in split.glob("*.tar"):
        tar.unlink()
    for path in (split, split / "manifest.parquet", split / "manifest.json"):
        assert inspected(capsys, path)["split"]["shards_beside"] == 0
    alone = shutil.copy(split / "manifest.parquet", tmp_path / "of another name")
    facts = inspected(capsys, Path(alone))
    assert facts["split"]["manifest_json"] == "missing" and facts["split"]["clips"] == 24
    agree_with_another = json.loads((split / "manifest.json").read_text()) | {"manifest_sha256": "0" * 64}
    write_json(agree_with_another, split / "manifest.json")
    assert inspected(capsys, split)["split"]["manifest_json"] == "is of another manifest"


@pytest.mark.parametrize("objective", ["finetune", "composed", "concatenate"])
def test_pairs_are_told_with_their_plan_use_and_captions(tiny_study, capsys, objective: str) -> None:
    path = tiny_study.pairs(objective, epochs=3)
    rows = [row for epoch in range(3) for row in read_epoch(path, epoch).to_pylist()]
    facts = inspected(capsys, path, "--samples", "5")
    plan = facts["plan"]
    assert (plan["epochs"], plan["steps"], plan["batch_size"], plan["rows"], plan["seed"]) == (3, 9, 8, 72, 0)
    assert plan["partners"] == {"finetune": "none", "composed": "unlabeled", "concatenate": "labeled"}[objective]
    if objective == "finetune":
        assert "distinct_pairs" not in plan
    else:
        assert plan["distinct_pairs"] == len({(row["labeled_key"], row["partner_key"]) for row in rows})
        uses = np.unique([row["partner_key"] for row in rows], return_counts=True)[1]
        told = facts["distributions"]["uses_of_a_partner"]
        assert (told["min"], told["median"], told["max"]) == (uses.min(), np.median(uses), uses.max())
    assert plan["labeled_clips_never_used"] == 24 - len({row["labeled_key"] for row in rows}) == 0
    assert {row["manifest"] for row in facts["splits"]} == {"as paired"}
    reader = open_shards(tiny_study.shards / "labeled" / "train")
    assert len(facts["samples"]) == 5
    for sample in facts["samples"]:
        row = rows[sample["epoch"] * 24 + sample["step"] * 8 + sample["slot"]]
        assert sample["labeled_key"] == row["labeled_key"]
        assert sample["caption"] == reader.captions(row["labeled_key"])[row["caption"]]
        assert sample.get("partner_key") == row["partner_key"]
        if objective == "concatenate":
            assert sample["partner_caption"] == reader.captions(row["partner_key"])[row["partner_caption"]]


@pytest.fixture
def leaky(tiny_study, split: Path, tmp_path: Path) -> Path:
    """Pairs of a split of which two clips have the source of a held-out one, and a third its audio."""
    held_out = Path(shutil.copytree(tiny_study.shards / "unlabeled" / "train", tmp_path / "shards" / "held" / "test"))
    sounds = read_manifest(held_out / "manifest.parquet")["sha256"].to_pylist()
    change_manifest(held_out, 4, source_id="-aVideoId_0")
    for row, identity in {
        3: {"source_id": "-aVideoId_0"},
        8: {"source_id": "-aVideoId_0"},
        9: {"sha256": sounds[7]},
    }.items():
        change_manifest(split, row, **identity)
    path = tmp_path / "pairs" / "seed0.parquet"
    identities = held_out / "identities.parquet"
    write_identities(held_out / "manifest.parquet", AudioForm.of(read_summary(held_out / "manifest.json")), identities)
    manifests = ["--labeled", str(split / "manifest.parquet"), "--held-out", str(identities)]
    plan = ["--backbone", "mini", "--epochs", "1", "--batch-size", "7", "--seed", "0", "--leaks", "drop"]
    pair_clips.main([*manifests, *plan, "--pairs", str(path), "--leaked", str(leaked_path(path))])
    return path


def test_clips_left_out_as_leaked_are_told_one_by_one_with_what_they_overlap(
    tiny_study, leaky: Path, split: Path, capsys
) -> None:
    keys = read_manifest(split / "manifest.parquet")["key"].to_pylist()
    others = read_manifest(tiny_study.manifest("unlabeled"))["key"].to_pylist()
    facts = inspected(capsys, leaky)
    assert (facts["plan"]["clips_left_out_as_leaked"], facts["plan"]["list_of_leaked"]) == (3, "agrees")
    assert [(row["key"], row["shared"], row["held_out_key"]) for row in facts["leaked"]] == [
        (keys[3], "source_id", others[4]),
        (keys[8], "source_id", others[4]),
        (keys[9], "sha256", others[7]),
    ]
    assert [(row["split"], row["reason"], row["shared"], row["clips"]) for row in facts["left_out"]] == [
        ("train", "leaked", "sha256", 1),
        ("train", "leaked", "source_id", 2),
    ]
    main(["inspect", str(leaky), "--samples", "1"])
    text = capsys.readouterr().out
    assert re.search(rf"^leaked\n.*\n.*\n.*\n  key +{keys[3]}\n", text, re.MULTILINE) and keys[8] not in text
    assert verified(capsys, leaky).startswith(f"{leaky}: ok: ")
    assert "give the pairs file beside it" in refused("inspect", leaked_path(leaky))


def test_a_list_of_leaked_clips_that_is_missing_or_of_other_pairs_is_refused(leaky: Path, capsys) -> None:
    leaked = leaked_path(leaky)
    write_parquet(read_leaked(leaked).slice(1), leaked)
    assert inspected(capsys, leaky)["plan"]["list_of_leaked"] == "is of other pairs"
    assert f"{leaked}: is of other pairs; " in refused("verify", leaky, "--quick")
    leaked.unlink()
    assert inspected(capsys, leaky)["plan"]["list_of_leaked"] == "missing"
    assert f"{leaked}: missing; " in refused("verify", leaky)


def test_pairs_are_inspected_without_shards(tiny_study, capsys, tmp_path: Path) -> None:
    facts = inspected(capsys, tiny_study.pairs("composed"), "--shards", str(tmp_path))
    assert {row["manifest"] for row in facts["splits"]} == {"not found"}
    assert all(re.fullmatch(r"\(caption [01]\)", row["caption"]) for row in facts["samples"])
    assert "labeled_clips_never_used" not in facts["plan"]


def test_a_run_is_told_by_its_weights_and_losses(tiny_study, capsys, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    settings = {"learning_rate": 0.5, "prompt": "this sound is"}
    curves = {
        "step": [0, 1, 2],
        "epoch": [0, 0, 1],
        "loss": [3.0, 1.0, 2.0],
        "learning_rate": [0.5, 0.25, 0.1],
    }
    table = pa.table(curves).replace_schema_metadata({"settings": json.dumps(settings)})
    pq.write_table(table, run / "training.parquet")
    for path in (run, run / "model.json", run / "training.parquet"):
        facts = inspected(capsys, path)
        assert (facts["kind"], facts["model"]["backbone"], facts["settings"]) == ("run", "mini", settings)
        assert facts["training"] == {"steps": 3, "epochs": 2}
        assert facts["curves"]["loss"] == {"first": 3.0, "last": 2.0, "min": 1.0, "max": 3.0}
    from safetensors.numpy import load_file

    weights = load_file(run / "model.safetensors")
    total = facts["weights"][-1]
    assert (total["part"], total["tensors"]) == ("total", len(weights))
    assert total["values"] == sum(array.size for array in weights.values())
    assert sum(row["values"] for row in facts["weights"][:-1]) == total["values"]


def test_a_run_is_told_by_the_account_of_its_training(tiny_study, capsys, tmp_path: Path) -> None:
    words = ["--pretrained", tiny_study.pretrained, "--pairs", tiny_study.pairs("finetune"), "--seed", 0]
    train.main(list(map(str, [*words, "--shards", tiny_study.shards, "--out", tmp_path])))
    written = json.loads((tmp_path / "training.json").read_text())
    account = inspected(capsys, tmp_path)["account"]
    for name in ("wall_s", "gpu_s", "clips_per_s", "peak_memory_gb", "model_flops_utilization"):
        assert account[name] == written[name], name
    assert account["versions"]["torch"] == written["versions"]["torch"] and "msclap" in account["versions"]
    assert account["gflop_a_step"] == written["flops_a_step"] / 1e9 > 0
    assert (account["processes"], account["parts"], account["gpus"]) == (1, 1, None)
    main(["inspect", str(tmp_path)])
    text = capsys.readouterr().out
    assert re.search(rf"account\n  versions .*python .*torch {re.escape(written['versions']['torch'])}", text)
    (tmp_path / "training.json").write_text("{}")
    assert "training.json: not the account of a training" in refused("inspect", tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 8, 500, -1])
def test_cut_weights_are_refused(tiny_study, tmp_path: Path, cut: int) -> None:
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    assert refused("inspect", run).startswith(f"{weights}: ")


def test_a_non_finite_figure_leaves_the_json_parseable(tiny_study, capsys, tmp_path: Path) -> None:
    curves = {"step": [0, 1], "epoch": [0, 0], "loss": [1.0, float("nan")], "learning_rate": [1.0, float("inf")]}
    pq.write_table(pa.table(curves), tmp_path / "training.parquet")
    facts = inspected(capsys, tmp_path)
    assert facts["curves"]["loss"] == {"first": 1.0, "last": None, "min": None, "max": None}


def test_the_text_shows_every_section_and_escapes_what_a_terminal_would_obey(split: Path, capsys) -> None:
    change_manifest(split, 0, captions=["a tone\x1b[2J\nand more"], source_name="ton\x07e.wav")
    main(["inspect", str(split), "--samples", "1"])
    text = capsys.readouterr().out
    assert r"a tone\x1b[2J\nand more" in text and r"ton\x07e.wav" in text
    assert text.isascii() and "\x1b" not in text
    assert [line for line in text.splitlines() if line and line[0] != " "] == [
        f"shards  {split / 'manifest.parquet'}",
        *("split", "counts", "distributions", "duplicate captions", "samples"),
    ]
    assert re.search(r"^  status +ok +24  100.0%$", text, re.MULTILINE)


# --- verify: shards --------------------------------------------------------------------------------------------------


def test_sound_shards_are_ok(split: Path, lossy: Path, capsys) -> None:
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
    summary = json.loads((split / "manifest.json").read_text())
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
def test_sound_pairs_are_ok(tiny_study, capsys, objective: str) -> None:
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
        (lambda epochs: epochs[1].pop(), "epoch 1 has 23 rows, its footer tells of 24"),
    ):
        changed_pairs(source, path, change)
        for arguments in ([], ["--quick"]):
            assert expected in refused("verify", path, "--shards", tiny_study.shards, *arguments)


def test_pairs_of_another_manifest_or_without_shards_are_refused(tiny_study, split: Path, tmp_path: Path) -> None:
    path = tiny_study.pairs("finetune")
    assert "draws from labeled/train, whose manifest was not found" in refused("verify", path, "--shards", tmp_path)
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


# --- listen ----------------------------------------------------------------------------------------------------------


class Players(HTMLParser):
    """The sources of a page's audio elements and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(dict(attrs)["src"])] if tag == "audio" else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("objective", ["composed", "concatenate"])
def test_what_is_heard_is_what_training_hears(tiny_study, capsys, tmp_path: Path, objective: str) -> None:
    from pipeline.training.batches import PairedBatches

    path = tiny_study.pairs(objective)
    batch = PairedBatches(path, tiny_study.shards)[1 * 3 + 2]
    slots = ["--epoch", "1", "--step", "2", "--slot", "5", "--out", str(tmp_path / "out")]
    main(["listen", str(path), "--shards", str(tiny_study.shards), *slots])
    printed = capsys.readouterr().out
    labeled, partner, composed = (
        soundfile.read(tmp_path / "out" / f"{name}.wav", dtype=kind)
        for name, kind in (("labeled", "int16"), ("partner", "int16"), ("composed", "float64"))
    )
    assert labeled[1] == partner[1] == composed[1] == 16_000
    np.testing.assert_array_equal(labeled[0], batch.labeled_BS[5].numpy())
    np.testing.assert_array_equal(partner[0], batch.partner_BS[5].numpy())  # type: ignore[index]
    np.testing.assert_array_equal(composed[0], (labeled[0] / 32768 + partner[0] / 32768) / 2)  # Eq. (11), exactly
    page = Players((tmp_path / "out" / "index.html").read_text())
    assert page.sources == ["labeled.wav", "partner.wav", "composed.wav"]
    row = read_epoch(path, 1).to_pylist()[2 * 8 + 5]
    for text in (page.text, printed):
        assert row["labeled_key"] in text and row["partner_key"] in text and batch.captions[5] in text
        assert objective == "composed" or batch.partner_captions[5] in text  # type: ignore[index]


def test_a_pair_without_partner_leaves_none_of_another_slot(tiny_study, tmp_path: Path) -> None:
    arguments = ["--shards", str(tiny_study.shards), "--out", str(tmp_path)]
    main(["listen", str(tiny_study.pairs("composed")), *arguments])
    assert len(list(tmp_path.glob("*.wav"))) == 3
    main(["listen", str(tiny_study.pairs("finetune")), *arguments])
    assert [path.name for path in tmp_path.glob("*.wav")] == ["labeled.wav"]
    assert Players((tmp_path / "index.html").read_text()).sources == ["labeled.wav"]


def test_captions_cannot_break_the_page(tiny_study, split: Path, tmp_path: Path, capsys) -> None:
    caption = '<script>alert(1)</script> & "rain" \x1b[2J'
    for row in range(24):
        change_manifest(split, row, captions=[caption, caption])
    path = tmp_path / "pairs" / "pairs.parquet"
    pair_clips.main(
        ["--labeled", str(split / "manifest.parquet"), "--backbone", "mini", "--epochs", "1", "--batch-size", "8"]
        + ["--seed", "0", "--pairs", str(path), "--leaked", str(leaked_path(path))]
    )
    main(["listen", str(path), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page and caption in Players(page).text
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "number", "last"), [("epoch", 2, 1), ("step", 3, 2), ("slot", 8, 7), ("slot", -1, 7)])
def test_a_slot_that_is_not_there_is_refused(tiny_study, tmp_path: Path, name: str, number: int, last: int) -> None:
    message = refused("listen", tiny_study.pairs("composed"), f"--{name}", number, "--out", tmp_path / "out")
    assert f"no {name} {number}; it has {name}s 0 to {last}" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tiny_study, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        message = refused("listen", tiny_study.pairs("finetune"), "--out", tmp_path / out)
        assert f"{tmp_path / out}: cannot be made ({reason}); give another folder with --out" in message


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def test_the_command_exits_with_0_or_with_1_and_one_line(split: Path) -> None:
    finished = command("verify", split)
    assert (finished.returncode, finished.stderr) == (0, "") and finished.stdout.count("\n") == 1
    flip(split / "00000.tar", 2000)
    finished = command("verify", split)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"python -m pipeline: {split}: 1 of 2 shards and 1 of 48 members damaged")
    assert finished.stderr.count("\n") == 1


def test_a_message_is_one_line_whatever_a_name_holds(tmp_path: Path) -> None:
    folder = tmp_path / "-a\n'b\" \x1b[2J\udcff"
    finished = command("inspect", f"{folder}")
    assert finished.returncode == 1 and finished.stdout == ""
    assert finished.stderr.startswith(f"python -m pipeline: {tmp_path}/-a\\n'b\" \\x1b[2J\\udcff: not found; give ")
    assert finished.stderr.count("\n") == 1
    write_folder(raw := tmp_path / "raw", clips=2)
    shards = make_shards(make_catalog(raw, tmp_path / "catalog.parquet"), tmp_path / "a\n\x1b[2J", 2)
    for verb in ("verify", "inspect"):
        assert f"{tmp_path}/a\\n\\x1b[2J" in command(verb, shards).stdout.splitlines()[0]
    assert_refused(
        run_stage("index_audio", ["--dataset", "d", "--split", "s", "--adapter", "folder", "--root", str(folder)]
                  + ["--labeled", "--catalog", str(tmp_path / "catalog.parquet")]
                  + ["--clips-per-shard", "9", "--plan", str(tmp_path / "catalog.shards.parquet")]),
        "index_audio", r"-a\n'b",
    )  # fmt: skip


def test_a_training_that_goes_on_is_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "a run whose training has not ended; logs/train/" in refused("inspect", tmp_path / "run")


def test_what_is_none_of_these_is_refused_with_what_was_found(tiny_study, tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("file_name,caption\n")
    (tmp_path / "empty").touch()
    (tmp_path / "other.json").write_text('{"sky": "blue"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "nothing").mkdir()
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "other.parquet")
    rows = tiny_study.shards / "labeled" / "train" / "00000.parquet"
    for path, found in {
        tmp_path / "absent": "not found",
        tmp_path / "text.csv": "begins with b'file_name,captio', neither Parquet nor JSON",
        tmp_path / "empty": "a file that is empty",
        tmp_path / "list.json": "begins with b'[1]'",
        tmp_path / "other.json": "a JSON file with sky",
        tmp_path / "other.parquet": "a Parquet file with the columns a, b",
        tmp_path / "nothing": "a folder that is empty",
        tiny_study.shards: "a folder that holds labeled, unlabeled",
    }.items():
        for verb in ("inspect", "verify"):
            message = refused(verb, path)
            assert found in message and "give a folder of shards" in message
    assert "the rows of one shard" in refused("inspect", rows)
    assert "a run, which has no checksums" in refused("verify", tiny_study.pretrained)
    assert "a catalog, which has no checksums" in refused(
        "verify", tiny_study.folder / "catalogs/labeled/train.parquet"
    )
    assert "shards, not a pairs file" in refused("listen", rows.parent, "--out", tmp_path / "out")


def test_a_split_made_anew_verifies_again(tiny_study, split: Path, capsys) -> None:
    """The advice in the message helps: the stage's own output is whole."""
    (split / "manifest.json").unlink()
    index_shards.main(index_arguments(tiny_study.folder / "catalogs/labeled/train.parquet", split, 20))
    assert ": ok: " in verified(capsys, split)


def test_no_torch_is_imported(tiny_study) -> None:
    code = "import sys; from pipeline.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    line = [sys.executable, "-c", code, "inspect", str(tiny_study.pairs("composed")), "--json"]
    assert subprocess.run(line, capture_output=True, timeout=60).returncode == 0
